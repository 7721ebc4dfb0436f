#!/usr/bin/env bash
# credentials.sh FIXTURE PROGRAMS: tests that a credential gets from the launcher's initrd to where the guest's systemd
# looks for it. A fake kvmtool saves the initrd that the launcher made. Linux boots with it under qemu and runs the
# modules' part of stage 1. tests/nix/run.sh runs this script.
#   FIXTURE    a directory with kernel and initrd, such as target/fixtures/small
#   PROGRAMS   a directory with bin/microvm
set -euo pipefail

die() { printf 'error: %s\n' "$1" >&2; exit 1; }
[ $# -eq 2 ] || { printf 'error: usage: %s FIXTURE PROGRAMS\n' "$0" >&2; exit 2; }
if [ ! -e /dev/kvm ]; then
  printf 'nix: skipped: the launcher puts no initrd together for a hypervisor that needs KVM, and there is none\n' >&2
  exit
fi
fixture=$(realpath "$1") programs=$(realpath "$2")
stage_1=$(realpath "$(dirname "$0")/../../nixos-modules/microvm/hand-over-credentials.sh")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

printf 'of the guest' >token
cat >lkvm <<'LKVM'
#!/bin/sh
while [ $# -gt 0 ]; do
  [ "$1" != -i ] || cp "$2" assembled
  shift
done
LKVM
chmod +x lkvm
jq -n --arg here "$scratch" --arg fixture "$fixture" '{
  version: 1, name: "guest", hypervisor: "kvmtool", kernel: "\($fixture)/kernel", initrd: "\($fixture)/initrd",
  credentialFiles: {token: "\($here)/token"}, kvmtool: {program: "\($here)/lkvm"}
}' >machine.json
MICROVM_RUNTIME_DIR=$scratch/run "$programs/bin/microvm" run machine.json >log 2>&1 || { cat log >&2; die "the launcher starts nothing"; }
[ -f assembled ] || die "the launcher did not put an initrd together"

# The last archive contains the test's stage 1, which replaces the fixture's.
mkdir -p test
cp "$stage_1" test/hand-over.sh
cat >test/init <<'INIT'
#!/bin/sh
export PATH=/bin
. /hand-over.sh
echo "guest: credential=$(cat /run/credentials/@initrd/token) mode=$(stat -c %a /run/credentials/@initrd/token)"
echo "guest: left=$(ls /microvm-credentials)"
poweroff -f
INIT
chmod +x test/init
(cd test && find . | cpio --quiet --create --format=newc --owner=0:0) >test.cpio
cat assembled test.cpio >initrd
timeout 100 qemu-system-x86_64 -machine q35,accel=tcg -m 256 -nodefaults -display none -serial stdio -no-reboot -kernel "$fixture/kernel" -initrd initrd \
  -append 'console=ttyS0 panic=-1 no_timer_check quiet' </dev/null 2>&1 | tr -d '\r' >console
for line in 'guest: credential=of the guest mode=400' 'guest: left='; do
  grep -qax "$line" console || { tail -n 20 console >&2; die "the guest did not say \`$line\`"; }
done
printf 'nix: a credential of the initrd reaches where systemd looks for it\n' >&2
