#!/bin/sh
# Init of cocoon's demo and test guest: process 1, on busybox alone.
#
# It says COCOON-GUEST-READY <kernel version> on the serial console, powers off (POWER-BUTTON) when the ACPI power button
# is pressed, and answers each line it reads from the console with one line:
#
#   echo TEXT            ECHO TEXT
#   uptime               UPTIME <seconds since boot>
#   disks                DISKS vda=<bytes>,<ro|rw>,<serial> vdb=…
#   ticks on|off         TICKS on|off, then "tick N" each second; N goes on where it was
#   ignore-power-button  IGNORE-POWER-BUTTON on|off (a toggle)
#   poweroff             POWEROFF, and the machine is off
#   crash                CRASH, and the kernel panics, which resets the machine
#   anything else        UNKNOWN <line>

export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1

# In the order of their dependencies; which of them do something depends on the machine.
while read -r module; do
  insmod "/lib/modules/$module" || echo "COCOON-GUEST-WARNING insmod $module failed"
done </etc/modules

# A panic resets at once, whatever the command line said; the VMM takes that as the end.
echo -1 >/proc/sys/kernel/panic

# acpid sees the power button as an input event on every machine, and runs this file for it.
mkdir -p /etc/acpi/PWRF
cat >/etc/acpi/PWRF/00000080 <<'END'
#!/bin/sh
if [ -e /run/ignore-power-button ]; then
  echo 'POWER-BUTTON ignored' >/dev/console
else
  echo 'POWER-BUTTON' >/dev/console
  stty echo </dev/console
  poweroff -f
fi
END
chmod 755 /etc/acpi/PWRF/00000080
acpid -l /dev/null

# Returns when the serial line has sent what was written: stty sets the terminal after draining it (TCSADRAIN).
drain() {
  stty echo </dev/console
}

answer_disks() {
  line=DISKS
  for block in /sys/block/vd*; do
    [ -e "$block/size" ] || continue
    mode=rw
    [ "$(cat "$block/ro")" = 0 ] || mode=ro
    line="$line ${block##*/}=$(($(cat "$block/size") * 512)),$mode,$(cat "$block/serial")"
  done
  echo "$line"
}

# The counter lives in this background shell's memory alone, so that a restored snapshot goes on counting.
tick() {
  n=0
  while sleep 1; do
    [ -e /run/ticks ] || continue
    n=$((n + 1))
    echo "tick $n"
  done
}
tick &

echo "COCOON-GUEST-READY $(uname -r)"
while :; do
  # The end of the input is a hang-up of the console, not the end of the machine.
  IFS= read -r line || { sleep 1; continue; }
  case $line in
    '') ;;
    echo\ *) echo "ECHO ${line#echo }" ;;
    uptime) read -r up _ </proc/uptime && echo "UPTIME $up" ;;
    disks) answer_disks ;;
    'ticks on') : >/run/ticks && echo 'TICKS on' ;;
    'ticks off') rm -f /run/ticks && echo 'TICKS off' ;;
    ignore-power-button)
      if [ -e /run/ignore-power-button ]; then
        rm /run/ignore-power-button
        echo 'IGNORE-POWER-BUTTON off'
      else
        : >/run/ignore-power-button
        echo 'IGNORE-POWER-BUTTON on'
      fi
      ;;
    poweroff)
      echo POWEROFF
      drain
      sync
      poweroff -f
      ;;
    crash)
      echo CRASH
      drain
      echo c >/proc/sysrq-trigger
      ;;
    *) echo "UNKNOWN $line" ;;
  esac
done
