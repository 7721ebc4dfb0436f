#!/usr/bin/env bash
# setup.sh: installs what the tests and the quickstart need on Debian 12 or later, from Debian's own packages.
#
# It is safe to run it again: it queries dpkg first and changes nothing if no package is missing (about 0.1 s). It unpacks
# one more package to target/resolved.
# It needs root only if a package is missing. Install Rust (cargo) yourself, because that of Debian 12 is too old.
set -euo pipefail

# program or file needed        package it comes from
packages=(
  bash-static                 # a shell without libraries, for the fixture guest
  attr                        # setfattr: images with extended attributes
  btrfs-progs                 # mkfs.btrfs: volumes
  busybox-static              # sandbox shell of the fixtures' Nix builds; the fixture guest's user land
  ca-certificates
  corosync                    # tests/cluster
  cpio                        # the fixture guest's initrd
  cryptsetup-bin              # veritysetup: sealed images
  curl                        # talks to the forwarded port of a booted guest
  dosfstools                  # mkfs.vfat: volumes
  e2fsprogs                   # mkfs.ext4, debugfs: volumes
  erofs-utils                 # mkfs.erofs: the peer of microvm.nix
  file
  g++                         # libFuzzer, for fuzz/run.sh
  gcc                         # links Rust; builds the launcher's probe guest
  iproute2                    # taps and network namespaces in the launcher's tests
  iputils-ping
  jq                          # reads reports
  kmod                        # depmod for the fixture guest
  libc6-dev
  libxml2-utils               # xmllint: the resource agent's description, and ocf-tester
  mount
  nftables                    # the firewall of a host with networks
  nix-bin                     # makes the fixture closures: real Nix builds, a real Nix database
  openssh-client              # tests/cluster
  openssh-server              # tests/cluster, tests/nix/deploy.sh
  pacemaker                   # tests/cluster
  pacemaker-cli-utils         # crm_verify and crm_simulate: the cluster's configuration
  patchelf
  pkg-config
  procps                      # ps: whose processes machines are
  python3                     # fixtures/closure/package-graph.py
  qemu-system-x86             # boots the image
  qemu-utils
  resource-agents             # ocf-tester
  shellcheck                  # scripts/test.sh
  squashfs-tools              # unsquashfs: the differential tests
  squashfs-tools-ng           # gensquashfs: the peer of microvm.nix
  strace                      # kills commands at a system call
  systemd                     # systemd-analyze: the host module's units
  systemd-container           # systemd-nspawn: the same units under a real systemd
  util-linux
  xfsprogs                    # mkfs.xfs: volumes
  xz-utils                    # unpacks the Debian kernel
  zstd
)
minimum_rust=1.90

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit 1; }

command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
  die "this is not Debian: apt-get or dpkg-query is missing" "install by hand: ${packages[*]}"

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || die "packages are missing: ${missing[*]}" "run as root: apt-get install ${missing[*]}"
  say "installing ${#missing[@]} Debian packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  options=(-q -y -o DPkg::Lock::Timeout=600 -o APT::Install-Recommends=false -o Dpkg::Use-Pty=0)
  apt-get "${options[@]}" update >&2
  # Corosync, Pacemaker and sshd must not start: the tests run them in namespaces. invoke-rc.d(8) asks this program.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    install -m 755 /dev/stdin /usr/sbin/policy-rc.d <<<$'#!/bin/sh\nexit 101'
  fi
  apt-get "${options[@]}" install "${missing[@]}" >&2
else
  say "all ${#packages[@]} Debian packages are installed"
fi

# Unpacked and not installed, because its package replaces /etc/resolv.conf. tests/nix/network.sh runs it.
project=$(dirname "$(realpath "$0")")/..
resolved=$project/target/resolved
# The version of systemd, or another update of the same release.
download_resolved() {
  apt-get -q download "systemd-resolved=$(dpkg-query -W -f '${Version}' systemd)" >&2 || apt-get -q download systemd-resolved >&2
}
if [ ! -x "$resolved/lib/systemd/systemd-resolved" ]; then
  scratch=$(mktemp -d)
  # The lists of packages may be missing or old.
  if (cd "$scratch" && { download_resolved || { apt-get -q update >&2 && download_resolved; }; } && dpkg -x ./*.deb unpacked); then
    # The owner of the checkout builds there.
    [ -e "$project/target" ] || { mkdir "$project/target" && chown --reference="$project" "$project/target"; }
    rm -rf "$resolved"
    mv "$scratch/unpacked" "$resolved"
  else
    say "systemd-resolved cannot be downloaded; one test of the networks cannot run"
  fi
  rm -rf "$scratch"
fi

command -v cargo >/dev/null ||
  die "cargo is missing" "install Rust $minimum_rust or later; Debian 12's own is too old"
rust=$(rustc --version | cut -d ' ' -f 2)
[ "$(printf '%s\n%s\n' "$minimum_rust" "$rust" | sort -V | head -n 1)" = "$minimum_rust" ] ||
  die "rustc $rust is too old: this workspace needs $minimum_rust or later" "rustup update stable"
say "rustc $rust"
