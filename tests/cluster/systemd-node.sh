#!/usr/bin/env bash
# systemd-node.sh NUMBER NETWORK STORE HOST: boots a node of systemd.sh in a container, in its own mount namespace: an
# overlay of this host's root directory with the files in HOST, which systemd.nix has made, and STORE as its Nix store.
set -eu
number=$1 network=$2 store=$3 host=$4
node=$RIG/nodes/$number
root=$node/root

mount -t overlay overlay -o "lowerdir=/,upperdir=$node/upper,workdir=$node/work" "$root"

# Only once: a power cut does not delete what a node has written.
if [ ! -e "$root/etc/rig" ]; then
  system=$root/etc/systemd/system
  rm -rf "$system"
  mkdir -p "$system/multi-user.target.wants" "$root"/etc/{corosync,qemu,tmpfiles.d,sysusers.d} "$root"/var/{lib,log}/corosync \
    "$root/var/empty" "$root"/nix/{store,var/nix} "$root"/{shared,power,rig} "$root/root/.ssh" "$root/usr/lib/ocf/resource.d/microvm"
  cp -r "$host/units/." "$system/"
  chmod -R u+w "$system"
  # On NixOS, what the module sets is merged with the unit of NixOS' module. Here it is Debian's unit.
  mkdir "$system/pacemaker.service.d"
  mv "$system/pacemaker.service" "$system/pacemaker.service.d/cluster.conf"
  # The paths of packages are those of stand-ins.
  for unit in pacemaker microvm-cluster; do
    mkdir -p "$system/$unit.service.d"
    printf '[Service]\nEnvironment=PATH=/usr/sbin:/usr/bin:/sbin:/bin\n' >"$system/$unit.service.d/path.conf"
  done
  for unit in corosync pacemaker; do ln -s "/usr/lib/systemd/system/$unit.service" "$system/multi-user.target.wants/"; done
  for unit in microvm-cluster network-of-rig ssh-of-rig; do ln -s "../$unit.service" "$system/multi-user.target.wants/"; done
  for unit in console-getty getty@tty1 systemd-networkd systemd-resolved systemd-timesyncd; do ln -s /dev/null "$system/$unit.service"; done
  cat >"$system/network-of-rig.service" <<UNIT
[Unit]
DefaultDependencies=no
After=local-fs.target
Before=network.target network-online.target
[Service]
Type=oneshot
RemainAfterExit=true
ExecStart=/bin/bash -euc 'ip link set lo up; ip link add br0 type bridge stp_state 0 forward_delay 0; ip link set eth0 master br0 up; \\
  ip link set br0 address 02:77:00:00:00:1$number; ip addr add 10.77.0.1$number/24 dev br0; ip link set br0 up'
UNIT
  cat >"$system/ssh-of-rig.service" <<'UNIT'
[Unit]
After=network.target
[Service]
RuntimeDirectory=sshd
ExecStart=/usr/sbin/sshd -D -f /root/.ssh/sshd_config
UNIT
  # Debian's group has another name.
  sed 's/ hacluster pacemaker / hacluster haclient /' "$host/tmpfiles.conf" >"$root/etc/tmpfiles.d/microvm.conf"
  cat >"$root/etc/sysusers.d/microvm.conf" <<'SYSUSERS'
g kvm -
u microvm - "microVMs" /var/empty
m microvm kvm
u microvm-image-cache - "cache service of store disks" /var/empty
SYSUSERS
  cp "$host/corosync.conf" "$RIG/authkey" "$root/etc/corosync/"
  chmod 400 "$root/etc/corosync/authkey"
  cp "$host/MicroVM" "$root/usr/lib/ocf/resource.d/microvm/MicroVM"
  ln -sf /rig/fence_rig "$root/usr/sbin/fence_rig"
  echo 'allow br0' >"$root/etc/qemu/bridge.conf"
  printf '127.0.0.1 localhost\n10.77.0.11 n1\n10.77.0.12 n2\n10.77.0.13 n3\n' >"$root/etc/hosts"
  printf 'passwd: files\ngroup: files\nhosts: files\n' >"$root/etc/nsswitch.conf"
  printf '%032d\n' "$number" >"$root/etc/machine-id"
  cp "$RIG"/ssh/* "$root/root/.ssh/"
  chmod 700 "$root/root/.ssh"
  chmod 600 "$root"/root/.ssh/*
  echo "n$number" >"$root/etc/hostname"
  touch "$root/etc/rig"
fi

SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn --quiet --register=no --keep-unit --directory "$root" \
  --network-namespace-path="/run/netns/$network" --capability=all --kill-signal=SIGRTMIN+3 --console=read-only \
  --bind-ro="$store:/nix/store" --bind="$RIG/shared:/shared" --bind="$RIG/power:/power" --bind="$RIG/bin:/rig" \
  --boot systemd.show_status=error
