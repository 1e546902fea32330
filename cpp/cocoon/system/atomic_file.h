#pragma once
// A file that appears under its name whole, or not at all.

#include "cocoon/system/fd.h"
#include "cocoon/system/file.h"

namespace cocoon::system {

// Has no name until it is published, where the file system can do that; else a hidden one beside its own.
// Destroying an unpublished one leaves nothing. Errors StoreError.
class AtomicFile {
 public:
  // 0600. Its folder must exist.
  explicit AtomicFile(Path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  [[nodiscard]] int fd() const { return fd_.get(); }
  // Replaces what has the name. Durable on return: the bytes and the name.
  void publish();

 private:
  Path path_;
  Path temp_;  // "": it has no name
  Fd fd_;
};

}  // namespace cocoon::system
