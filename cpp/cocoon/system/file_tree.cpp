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
using Folder = std::unique_ptr<DIR, CloseDir>;

constexpr int kPasses = 100;  // a folder that somebody keeps filling is an error, not a loop

// Everything goes through the parent's descriptor: a component that is swapped for a link meanwhile is not followed.
void remove_at(int parent, const char* name, const Path& shown);

// Names are collected first: entries that are unlinked while readdir goes on may be skipped or seen twice.
std::vector<std::string> names_in(DIR* folder, const Path& shown) {
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(folder);
    if (entry == nullptr) {
      if (errno != 0) throw_store_error("read folder", shown);
      return names;
    }
    if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0)
      names.emplace_back(entry->d_name);
  }
}

// Empty: there is none, errno says why. `flags` are added.
Folder open_folder(int parent, const char* name, int flags) {
  Fd fd(::openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | flags));
  if (!fd) return nullptr;
  Folder folder(::fdopendir(fd.get()));
  if (folder) static_cast<void>(fd.release());
  return folder;
}

void remove_folder_at(int parent, const char* name, const Path& shown) {
  const Folder folder = open_folder(parent, name, O_NOFOLLOW);
  if (!folder) {
    if (errno == ENOENT) return;
    throw_store_error("open folder", shown);
  }
  for (int pass = 0; pass < kPasses; ++pass) {
    if (pass > 0) ::rewinddir(folder.get());
    for (const std::string& entry : names_in(folder.get(), shown)) {
      remove_at(::dirfd(folder.get()), entry.c_str(), shown / entry);
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
  const Folder folder = open_folder(AT_FDCWD, path.c_str(), 0);
  if (!folder) throw_store_error("open folder", path);
  auto names = names_in(folder.get(), path);
  std::sort(names.begin(), names.end());
  return names;
}

void remove_files(const Path& folder, const std::vector<std::string>& names) {
  const Folder opened = open_folder(AT_FDCWD, folder.c_str(), 0);
  if (!opened) {
    if (errno == ENOENT) return;
    throw_store_error("open folder", folder);
  }
  for (const std::string& name : names_in(opened.get(), folder)) {
    if (std::find(names.begin(), names.end(), name) == names.end()) continue;
    if (::unlinkat(::dirfd(opened.get()), name.c_str(), 0) != 0 && errno != ENOENT)
      throw_store_error("remove", folder / name);
  }
}

void remove_tree(const Path& path) {
  // A trailing '/' would follow a link.
  const Path plain = path.has_filename() ? path : path.parent_path();
  remove_at(AT_FDCWD, plain.c_str(), plain);
}

}  // namespace cocoon::system
