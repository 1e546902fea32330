// A guest of a few KB that Firecracker and Cloud Hypervisor boot in milliseconds, also where KVM is itself emulated and
// no Linux lives. It speaks as the guest of `cocoon guest build` does: COCOON-GUEST-READY on the serial console, then
// one line for each that it hears:
//
//   echo TEXT       ECHO TEXT
//   uptime          UPTIME <seconds since boot, of which a snapshot's guest goes on>
//   ticks on|off    TICKS on|off, then "tick N" each second
//   poweroff        POWEROFF, and the machine is off
//   crash           CRASH, and the machine resets
//   anything else   UNKNOWN <line>
//
// It powers off (POWER-BUTTON) at Firecracker's Ctrl-Alt-Del and Cloud Hypervisor's power button. It has no drivers.
//
// Source   PVH: xen/include/public/arch-x86/hvm/start_info.h. Tables and the sleep register: ACPI 6.5, 5.2 and 4.8.3.7.
//          Local APIC: Intel SDM 3, chapter 11.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
  kTimerHz = 50,
  kTimerVector = 0x40,
  kApicHz = 1000000000,  // KVM's, whatever the processor's is
  kApicDivider = 16,
  kSerial = 0x3f8,
  kSerialStatus = kSerial + 5,
  kSerialHasInput = 0x01,
  kSerialTakesOutput = 0x20,
  kKeyboard = 0x60,
  kKeyboardStatus = 0x64,
  kKeyboardReset = 0xfe,
  kSleepControl = 0x600,  // Cloud Hypervisor's
  kSleepNow = 0x20 | 5 << 2,
  kPowerButton = 0x08,  // in the event register of Cloud Hypervisor's generic event device
  kLargePageBits = 21,
};

static const uintptr_t kApic = 0xfee00000;
static const uintptr_t kWindow = 0xd0000000;  // where that register is mapped: it may lie above 4 GiB

// start.S
extern uint64_t page_directories[];
extern void wait_for_timer(void);
extern void on_timer(void);
extern void flush_tlb(void);

struct StartInfo {
  uint32_t magic, version, flags, nr_modules;
  uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr;
};

struct Gate {
  uint16_t offset_low, selector, flags, offset_middle;
  uint32_t offset_high, reserved;
};

static struct Gate gates[kTimerVector + 1];  // an exception finds none, and triple faults
static volatile const uint8_t* events;       // 0: this VMM has no power button
static uint64_t timer_interrupts;
static uint64_t ticks;
static bool is_ticking;
static char line[256];
static size_t line_length;

static void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "d"(port)); }

static uint8_t in8(uint16_t port) {
  uint8_t value = 0;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "d"(port));
  return value;
}

// Virtual is physical here, but for the window.
static void* memory(uint64_t address) { return (void*)(uintptr_t)address; }  // NOLINT(performance-no-int-to-ptr)

// What follows the prefix in `bytes`; NULL: they begin otherwise.
static const void* after(const void* bytes, const char* prefix) {
  const char* at = bytes;
  for (; *prefix != '\0'; ++prefix, ++at) {
    if (*at != *prefix) return NULL;
  }
  return at;
}

static void put_char(char c) {
  while ((in8(kSerialStatus) & kSerialTakesOutput) == 0) {
  }
  out8(kSerial, (uint8_t)c);
}

static void put(const char* text) {
  for (; *text != '\0'; ++text) put_char(*text);
}

static void put_number(uint64_t value, unsigned least_digits) {
  if (value >= 10 || least_digits > 1) put_number(value / 10, least_digits > 1 ? least_digits - 1 : 1);
  put_char((char)('0' + value % 10));
}

static void reset(void) {
  out8(kKeyboardStatus, kKeyboardReset);
  for (;;) __asm__ volatile("hlt");
}

// Firecracker has neither events nor a sleep register, and ends when its guest resets.
static void power_off(void) {
  if (events != NULL) out8(kSleepControl, kSleepNow);
  reset();
}

// ---- the power button

// Tables lie where they like, so nothing may be assumed of the alignment.
static uint64_t number_at(const uint8_t* bytes, size_t size) {
  uint64_t value = 0;
  while (size > 0) value = value << 8 | bytes[--size];
  return value;
}

static const uint8_t* pointer_at(const uint8_t* bytes) { return memory(number_at(bytes, 8)); }

static void map_events(uint64_t address) {
  const uint64_t page = address >> kLargePageBits;
  page_directories[kWindow >> kLargePageBits] = page << kLargePageBits | 0x83;
  flush_tlb();
  events = memory(kWindow + (address - (page << kLargePageBits)));
}

// The event register is the operation region GDST of the DSDT: "GDST", SystemMemory (0), a quadword (0x0e).
static void find_power_button(const struct StartInfo* start) {
  enum { kLengthAt = 4, kHeader = 36, kXsdtAt = 24, kDsdtAt = 140, kRegionAt = 6 };
  if (start->rsdp_paddr == 0) return;
  const uint8_t* rsdp = memory(start->rsdp_paddr);
  const uint8_t* xsdt = pointer_at(rsdp + kXsdtAt);
  const uint8_t* xsdt_end = xsdt + number_at(xsdt + kLengthAt, 4);
  for (const uint8_t* entry = xsdt + kHeader; entry + 8 <= xsdt_end; entry += 8) {
    const uint8_t* table = pointer_at(entry);
    if (after(table, "FACP") == NULL) continue;
    const uint8_t* dsdt = pointer_at(table + kDsdtAt);
    const uint8_t* last = dsdt + number_at(dsdt + kLengthAt, 4) - kRegionAt - 8;
    for (const uint8_t* at = dsdt + kHeader; at <= last; ++at) {
      if (after(at, "GDST") != NULL && at[4] == 0 && at[5] == 0x0e) map_events(number_at(at + kRegionAt, 8));
    }
  }
}

static bool is_ctrl_alt_del_pressed(void) {
  enum { kMostAtOnce = 16 };  // where there is no keyboard its status may read as all ones, for ever
  static uint32_t keys;
  for (int i = 0; i < kMostAtOnce && (in8(kKeyboardStatus) & 1) != 0; ++i) {
    keys = keys << 8 | in8(kKeyboard);
    if (keys == 0x1411e071) return true;  // Ctrl, Alt, Del in scan code set 2
  }
  return false;
}

// ---- lines

static bool is(const char* text, const char* other) {
  const char* rest = after(text, other);
  return rest != NULL && *rest == '\0';
}

static void answer(void) {
  const char* text = after(line, "echo ");
  if (text != NULL) {
    put("ECHO ");
    put(text);
  } else if (is(line, "uptime")) {
    put("UPTIME ");
    put_number(timer_interrupts / kTimerHz, 1);
    put_char('.');
    put_number(timer_interrupts % kTimerHz * (100 / kTimerHz), 2);
  } else if (is(line, "ticks on") || is(line, "ticks off")) {
    is_ticking = is(line, "ticks on");
    put(is_ticking ? "TICKS on" : "TICKS off");
  } else if (is(line, "poweroff")) {
    put("POWEROFF\n");
    power_off();
  } else if (is(line, "crash")) {
    put("CRASH\n");
    reset();
  } else {
    put("UNKNOWN ");
    put(line);
  }
  put_char('\n');
}

// Echoes what it hears, as a terminal does. What is longer than a line can be is cut off.
static void listen(void) {
  while ((in8(kSerialStatus) & kSerialHasInput) != 0) {
    char c = (char)in8(kSerial);
    if (c == '\r') c = '\n';
    put_char(c);
    if (c != '\n') {
      if (line_length < sizeof line - 1) line[line_length++] = c;
      continue;
    }
    line[line_length] = '\0';
    if (line_length > 0) answer();
    line_length = 0;
  }
}

// ---- time

static void write_apic(size_t reg, uint32_t value) { *(volatile uint32_t*)memory(kApic + reg) = value; }

static void start_timer(void) {
  const uintptr_t handler = (uintptr_t)on_timer;
  gates[kTimerVector] = (struct Gate){.offset_low = (uint16_t)handler,
                                      .selector = 8,
                                      .flags = 0x8e00,  // present, interrupt gate
                                      .offset_middle = (uint16_t)(handler >> 16)};
  const struct __attribute__((packed)) {
    uint16_t limit;
    uint64_t base;
  } table = {sizeof gates - 1, (uintptr_t)gates};
  __asm__ volatile("lidt %0" : : "m"(table));
  write_apic(0x350, 0x10000);                 // LINT0, the old interrupt controller: masked
  write_apic(0x0f0, 0x1ff);                   // on; the spurious vector
  write_apic(0x080, 0);                       // every priority
  write_apic(0x3e0, 3);                       // the clock's 16th
  write_apic(0x320, 0x20000 | kTimerVector);  // periodic
  write_apic(0x380, kApicHz / kApicDivider / kTimerHz);
}

void tiny_guest(const struct StartInfo* start);

void tiny_guest(const struct StartInfo* start) {
  find_power_button(start);
  put("COCOON-GUEST-READY tiny\n");
  start_timer();
  for (;;) {
    wait_for_timer();
    write_apic(0x0b0, 0);  // it was heard
    ++timer_interrupts;
    if (is_ctrl_alt_del_pressed() || (events != NULL && (*events & kPowerButton) != 0)) {
      put("POWER-BUTTON\n");
      power_off();
    }
    listen();
    if (is_ticking && timer_interrupts % kTimerHz == 0) {
      put("tick ");
      put_number(++ticks, 1);
      put_char('\n');
    }
  }
}
