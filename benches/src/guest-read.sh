#!/bin/sh
# shellcheck shell=dash
# First process of the guest of `benches guest-read`. Its initrd is that of the fixture (busybox, modules) with the static
# program `benches` added.
# Kernel parameters: read.rounds=N read.every=N read.disks=/dev/vda,/dev/vdb,...
export PATH=/bin
mkdir -p /proc /sys /dev /tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
modprobe -a virtio_pci virtio_mmio virtio_blk squashfs erofs
# shellcheck disable=SC2013 # word splitting is intended
for parameter in $(cat /proc/cmdline); do
  case $parameter in
  read.rounds=*) rounds=${parameter#*=} ;;
  read.every=*) every=${parameter#*=} ;;
  read.disks=*) disks=${parameter#*=} ;;
  esac
done
# shellcheck disable=SC2046,SC2086 # word splitting is intended
if /benches read --on-disk --rounds "$rounds" --every "$every" --json /tmp/readings $(echo "$disks" | tr ',' ' ') >/dev/null; then
  echo
  echo "guest-read-begin"
  cat /tmp/readings
  echo
  echo "guest-read-end"
else
  echo "guest-read-failed"
fi
poweroff -f
