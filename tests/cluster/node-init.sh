#!/usr/bin/env bash
# node-init.sh NUMBER: process 1 of a node, in its own mount, process, host name and network namespaces. Builds the node's
# root directory, an overlay of the host's, and starts in it what systemd starts on a real host: sshd, Corosync and Pacemaker.
set -eu
number=$1
node=$RIG/nodes/$number
root=$node/root

mount -t overlay overlay -o "lowerdir=/,upperdir=$node/upper,workdir=$node/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir -p "$root/dev/net" "$root/dev/shm" "$root/dev/pts"
for device in null zero full random urandom tty net/tun; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mkdir -p "$root/shared" "$root/power" "$root/rig" "$root/nix" "$root/var/lib/microvms"
mount --bind "$RIG/shared" "$root/shared"
mount --bind "$RIG/power" "$root/power"
mount --bind "$RIG/bin" "$root/rig"
# Its own Nix store, which is empty at first, and which a power cut does not delete.
mkdir -p "$node/nix"
mount --bind "$node/nix" "$root/nix"

# The cluster knows the node by its first label.
hostname "n$number.example.org"
ip link set lo up
ip link add br0 type bridge stp_state 0 forward_delay 0
ip link set eth0 master br0 up
ip link set br0 address "02:77:00:00:00:1$number"
ip addr add "10.77.0.1$number/24" dev br0
ip link set br0 up

mkdir -p "$root"/run/{lock,resource-agents,crm} "$root"/var/{lib,log}/corosync "$root"/var/log/pacemaker \
  "$root"/etc/{corosync,qemu} "$root"/usr/lib/ocf/resource.d/microvm
chown hacluster:haclient "$root/run/crm"
cp "$RIG/corosync.conf" "$RIG/authkey" "$root/etc/corosync/"
chmod 400 "$root/etc/corosync/authkey"
echo 'allow br0' >"$root/etc/qemu/bridge.conf"
printf '127.0.0.1 localhost\n10.77.0.11 n1\n10.77.0.12 n2\n10.77.0.13 n3\n' >"$root/etc/hosts"
install -D -m 644 "$RIG/nix.conf" "$root/etc/nix/nix.conf"
mkdir -p "$root/root/.ssh" "$root/run/sshd"
cp "$RIG"/ssh/* "$root/root/.ssh/"
chmod 700 "$root/root/.ssh"
chmod 600 "$root"/root/.ssh/*
ln -sf /rig/microvm "$root/usr/lib/ocf/resource.d/microvm/MicroVM"
ln -sf /rig/fence_rig "$root/usr/sbin/fence_rig"

# Nix returns to the root of its mount namespace before it runs ssh, so that must be the node's.
mkdir "$root/run/host"
cd "$root"
pivot_root . run/host
exec chroot . /bin/bash -c '
  umount -l /run/host
  export PATH=/rig:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
  /usr/sbin/sshd -f /root/.ssh/sshd_config
  corosync -f &
  until corosync-cfgtool -s >/dev/null 2>&1; do sleep 0.1; done
  export PCMK_logfile=/var/log/pacemaker/pacemaker.log PCMK_logpriority=notice PCMK_logfacility=none
  pacemakerd &
  # Process 1 collects the processes that lose their parents, until the power is cut.
  while :; do wait -n || sleep 1; done'
