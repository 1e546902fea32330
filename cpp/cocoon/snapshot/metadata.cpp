#include "cocoon/snapshot/metadata.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <set>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cocoon/error.h"
#include "cocoon/metering/text.h"

namespace cocoon::snapshot {
namespace {

using metering::quote;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::size_t kMaxText = 1 << 20;
constexpr std::size_t kMaxDisks = 256;
constexpr std::size_t kMaxString = 4096;
constexpr std::int64_t kMaxNumber = std::int64_t{1} << 60;
constexpr std::int64_t kEnvelopeVersion = 1;
constexpr std::array<std::string_view, 4> kRoles{"layer", "cow", "cidata", "data"};

// One object of a document from outside, read key by key.
class Reader {
 public:
  Reader(const json& object, std::string where, const system::Path& path, std::string member)
      : object_(object), where_(std::move(where)), path_(path), member_(std::move(member)) {
    if (!object.is_object()) fail("", "expected an object");
  }

  [[noreturn]] void fail(std::string_view key, std::string_view problem) const {
    const auto at = where_.empty() || key.empty() ? where_ + std::string(key) : fmt::format("{}.{}", where_, key);
    throw CorruptSnapshot(
        fmt::format("snapshot {}: {}: {}{}{}", path_.string(), member_, at, at.empty() ? "" : ": ", problem),
        path_.string(), member_);
  }

  // "" and 0 and false when absent.
  [[nodiscard]] std::string text(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) return "";
    if (!found->is_string()) fail(key, fmt::format("expected text, found {}", found->type_name()));
    auto value = found->get<std::string>();
    if (value.size() > kMaxString || value.find('\0') != std::string::npos)
      fail(key, fmt::format("{} bytes, allowed: at most {} without NUL", value.size(), kMaxString));
    return value;
  }
  [[nodiscard]] std::string one_of(const char* key, std::span<const std::string_view> allowed) const {
    auto value = text(key);
    if (std::find(allowed.begin(), allowed.end(), value) == allowed.end())
      fail(key, fmt::format("{}, allowed: {}", quote(value), fmt::join(allowed, ", ")));
    return value;
  }
  // Text that becomes part of our own names and columns.
  [[nodiscard]] std::string name(const char* key) const {
    auto value = text(key);
    try {
      if (!value.empty()) lifecycle::check_name(value);
    } catch (const InvalidArgument& error) {
      fail(key, error.what());
    }
    return value;
  }
  [[nodiscard]] std::int64_t number(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) return 0;
    const bool fits = found->is_number_unsigned() && found->get<std::uint64_t>() <= std::uint64_t{kMaxNumber};
    if (!fits) fail(key, fmt::format("{}, allowed: a whole number from 0 to {}", quote(found->dump()), kMaxNumber));
    return found->get<std::int64_t>();
  }
  [[nodiscard]] bool flag(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) return false;
    if (!found->is_boolean()) fail(key, fmt::format("expected true or false, found {}", found->type_name()));
    return found->get<bool>();
  }
  [[nodiscard]] const json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() ? nullptr : &*found;
  }
  [[nodiscard]] Reader inside(const json& object, std::string where) const {
    return {object, std::move(where), path_, member_};
  }

 private:
  const json& object_;
  std::string where_;
  const system::Path& path_;
  std::string member_;
};

// A key that is there twice means one thing to one reader and another to the next: refused.
json parse(std::string_view text, const system::Path& path, const std::string& member) {
  const auto refuse = [&](const std::string& why) {
    throw CorruptSnapshot(fmt::format("snapshot {}: {}: {}", path.string(), member, why), path.string(), member);
  };
  if (text.size() > kMaxText) refuse(fmt::format("{} bytes, allowed: at most {}", text.size(), kMaxText));
  std::vector<std::set<std::string>> keys;
  const auto unique = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > 16) refuse("nested deeper than 16");
    if (event == json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
      refuse(fmt::format("the key {} is there twice", quote(parsed.get<std::string>())));
    }
    return true;
  };
  try {
    return json::parse(text, unique);
  } catch (const json::exception& error) {
    refuse(fmt::format("not JSON: {}", error.what()));
  }
  return {};
}

bool is_below(const system::Path& path, const system::Path& root) {
  const auto relative = path.lexically_relative(root.lexically_normal());
  return !relative.empty() && relative != "." && *relative.begin() != "..";
}

bool is_plain(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos;
}

bool is_file_in(const system::Path& folder, const std::string& name) {
  struct stat status{};
  return ::lstat((folder / name).c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

DiskMetadata parse_disk(const Reader& in, const system::Path& folder) {
  DiskMetadata disk;
  const auto path = in.text("path");
  disk.role = in.one_of("role", kRoles);
  disk.serial = in.text("serial");
  disk.readonly = in.flag("ro");
  const auto base = system::Path(path).filename().string();
  if (is_plain(path))
    disk.file = path;
  else if (!path.empty() && path.front() == '/' && disk.role != "layer" && is_plain(base) && is_file_in(folder, base))
    disk.file = base;
  else
    disk.path = path;
  if (disk.file.empty() && (path.empty() || path.front() != '/'))
    in.fail("path", fmt::format("{}, allowed: a plain name, or an absolute path", quote(path)));
  return disk;
}

void put_text(ordered_json& out, const char* key, const std::string& value) {
  if (!value.empty()) out[key] = value;
}

void put_number(ordered_json& out, const char* key, std::int64_t value) {
  if (value != 0) out[key] = value;
}

}  // namespace

Metadata parse_metadata(std::string_view text, const system::Path& folder) {
  const auto document = parse(text, folder, kMetadataFile);
  const Reader in(document, "", folder, kMetadataFile);
  Metadata metadata;
  metadata.cpu = in.number("cpu");
  metadata.mem_bytes = in.number("memory");
  if (const auto* boot = in.find("boot_config"); boot != nullptr && !boot->is_null()) {
    const auto inside = in.inside(*boot, "boot_config");
    metadata.kernel = inside.text("kernel_path");
    metadata.initrd = inside.text("initrd_path");
    metadata.firmware = inside.text("firmware_path");
    metadata.cmdline = inside.text("cmdline");
  }
  const auto* disks = in.find("storage_configs");
  if (disks == nullptr || disks->is_null()) return metadata;
  if (!disks->is_array() || disks->size() > kMaxDisks)
    in.fail("storage_configs", fmt::format("expected an array of at most {} disks", kMaxDisks));
  for (const auto& disk : *disks)
    metadata.disks.push_back(
        parse_disk(in.inside(disk, fmt::format("storage_configs[{}]", metadata.disks.size())), folder));
  return metadata;
}

std::optional<Metadata> find_metadata(const system::Path& folder) {
  if (!is_file_in(folder, kMetadataFile)) return std::nullopt;
  const auto text = system::find_text(folder / kMetadataFile, kMaxText);
  if (!text) return std::nullopt;
  return parse_metadata(*text, folder);
}

void check_paths(const Metadata& metadata, const system::Path& folder, const Trust& trust) {
  const auto refuse = [&](std::string_view what, const std::string& path, std::string_view why) {
    throw CorruptSnapshot(
        fmt::format("snapshot {}: {}: {} {} {}", folder.string(), kMetadataFile, what, quote(path), why),
        folder.string(), kMetadataFile);
  };
  std::vector<std::string> shown;
  shown.reserve(trust.allowed.size());
  for (const auto& root : trust.allowed) shown.push_back(root.string());
  const auto check = [&](std::string_view what, const std::string& path) {
    if (path.empty()) return;
    const system::Path named(path);
    const auto in = [&](const system::Path& root) { return is_below(named, root); };
    if (!named.is_absolute() || named != named.lexically_normal() ||
        std::none_of(trust.allowed.begin(), trust.allowed.end(), in))
      refuse(what, path, fmt::format("lies outside of the folders it may name: {}", fmt::join(shown, ", ")));
    if (std::any_of(trust.denied.begin(), trust.denied.end(), in))
      refuse(what, path, "lies among the files of the engine, or of another VM");
  };
  check("kernel", metadata.kernel);
  check("initrd", metadata.initrd);
  check("firmware", metadata.firmware);
  for (const auto& disk : metadata.disks) {
    check("disk", disk.path);
    if (!disk.file.empty() && (!is_plain(disk.file) || !is_file_in(folder, disk.file)))
      refuse("disk", disk.file, "is not in the snapshot");
  }
}

Envelope envelope_of(const lifecycle::SnapshotRecord& record) {
  return {.id = record.id,
          .name = record.name,
          .description = record.description,
          .hypervisor = record.hypervisor,
          .cpu = record.cpu,
          .mem_bytes = record.mem_bytes,
          .storage_bytes = record.storage_bytes};
}

std::string to_json(const Envelope& envelope) {
  ordered_json config = ordered_json::object();
  put_number(config, "cpu", envelope.cpu);
  put_number(config, "memory", envelope.mem_bytes);
  put_number(config, "storage", envelope.storage_bytes);
  put_text(config, "id", envelope.id);
  config["name"] = envelope.name;
  put_text(config, "description", envelope.description);
  put_text(config, "hypervisor", envelope.hypervisor);
  return ordered_json{{"config", std::move(config)}, {"version", kEnvelopeVersion}}.dump(2) + "\n";
}

Envelope parse_envelope(std::string_view text, const system::Path& path) {
  const auto document = parse(text, path, kEnvelopeFile);
  const Reader in(document, "", path, kEnvelopeFile);
  if (in.find("version") == nullptr || in.number("version") != kEnvelopeVersion)
    in.fail("version", fmt::format("{}, allowed: {}", in.find("version") ? quote(in.find("version")->dump()) : "absent",
                                   kEnvelopeVersion));
  const auto* config = in.find("config");
  if (config == nullptr) in.fail("config", "it is missing");
  const auto inside = in.inside(*config, "config");
  Envelope envelope;
  envelope.id = inside.text("id");
  envelope.name = inside.name("name");
  envelope.description = inside.text("description");
  envelope.hypervisor = inside.name("hypervisor");
  envelope.cpu = inside.number("cpu");
  envelope.mem_bytes = inside.number("memory");
  envelope.storage_bytes = inside.number("storage");
  return envelope;
}

}  // namespace cocoon::snapshot
