// QEMU's command line, byte for byte, and what is refused before there is one.

#include <functional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "cocoon/error.h"
#include "cocoon/vmm/qemu.h"

#include "vmm_test_support.h"

namespace cocoon::vmm {
namespace {

using lifecycle::DiskConfig;
using lifecycle::VmConfig;
using lifecycle::VmRecord;

constexpr std::string_view kId = "abcdefghijklmnopqrstuvwxyz";
constexpr const char* kBinary = "/usr/bin/qemu-system-x86_64";

VmRecord record() {
  VmRecord vm;
  vm.id = kId;
  vm.run_dir = "/run/vm";
  vm.log_dir = "/log/vm";
  vm.config.name = "web-1";
  vm.config.cpu = 2;
  vm.config.mem_bytes = 256 << 20;
  vm.config.kernel = "/boot/k";
  return vm;
}

std::string after(const std::vector<std::string>& argv, std::string_view option) {
  std::string found;
  for (std::size_t i = 0; i + 1 < argv.size(); ++i) {
    if (argv[i] == option) found += (found.empty() ? "" : "|") + argv[i + 1];
  }
  return found;
}

std::string append(const std::string& cmdline, const QemuHost& host, const std::string& machine = "") {
  VmRecord vm = record();
  vm.config.cmdline = cmdline;
  vm.config.machine = machine;
  return after(qemu_argv(vm, kBinary, host), "-append");
}

TEST(QemuCommandTest, MicrovmUnderTcg) {
  VmRecord vm = record();
  vm.config.initrd = "/boot/i,1";
  vm.config.cmdline = "quiet";
  vm.config.disks = {{.path = "/images/base.qcow2", .readonly = true, .format = "qcow2", .role = "layer"},
                     {.path = "/run/vm/cow.raw", .role = "cow", .serial = "cow"}};
  const std::vector<std::string> expected{
      "/usr/bin/qemu-system-x86_64",
      "-name",
      "cocoon-abcdefghijklmnopqrstuvwxyz",
      "-nodefaults",
      "-no-user-config",
      "-display",
      "none",
      "-no-reboot",
      "-S",
      "-msg",
      "timestamp=on",
      "-sandbox",
      "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
      "-machine",
      "microvm",
      "-global",
      "virtio-mmio.force-legacy=false",
      "-accel",
      "tcg,thread=multi",
      "-cpu",
      "max",
      "-smp",
      "2",
      "-m",
      "256M",
      "-chardev",
      "socket,id=console,path=console.sock,server=on,wait=off,logfile=/log/vm/console.log,logappend=on",
      "-serial",
      "chardev:console",
      "-qmp",
      "unix:qmp.sock,server=on,wait=off",
      "-kernel",
      "/boot/k",
      "-initrd",
      "/boot/i,1",
      "-append",
      "quiet console=ttyS0 no_timer_check tsc_early_khz=2596000",
      "-blockdev",
      "driver=qcow2,node-name=disk0,read-only=on,file.driver=file,file.filename=/images/base.qcow2",
      "-device",
      "virtio-blk-device,drive=disk0",
      "-blockdev",
      "driver=raw,node-name=disk1,discard=unmap,file.driver=file,file.filename=cow.raw",
      "-device",
      "virtio-blk-device,drive=disk1,serial=cow",
  };
  EXPECT_EQ(qemu_argv(vm, kBinary, {.kvm = false, .sandbox = true, .tsc_khz = 2'596'000}), expected);
}

TEST(QemuCommandTest, Q35UnderKvmWithoutKernelOrSandbox) {
  VmRecord vm = record();
  vm.config.machine = "q35";
  vm.config.kernel = "";
  vm.config.disks = {{.path = "/dev/vg/root"}};
  const std::vector<std::string> expected{
      "/usr/bin/qemu-system-x86_64",
      "-name",
      "cocoon-abcdefghijklmnopqrstuvwxyz",
      "-nodefaults",
      "-no-user-config",
      "-display",
      "none",
      "-no-reboot",
      "-S",
      "-msg",
      "timestamp=on",
      "-machine",
      "q35",
      "-accel",
      "kvm",
      "-cpu",
      "host",
      "-smp",
      "2",
      "-m",
      "256M",
      "-chardev",
      "socket,id=console,path=console.sock,server=on,wait=off,logfile=/log/vm/console.log,logappend=on",
      "-serial",
      "chardev:console",
      "-qmp",
      "unix:qmp.sock,server=on,wait=off",
      "-blockdev",
      "driver=raw,node-name=disk0,discard=unmap,file.driver=file,file.filename=/dev/vg/root",
      "-device",
      "virtio-blk-pci,drive=disk0",
  };
  EXPECT_EQ(qemu_argv(vm, kBinary, {.kvm = true, .sandbox = false, .tsc_khz = 2'596'000}), expected);
}

TEST(QemuCommandTest, CommasInOptionValuesAreDoubledAndElsewhereLeft) {
  VmRecord vm = record();
  vm.run_dir = "/r,un/vm";
  vm.log_dir = "/lo,g,,";
  vm.config.kernel = "/k,1";
  vm.config.cmdline = "root=a,b";
  vm.config.disks = {{.path = "/r,un/vm/d,0.raw", .serial = "s,0"}, {.path = "/im,ages/x"}};
  const auto argv = qemu_argv(vm, kBinary, {});
  EXPECT_NE(after(argv, "-chardev").find(",logfile=/lo,,g,,,,/console.log,"), std::string::npos);
  EXPECT_EQ(after(argv, "-kernel"), "/k,1");
  EXPECT_EQ(after(argv, "-append"), "root=a,b console=ttyS0 no_timer_check");
  EXPECT_EQ(after(argv, "-blockdev"),
            "driver=raw,node-name=disk0,discard=unmap,file.driver=file,file.filename=d,,0.raw|"
            "driver=raw,node-name=disk1,discard=unmap,file.driver=file,file.filename=/im,,ages/x");
  EXPECT_EQ(after(argv, "-device"), "virtio-blk-device,drive=disk0,serial=s,,0|virtio-blk-device,drive=disk1");
}

TEST(QemuCommandTest, OnlyPathsInsideTheRunDirBecomeRelative) {
  VmRecord vm = record();
  vm.run_dir = "/run/vm/";
  vm.config.disks = {
      {.path = "/run/vm/sub/../a"}, {.path = "/run/vm2/b"}, {.path = "/run/vm/../c"}, {.path = "/run/vm/..d"}};
  const auto drives = after(qemu_argv(vm, kBinary, {}), "-blockdev");
  for (const auto* name : {"=a|", "=/run/vm2/b|", "=/run/vm/../c|", "=..d"}) {
    EXPECT_NE((drives + "|").find(std::string("filename") + name), std::string::npos) << name << " in " << drives;
  }
}

TEST(QemuCommandTest, UsersKernelParametersWin) {
  const QemuHost tcg{.kvm = false, .tsc_khz = 3'000'000};
  EXPECT_EQ(append("", tcg), "console=ttyS0 no_timer_check tsc_early_khz=3000000");
  EXPECT_EQ(append("console=hvc0 tsc_early_khz=1", tcg), "console=hvc0 tsc_early_khz=1 no_timer_check");
  EXPECT_EQ(append("no_timer_check console=", tcg), "no_timer_check console= tsc_early_khz=3000000");
  // Words that only look like them.
  EXPECT_EQ(append("noconsole=1 consoleblank=0 x=console", tcg),
            "noconsole=1 consoleblank=0 x=console console=ttyS0 no_timer_check tsc_early_khz=3000000");
  EXPECT_EQ(append("", {.kvm = false, .tsc_khz = 0}), "console=ttyS0 no_timer_check");
}

TEST(QemuCommandTest, TimerParametersAreForAnEmulatedMicrovmOnly) {
  EXPECT_EQ(append("", {.kvm = true, .tsc_khz = 3'000'000}), "console=ttyS0");
  EXPECT_EQ(append("", {.kvm = false, .tsc_khz = 3'000'000}, "q35"), "console=ttyS0");
}

TEST(QemuCommandTest, AcceleratorOfTheConfigurationWins) {
  VmRecord vm = record();
  vm.config.accelerator = "tcg";
  EXPECT_EQ(after(qemu_argv(vm, kBinary, {.kvm = true}), "-accel"), "tcg,thread=multi");
  vm.config.accelerator = "kvm";
  EXPECT_EQ(after(qemu_argv(vm, kBinary, {.kvm = false}), "-accel"), "kvm");
}

TEST(QemuCommandTest, ProgramThatCouldNotBeKnownAgainIsRefused) {
  EXPECT_THROW(qemu_argv(record(), "/usr/bin/emulator", {}), InvalidArgument);
  EXPECT_NO_THROW(qemu_argv(record(), "/usr/libexec/qemu-kvm", {}));
}

TEST(QemuCommandTest, MicrovmWithoutKernelMayBeKeptButNotStarted) {
  VmRecord vm = record();
  vm.config.kernel = "";
  EXPECT_NO_THROW(check_qemu_config(vm.config));
  EXPECT_THROW(qemu_argv(vm, kBinary, {}), InvalidArgument);
}

TEST(QemuCommandTest, DriverAsksTheHostWithTheBinary) {
  system::Path asked;
  const Qemu qemu([&](const system::Path& binary) {
    asked = binary;
    return QemuHost{.kvm = true};
  });
  EXPECT_EQ(after(qemu.command(record(), kBinary).argv, "-accel"), "kvm");
  EXPECT_EQ(asked, kBinary);
}

TEST(QemuCommandTest, QemuBuiltWithoutSeccompGetsNoSandbox) {
  const TempDir dir;
  const std::string words = "-sandbox support is not enabled in this QEMU binary";
  // Across the border of the pieces in which the program file is read.
  const auto without = dir.file("qemu-a", std::string((1 << 20) - 10, '\0') + words + std::string(100, 'x'));
  const auto with = dir.file("qemu-b", std::string(3 << 20, '\0'));
  const Qemu qemu;
  VmRecord vm = record();
  vm.config.accelerator = "tcg";
  EXPECT_EQ(after(qemu.command(vm, without).argv, "-sandbox"), "");
  EXPECT_NE(after(qemu.command(vm, with).argv, "-sandbox"), "");
}

// --- owns -------------------------------------------------------------------------------------------------------

system::ProcessInfo process(std::vector<std::string> argv, system::Path cwd) {
  return {.identity = {}, .state = 'S', .argv = std::move(argv), .cwd = std::move(cwd)};
}

TEST(QemuOwnsTest, ItsOwnCommandInItsOwnRunDir) {
  const Qemu qemu([](const system::Path&) { return QemuHost{}; });
  const VmRecord vm = record();
  const auto argv = qemu.command(vm, kBinary).argv;
  EXPECT_TRUE(qemu.owns(process(argv, vm.run_dir), vm.id, vm.run_dir));
  EXPECT_TRUE(qemu.owns(process(argv, vm.run_dir), vm.id, "/run/./vm"));
}

TEST(QemuOwnsTest, RunDirReachedThroughALink) {
  const TempDir dir;
  std::filesystem::create_directory(dir.path() / "real");
  std::filesystem::create_directory_symlink("real", dir.path() / "link");
  const auto real = std::filesystem::canonical(dir.path() / "real");
  EXPECT_TRUE(Qemu().owns(process({"/q/qemu-x", "-name", "cocoon-1"}, real), "1", dir.path() / "link"));
}

TEST(QemuOwnsTest, LookAlikesAreNotOwned) {
  const Qemu qemu;
  const std::string name = fmt::format("cocoon-{}", kId);
  const system::Path run_dir = "/run/vm";
  const std::vector<system::ProcessInfo> others{
      process({"/usr/bin/vim", "-name", name}, run_dir),
      process({"/usr/bin/xqemu-system-x86_64", "-name", name}, run_dir),
      process({"/usr/bin/qemu-system-x86_64", "-name", name + "x"}, run_dir),
      process({"/usr/bin/qemu-system-x86_64", "-name", "x" + name}, run_dir),
      process({"/usr/bin/qemu-system-x86_64", "-name", name + ",process=x"}, run_dir),
      process({"/usr/bin/qemu-system-x86_64", "-name", std::string(kId)}, run_dir),
      process({"/usr/bin/qemu-system-x86_64", "-append", "-name", name}, run_dir),
      process({"/usr/bin/qemu-system-x86_64", "-name"}, run_dir),
      process({"/usr/bin/qemu-system-x86_64"}, run_dir),
      process({"-name", name}, run_dir),
      process({}, run_dir),
      process({"/usr/bin/qemu-system-x86_64", "-name", name}, "/run"),
      process({"/usr/bin/qemu-system-x86_64", "-name", name}, "/run/vm/sub"),
      process({"/usr/bin/qemu-system-x86_64", "-name", name}, "/run/vm2"),
      process({"/usr/bin/qemu-system-x86_64", "-name", name}, ""),
  };
  for (const auto& other : others) {
    EXPECT_FALSE(qemu.owns(other, kId, run_dir))
        << fmt::format("{}", fmt::join(other.argv, " ")) << " in " << other.cwd;
  }
}

// --- check ------------------------------------------------------------------------------------------------------

class QemuCheckTest : public ::testing::Test {
 protected:
  QemuCheckTest() {
    valid_.cpu = 1;
    valid_.mem_bytes = 64 << 20;
    valid_.kernel = dir_.file("kernel").string();
    valid_.initrd = dir_.file("initrd").string();
    valid_.disks = {{.path = dir_.file("disk").string()}};
  }

  // "" if it is accepted.
  std::string refusal(const std::function<void(VmConfig&)>& change) const {
    VmConfig config = valid_;
    change(config);
    try {
      Qemu().check(config);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "";
  }
  void expect_refusal(const std::function<void(VmConfig&)>& change, std::vector<std::string> words) const {
    const std::string message = refusal(change);
    EXPECT_NE(message, "") << "accepted, expected: " << fmt::format("{}", fmt::join(words, ", "));
    for (const std::string& word : words) EXPECT_NE(message.find(word), std::string::npos) << word << " in " << message;
  }

  TempDir dir_;
  VmConfig valid_;
};

TEST_F(QemuCheckTest, AcceptsWhatIsAllowed) {
  EXPECT_EQ(refusal([](VmConfig&) {}), "");
  EXPECT_EQ(refusal([](VmConfig& c) { c.machine = "microvm", c.accelerator = "tcg", c.cpu = 255; }), "");
  EXPECT_EQ(refusal([](VmConfig& c) { c.machine = "q35", c.accelerator = "kvm"; }), "");
  EXPECT_EQ(refusal([](VmConfig& c) { c.machine = "q35", c.kernel = c.initrd = c.cmdline = ""; }), "");
  EXPECT_EQ(refusal([](VmConfig& c) { c.mem_bytes = 32 << 20; }), "");
  EXPECT_EQ(refusal([](VmConfig& c) { c.cmdline = std::string(1967, 'x'); }), "");
  EXPECT_EQ(refusal([](VmConfig& c) { c.disks[0].serial = "01234567890123456789"; }), "");
  // The VM's own disk is made later.
  EXPECT_EQ(refusal([](VmConfig& c) { c.disks[0] = {.path = "/nowhere/cow.raw", .role = "cow"}; }), "");
}

TEST_F(QemuCheckTest, RefusesUnknownMachinesAndAccelerators) {
  expect_refusal([](VmConfig& c) { c.machine = "pc"; }, {"machine", "'pc'", "microvm, q35"});
  expect_refusal([](VmConfig& c) { c.machine = "microvm,rtc=off"; }, {"machine", "microvm,rtc=off"});
  expect_refusal([](VmConfig& c) { c.accelerator = "hvf"; }, {"accelerator", "'hvf'", "kvm, tcg"});
}

TEST_F(QemuCheckTest, RefusesCpuAndMemoryOutOfRange) {
  for (const std::int64_t cpu : {0, -1, 256}) {
    expect_refusal([&](VmConfig& c) { c.cpu = cpu; }, {"cpu", std::to_string(cpu), "1 to 255"});
  }
  for (const std::int64_t bytes : {std::int64_t{0}, std::int64_t{-1} << 20, std::int64_t{31} << 20,
                                   (std::int64_t{64} << 20) + 1, (std::int64_t{64} << 20) + 4096}) {
    expect_refusal([&](VmConfig& c) { c.mem_bytes = bytes; },
                   {"memory", std::to_string(bytes), "whole MiB, at least 32"});
  }
}

TEST_F(QemuCheckTest, RefusesKernelsThatCannotBeRead) {
  EXPECT_EQ(refusal([](VmConfig& c) { c.kernel = c.initrd = c.cmdline = ""; }), "") << "only to start it takes one";
  expect_refusal([](VmConfig& c) { c.kernel = "relative"; }, {"kernel", "'relative'", "absolute"});
  expect_refusal([](VmConfig& c) { c.kernel = "/nowhere/k"; }, {"kernel", "'/nowhere/k'", "No such file"});
  expect_refusal([&](VmConfig& c) { c.kernel = dir_.path().string(); }, {"kernel", "not a regular file"});
  expect_refusal([](VmConfig& c) { c.initrd = "/nowhere/i"; }, {"initrd", "'/nowhere/i'", "No such file"});
  expect_refusal([](VmConfig& c) { c.kernel += '\0'; }, {"kernel", "NUL"});
  expect_refusal([](VmConfig& c) { c.cmdline += '\0'; }, {"cmdline", "NUL"});
  expect_refusal([](VmConfig& c) { c.cmdline = std::string(1968, 'x'); }, {"cmdline", "1968", "1967"});
  expect_refusal([](VmConfig& c) { c.machine = "q35", c.kernel = ""; }, {"initrd", "without a kernel"});
  expect_refusal([](VmConfig& c) { c.machine = "q35", c.kernel = c.initrd = "", c.cmdline = "x"; },
                 {"cmdline", "'x'", "without a kernel"});
}

TEST_F(QemuCheckTest, RefusesAFifoAsKernelWithoutWaitingForItsWriter) {
  const auto fifo = dir_.path() / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  expect_refusal([&](VmConfig& c) { c.kernel = fifo.string(); }, {"kernel", "not a regular file"});
}

TEST_F(QemuCheckTest, RefusesUnreadableKernel) {
  if (::geteuid() == 0) GTEST_SKIP() << "root reads every file";
  std::filesystem::permissions(valid_.kernel, std::filesystem::perms::none);
  expect_refusal([](VmConfig&) {}, {"kernel", "Permission denied"});
}

TEST_F(QemuCheckTest, RefusesDisksThatCannotBe) {
  expect_refusal([](VmConfig& c) { c.disks[0].path = "/nowhere/d"; }, {"disk 0", "'/nowhere/d'", "No such file"});
  expect_refusal([](VmConfig& c) { c.disks[0].path = "d"; }, {"disk 0", "'d'", "absolute"});
  expect_refusal([](VmConfig& c) { c.disks[0] = {.path = "d", .role = "cow"}; }, {"disk 0", "absolute"});
  expect_refusal([](VmConfig& c) { c.disks[0].format = "vmdk"; }, {"disk 0 format", "'vmdk'", "raw, qcow2"});
  expect_refusal([](VmConfig& c) { c.disks[0].serial = std::string(21, 's'); }, {"disk 0 serial", "21 bytes", "20"});
  expect_refusal([&](VmConfig& c) { c.disks[0].path = dir_.path().string(), c.disks[0].readonly = true; },
                 {"disk 0", "not a regular file or block device"});
  expect_refusal([](VmConfig& c) { c.disks.push_back(c.disks[0]); }, {"disk 1", "another disk's too"});
  expect_refusal(
      [&](VmConfig& c) {
        c.disks[0].serial = "s";
        c.disks.push_back({.path = dir_.file("other").string(), .serial = "s"});
      },
      {"disk 1 serial", "'s'", "another disk's too"});
  expect_refusal(
      [&](VmConfig& c) {
        for (int i = 0; i < 20; ++i) c.disks.push_back({.path = dir_.file(fmt::format("d{}", i)).string()});
      },
      {"disks: 21", "20"});
}

TEST(DriverRegistryTest, KnowsThreeAndNamesTheKnownOnes) {
  EXPECT_EQ(hypervisors(), (std::vector<std::string_view>{"qemu", "cloud-hypervisor", "firecracker"}));
  for (const auto name : hypervisors()) EXPECT_EQ(make_driver(name)->hypervisor(), name);
  try {
    make_driver("xen");
    FAIL() << "accepted";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("'xen'"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("qemu"), std::string::npos);
  }
}

}  // namespace
}  // namespace cocoon::vmm
