#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "cocoon/system/file.h"
#include "cocoon/system/path_error.h"

namespace cocoon::system {
namespace {

struct CloseDir {
  void operator()(DIR* dir) const { ::closedir(dir); }
};

constexpr int kPasses = 100;  // a folder that somebody keeps filling is an error, not a loop

// Everything goes through the parent's descriptor: a component that is swapped for a link meanwhile is not followed.
void remove_at(int parent, const char* name, const Path& shown);

// Names are collected first: entries that are unlinked while readdir goes on may be skipped or seen twice.
std::vector<std::string> names_in(int folder, const Path& shown) {
  const int copy = ::fcntl(folder, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) throw_store_error("open folder", shown);
  const std::unique_ptr<DIR, CloseDir> dir(::fdopendir(copy));
  if (!dir) {
    const int code = errno;
    ::close(copy);
    throw_store_error("read folder", shown, code);
  }
  ::rewinddir(dir.get());  // the position is shared with `folder`
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr) {
      if (errno != 0) throw_store_error("read folder", shown);
      return names;
    }
    if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0)
      names.emplace_back(entry->d_name);
  }
}

void remove_folder_at(int parent, const char* name, const Path& shown) {
  const Fd folder(::openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!folder) {
    if (errno == ENOENT) return;
    throw_store_error("open folder", shown);
  }
  for (int pass = 0; pass < kPasses; ++pass) {
    for (const std::string& entry : names_in(folder.get(), shown)) {
      remove_at(folder.get(), entry.c_str(), shown / entry);
    }
    if (::unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT) return;
    if (errno != ENOTEMPTY && errno != EEXIST) throw_store_error("remove folder", shown);
  }
  throw_store_error("remove folder", shown, ENOTEMPTY);
}

void remove_at(int parent, const char* name, const Path& shown) {
  if (::unlinkat(parent, name, 0) == 0 || errno == ENOENT) return;
  if (errno == ENOTDIR) return;  // what would be its parent is a file, so it is not there
  const int code = errno;
  // Linux says EISDIR for folders, POSIX EPERM; a file that cannot be removed says EPERM too (chattr +i).
  if (code != EISDIR && code != EPERM) throw_store_error("remove", shown, code);
  struct stat status{};
  if (::fstatat(parent, name, &status, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT) return;  // removed by somebody else
    throw_store_error("remove", shown);
  }
  if (!S_ISDIR(status.st_mode)) throw_store_error("remove", shown, code);
  remove_folder_at(parent, name, shown);
}

}  // namespace

std::vector<std::string> list_dir(const Path& path) {
  const Fd folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder) throw_store_error("open folder", path);
  auto names = names_in(folder.get(), path);
  std::sort(names.begin(), names.end());
  return names;
}

void remove_tree(const Path& path) {
  // A trailing '/' would follow a link.
  const Path plain = path.has_filename() ? path : path.parent_path();
  remove_at(AT_FDCWD, plain.c_str(), plain);
}

}  // namespace cocoon::system
