#!/bin/sh
# shellcheck shell=dash
# First process of a guest of `benches memory`: mounts the store, reads the beginning of it, and waits. Its initrd is that of
# the fixture (busybox, modules).
# Kernel parameters: memory.device=DEVICE memory.type=TYPE memory.options=OPTIONS memory.bytes=N
export PATH=/bin
mkdir -p /proc /sys /dev /store
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
modprobe -a virtio_pci virtio_mmio virtio_blk virtio_pmem nd_pmem squashfs erofs 2>/dev/null
# shellcheck disable=SC2013 # word splitting is intended
for parameter in $(cat /proc/cmdline); do
  case $parameter in
  memory.device=*) device=${parameter#*=} ;;
  memory.type=*) type=${parameter#*=} ;;
  memory.options=*) options=${parameter#*=} ;;
  memory.bytes=*) bytes=${parameter#*=} ;;
  esac
done
until [ -e "$device" ]; do sleep 0.1; done # it appears a moment after its driver
mount -t "$type" -o "$options" "$device" /store || poweroff -f
echo "guest: bytes=$(find /store -type f -exec cat {} + | head -c "$bytes" | wc -c)"
echo "guest: waiting"
while :; do sleep 3600; done
