#pragma once
// The node's snapshots in Python; they keep their node alive.

#include <memory>

#include "cocoon/engine/node.h"

namespace cocoon::bindings {

struct PyLocalFile {
  std::shared_ptr<engine::Node> node;
  [[nodiscard]] snapshot::LocalFile& store() const { return node->snapshots(); }
};

}  // namespace cocoon::bindings
