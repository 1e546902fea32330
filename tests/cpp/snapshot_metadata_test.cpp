#include "cocoon/snapshot/metadata.h"

#include "snapshot_test_support.h"
#include "system_test_support.h"

namespace cocoon::snapshot {
namespace {

using system::testing::put;
using system::testing::TempDir;

std::string corrupt(const std::function<void()>& action) {
  try {
    action();
  } catch (const CorruptSnapshot& error) {
    EXPECT_FALSE(error.member.empty());
    EXPECT_FALSE(error.path.empty());
    return error.what();
  }
  return "";
}

TEST(Metadata, OfTheGoEngineIsReadItsOwnDisksByTheirNameHere) {
  const TempDir dir;
  put(dir / "cow.raw", "x");
  const auto metadata = parse_metadata(
      R"({"storage_configs":[{"path":"/var/lib/cocoon/oci/blobs/a.erofs","ro":true,"serial":"cocoon-layer0","role":"layer"},
          {"path":"/var/lib/cocoon/run/firecracker/X/cow.raw","ro":false,"serial":"cocoon-cow","role":"cow",
           "mount_point":"/","fstype":"ext4","direct_io":null}],
          "boot_config":{"kernel_path":"/var/lib/cocoon/oci/boot/vmlinuz","cmdline":""},"cpu":2,"memory":1073741824})",
      dir.path());
  ASSERT_EQ(metadata.disks.size(), 2U);
  EXPECT_EQ(metadata.disks[0].path, "/var/lib/cocoon/oci/blobs/a.erofs");
  EXPECT_EQ(metadata.disks[1].file, "cow.raw");
  EXPECT_EQ(metadata.disks[1].path, "");
  EXPECT_EQ(metadata.mem_bytes, 1 << 30);
  EXPECT_EQ(metadata.kernel, "/var/lib/cocoon/oci/boot/vmlinuz");
}

TEST(Metadata, RefusesWhatItCannotTrust) {
  const TempDir dir;
  const auto refused = [&](const std::string& text, const std::string& says) {
    EXPECT_TRUE(contains(corrupt([&] { parse_metadata(text, dir.path()); }), says)) << text;
  };
  refused("", "not JSON");
  refused("[]", "expected an object");
  refused(R"({"cpu":1,"cpu":2})", "\"cpu\" is there twice");
  refused("{\"cpu\":-1}", "cpu: \"-1\"");
  refused("{\"cpu\":1.5}", "cpu: \"1.5\"");
  refused("{\"memory\":99999999999999999999}", "memory");
  refused(R"({"cpu":"2"})", "cpu");
  refused("{\"storage_configs\":{}}", "expected an array");
  refused("{\"storage_configs\":[1]}", "storage_configs[0]: expected an object");
  refused(R"({"storage_configs":[{"path":"a","role":"root"}]})", "storage_configs[0].role: \"root\", allowed: layer");
  refused(R"({"storage_configs":[{"path":"a/b","role":"cow"}]})", "storage_configs[0].path: \"a/b\"");
  refused(R"({"storage_configs":[{"path":"..","role":"cow"}]})", "storage_configs[0].path");
  refused(R"({"storage_configs":[{"path":"","role":"cow"}]})", "storage_configs[0].path");
  refused(R"({"storage_configs":[{"path":"a\u0000b","role":"cow"}]})", "without NUL");
  refused(R"({"boot_config":{"kernel_path":7}})", "boot_config.kernel_path: expected text");
  refused(std::string(100'000, '['), "nested deeper");
  refused(R"({"x":")" + std::string(1 << 20, 'x') + "\"}", "allowed: at most 1048576");
}

TEST(Metadata, RefusesPathsOutsideOfTheTrustedFolders) {
  const TempDir dir;
  const Trust trusted{.allowed = {"/root", "/run/cocoon/"}, .denied = {"/root/db", "/root/run"}};
  const auto check_kernel = [&](const std::string& path) {
    Metadata metadata;
    metadata.kernel = path;
    return corrupt([&] { check_paths(metadata, dir.path(), trusted); });
  };
  EXPECT_EQ(check_kernel("/root/vmlinux"), "");
  EXPECT_EQ(check_kernel("/run/cocoon/a/vmlinux"), "");
  for (const auto* path : {"/etc/shadow", "/root", "/root/", "/root/../etc/shadow", "/rootx/vmlinux", "vmlinux",
                           "/root/./vmlinux", "/root//../x", "/run/cocoon", "/"})
    EXPECT_TRUE(contains(check_kernel(path), "lies outside")) << path;
  for (const auto* path : {"/root/db/meta.db", "/root/run/qemu/abc/cow.raw"})
    EXPECT_TRUE(contains(check_kernel(path), "among the files of the engine")) << path;
  EXPECT_EQ(check_kernel("/root/dbx/vmlinux"), "");
  Metadata metadata;
  metadata.disks.push_back({.file = "absent.raw"});
  EXPECT_TRUE(contains(corrupt([&] { check_paths(metadata, dir.path(), trusted); }), "is not in the snapshot"));
  metadata.disks = {{.path = "/dev/sda"}};
  EXPECT_TRUE(contains(corrupt([&] { check_paths(metadata, dir.path(), trusted); }), "lies outside"));
}

TEST(Envelope, ComesBackAndIsReadFromTheGoEngine) {
  const Envelope ours{.id = "abc", .name = "base", .description = "d", .hypervisor = "qemu", .cpu = 1};
  EXPECT_EQ(parse_envelope(to_json(ours), "x.tar"), ours);
  const auto theirs = parse_envelope(
      R"({"config":{"cpu":2,"memory":1073741824,"storage":10737418240,"image":"docker.io/library/ubuntu:24.04",
          "id":"HYWXWJP6XQU7VNUSICRCSUCBXG","name":"golden","description":"fixture","hypervisor":"cloud-hypervisor",
          "nics":1},"version":1})",
      "x.tar");
  EXPECT_EQ(theirs.name, "golden");
  EXPECT_EQ(theirs.storage_bytes, 10737418240);
}

TEST(Envelope, RefusesOtherVersionsNamesAndShapes) {
  const auto refused = [&](const std::string& text, const std::string& says) {
    EXPECT_TRUE(contains(corrupt([&] { parse_envelope(text, "x.tar"); }), says)) << text;
  };
  refused(R"({"config":{"name":""},"version":2})", "version: \"2\", allowed: 1");
  refused(R"({"config":{"name":""}})", "version: absent");
  refused(R"({"version":1})", "config: it is missing");
  refused(R"({"config":[],"version":1})", "expected an object");
  refused(R"({"config":{"name":"../../etc"},"version":1})", "config.name");
}

}  // namespace
}  // namespace cocoon::snapshot
