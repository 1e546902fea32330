#include "cocoon/engine/node.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <utility>

#include <fmt/format.h>

#include "cocoon/engine/commit.h"
#include "cocoon/error.h"
#include "cocoon/system/fd.h"

namespace cocoon::engine {
namespace {

constexpr const char* kOwnerFile = ".cocoon-node";  // the ids of the nodes that make VMs there, one per line
constexpr std::size_t kLongestOwners = std::size_t{64} << 10;

enum class Owner { kNobody, kThis, kThisAndOthers, kOthers };

Owner find_owner(const system::Path& folder, std::string_view node_id) {
  const auto text = system::find_text(folder / kOwnerFile, kLongestOwners);
  bool is_this = false;
  bool is_other = false;
  std::istringstream lines(text.value_or(""));
  for (std::string line; std::getline(lines, line);)
    if (!line.empty()) (line == node_id ? is_this : is_other) = true;
  if (is_this) return is_other ? Owner::kThisAndOthers : Owner::kThis;
  return is_other ? Owner::kOthers : Owner::kNobody;
}

// As /proc shows it, links resolved: VMMs are found again by their working directory.
system::Path canonical_path(const system::Path& path) {
  if (path.empty()) throw InvalidArgument("root: it is empty, allowed: the path of a folder");
  std::error_code error;
  auto canonical = std::filesystem::weakly_canonical(std::filesystem::absolute(path), error);
  if (error)
    throw StoreError(fmt::format("open node {}: {}", path.string(), error.message()), path.string(), error.value());
  return canonical;
}

system::Path with_default(const system::Path& path, const system::Path& fallback) {
  return canonical_path(path.empty() ? fallback : path);
}

}  // namespace

Node::Node(NodeOptions options)
    : root_(canonical_path(options.root)),
      run_dir_(with_default(options.run_dir, root_ / "run")),
      log_dir_(with_default(options.log_dir, root_ / "log")),
      shim_(std::move(options.shim)),
      clock_(options.clock != nullptr ? options.clock : &system::system_clock()),
      binaries_(std::move(options.binaries)) {
  for (const auto hypervisor : vmm::hypervisors())
    drivers_.emplace(std::string(hypervisor), vmm::make_driver(hypervisor));
  for (const auto& [hypervisor, binary] : binaries_) {
    (void)driver(hypervisor);
    if (binary.empty())
      throw InvalidArgument(fmt::format("binaries: '' for {}, allowed: the path of a program", hypervisor));
  }
  auto recorder = std::move(options.recorder);
  if (!recorder) recorder = std::make_shared<metering::FileRecorder>(root_ / "metering" / "ledger.jsonl");
  store_ = std::make_unique<store::MetaStore>(store::Options{.root = root_,
                                                             .recorder = std::move(recorder),
                                                             .clock = clock_,
                                                             .metered_labels = std::move(options.ledger_labels),
                                                             .rotate_bytes = options.rotate_bytes});
  system::make_private_dirs(root_ / "locks");
  // What a snapshot from outside names must not be a file of the engine, or of some other VM.
  snapshots_ = std::make_unique<snapshot::LocalFile>(
      *store_, root_,
      snapshot::Trust{
          .allowed = {root_},
          .denied = {root_ / "db", root_ / "metering", root_ / "locks", root_ / "snapshots", run_dir_, log_dir_}});
}

Node::~Node() = default;

const vmm::Driver& Node::driver(std::string_view hypervisor) const {
  const auto found = drivers_.find(hypervisor);
  if (found == drivers_.end()) {
    // It knows which there are, and says so.
    (void)vmm::make_driver(hypervisor);
    throw InvalidArgument(fmt::format("hypervisor: '{}' has no driver", hypervisor));
  }
  return *found->second;
}

system::Path Node::find_binary(std::string_view hypervisor, const system::Path& configured) const {
  auto binary = configured;
  if (const auto found = binaries_.find(std::string(hypervisor)); binary.empty() && found != binaries_.end())
    binary = found->second;
  if (!binary.empty()) {
    // Links are not resolved: the name a VMM is called by is part of what it is known by.
    binary = std::filesystem::absolute(binary);
    if (::access(binary.c_str(), X_OK) != 0)
      throw VmmError(system_message(fmt::format("{}: configured binary {}", hypervisor, binary.string()), errno));
    return binary;
  }
  const auto program = driver(hypervisor).program();
  const char* path = std::getenv("PATH");
  std::istringstream folders(path != nullptr ? path : "/usr/local/bin:/usr/bin:/bin");
  for (std::string folder; std::getline(folders, folder, ':');) {
    const auto candidate = std::filesystem::absolute(folder.empty() ? "." : folder) / program;
    std::error_code ignored;
    if (::access(candidate.c_str(), X_OK) == 0 && std::filesystem::is_regular_file(candidate, ignored))
      return candidate;
  }
  throw VmmError(
      fmt::format("{}: program {} is not in PATH; install it, or name it in the node's binaries", hypervisor, program));
}

VmView Node::view(lifecycle::VmRecord vm) const {
  auto liveness = probe(driver(vm.hypervisor), vm);
  std::erase_if(vm.snapshot_ids, [&](const std::string& id) { return !store_->find(store::Table::kSnapshot, id); });
  return {.record = std::move(vm), .liveness = std::move(liveness)};
}

std::vector<VmView> Node::vms() const {
  std::vector<VmView> views;
  for (const auto& row : store_->list(store::Table::kVm)) views.push_back(view(vm_from_row(row)));
  return views;
}

VmView Node::find(std::string_view ref) const { return view(vm_from_row(store_->resolve(store::Table::kVm, ref))); }

bool Node::is_below_root(const system::Path& folder) const {
  return (folder / "").native().starts_with((root_ / "").native());  // both are canonical
}

bool Node::owns(const system::Path& folder) const {
  return is_below_root(folder) || find_owner(folder, id()) == Owner::kThis;
}

void Node::claim(const system::Path& folder) const {
  if (is_below_root(folder)) return;
  const auto owner = find_owner(folder, id());
  if (owner == Owner::kThis || owner == Owner::kThisAndOthers) return;
  const auto path = folder / kOwnerFile;
  const system::Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) throw StoreError(system_message("create " + path.string(), errno), path.string(), errno);
  // One write behind whatever others write at this moment. Die before it: the folder is not ours, and we collect
  // nothing in it.
  const auto line = id() + "\n";
  if (::write(file.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()))
    throw StoreError(system_message("write " + path.string(), errno), path.string(), errno);
}

system::Path Node::op_lock_path(std::string_view vm_id) const { return root_ / "locks" / vm_id; }

}  // namespace cocoon::engine
