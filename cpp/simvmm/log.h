#pragma once
// The VMM's own log, in its own format: standard output, standard error or a file.

#include <string>
#include <string_view>

#include "cocoon/system/fd.h"

namespace cocoon::simvmm {

enum class Level { kError, kWarning, kInfo, kDebug };

class Log {
 public:
  enum class Format { kFirecracker, kCloudHypervisor };

  Log(Format format, int borrowed, Level level);

  // From now on to this file, which is made if need be. Errors SystemError
  void append_to(const std::string& path);
  void set_level(Level level) { level_ = level; }
  void set_id(std::string id) { id_ = std::move(id); }

  void write(Level level, std::string_view thread, std::string_view text);

 private:
  Format format_;
  int borrowed_;
  Level level_;
  double started_;  // seconds of the monotonic clock
  system::Fd file_;
  std::string id_ = "anonymous-instance";
};

}  // namespace cocoon::simvmm
