#!/bin/sh
# shellcheck shell=dash
# The first program of the rig's guest, run by busybox. It counts in memory, writes each number to a log on its volume,
# syncs it, and only then serves it as http://10.77.0.50/state: `BOOT NUMBER`. http://10.77.0.50/log is the log.
export PATH=/bin
mkdir -p /proc /sys /dev /data /www
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
modprobe -a virtio_pci virtio_mmio 2>/dev/null
cat /sys/bus/virtio/devices/*/modalias /sys/bus/acpi/devices/*/modalias 2>/dev/null | sort -u | xargs modprobe -a 2>/dev/null
modprobe -a button evdev 2>/dev/null
until [ -b /dev/vda ]; do sleep 0.05; done
# A machine of the NixOS module has a store disk too.
for disk in /dev/vd?; do
  mount -t ext4 "$disk" /data 2>/dev/null && break
done
[ -d /data/lost+found ] || exec poweroff -f

stop() {
  sync
  umount /data
  poweroff -f
}
# Ctrl-Alt-Del becomes SIGINT to this process, and so does any event of the power button.
echo 0 >/proc/sys/kernel/ctrl-alt-del
trap stop INT
for event in /dev/input/event*; do
  [ ! -e "$event" ] || (dd if="$event" bs=24 count=1 >/dev/null 2>&1; kill -INT 1) &
done

boot=$(($(cat /data/boots 2>/dev/null || echo 0) + 1))
echo "$boot" >/data/boots
echo "$boot 0" >>/data/log
sync
ip link set lo up
ip addr add 10.77.0.50/24 dev eth0
ip link set eth0 up
ln -s /data/log /www/log
httpd -p 80 -h /www
echo "rig: boot $boot" >/dev/console
number=0
while :; do
  number=$((number + 1))
  echo "$boot $number" >>/data/log
  sync
  echo "$boot $number" >/www/state.new
  mv /www/state.new /www/state
  sleep 0.1
done
