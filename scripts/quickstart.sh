#!/usr/bin/env bash
# quickstart.sh [--system | --test]
#
# Goes from an empty checkout to a booted microVM, on Debian 12 or later as root. It makes a real Nix closure, builds
# and verifies its image, boots it with qemu and a writable overlay over the store, and shows the guest's report. Then
# it updates one package, builds the image again, which compresses only what changed, and boots it. qemu emulates, so
# KVM is not needed; MICROVM_QUICKSTART_ACCEL=kvm uses it.
#   --system   a closure of about 180 store paths and 480 MB instead of 21 paths and 70 MB
#   --test     for scripts/test.sh: uses a debug build and a temporary cache and images, and checks the output instead of showing it
set -euo pipefail

case ${1:-} in
'') size=small mode=show ;;
--system) size=system mode=show ;;
--test) size=small mode=test ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

cd "$(dirname "$(realpath "$0")")/.."
root=$PWD
accel=${MICROVM_QUICKSTART_ACCEL:-tcg}
export MICROVM_FIXTURES=${MICROVM_FIXTURES:-$root/target/fixtures}
programs=${CARGO_TARGET_DIR:-$root/target}

title() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }
[ -t 2 ] && [ -z "${NO_COLOR:-}" ] || title() { printf '\n%s\n' "$*" >&2; }
show() { printf '  $ %s\n' "${*//"$root/"/}" >&2; "$@"; }
die() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit 1; }

title '1. What is needed'
scripts/setup.sh
if [ "$mode" = test ]; then
  cargo build --locked --quiet -p imagebuilder -p launcher
  export PATH=$programs/debug:$PATH
  output=$(mktemp -d)
  trap 'rm -rf "$output"' EXIT
  export MICROVM_IMAGE_CACHE=$output/cache
else
  cargo build --locked --release -p imagebuilder -p launcher
  export PATH=$programs/release:$PATH
  output=$root/target/quickstart
  mkdir -p "$output"
fi

title "2. A closure, made by real Nix builds out of Debian's packages"
fixtures/closure/build.sh "$size"
closure=$MICROVM_FIXTURES/$size
store_paths=$(wc -l <"$closure/closure-info/store-paths")
source=(--store-dir "$MICROVM_FIXTURES/store/nix/store")

title '3. Its image'
image=$output/$size.squashfs
show microvm-image build --closure-info "$closure/closure-info" "${source[@]}" --output "$image"
show microvm-image verify "$image" --closure-info "$closure/closure-info" "${source[@]}"

title '4. A machine that boots from it'
rm -f "$output/overlay.img"
write_spec() { # TOPLEVEL IMAGE: writes the spec as the NixOS module would, with the fixture guest's actions as kernel parameters
  jq --null-input --arg kernel "$closure/vmlinux" --arg initrd "$closure/initrd" --arg init "$1/init" --arg image "$2" '{
    version: 1, name: "quickstart", hypervisor: "qemu", $kernel, $initrd,
    storeDisk: { $image, serial: "store" },
    volumes: [{ image: "overlay.img", size: 64, mountPoint: "/nix/.rw-store" }],
    writableStoreOverlay: "/nix/.rw-store",
    kernelParams: [
      "quiet", "init=\($init)", "guest.actions=report,persist",
      "systemd.mount-extra=/dev/vda:/nix/.ro-store:squashfs:ro",
      "systemd.mount-extra=/dev/vdb:/nix/.rw-store:ext4:rw",
      "systemd.mount-extra=overlay:/nix/store:overlay:lowerdir=/nix/.ro-store,upperdir=/nix/.rw-store/store,workdir=/nix/.rw-store/work"
    ]
  }' >"$output/machine.json"
}
boot() { # runs the machine and writes the guest's report to $output/guest
  show timeout 300 microvm run --accel "$accel" --state-dir "$output" "$output/machine.json" </dev/null >"$output/console" ||
    { cat "$output/console" >&2; die "the machine did not end well" "its console is above"; }
  grep --text --only-matching 'guest: .*' "$output/console" | tr -d '\r' | tee "$output/guest"
}
expect() { # LINE: fails unless the guest has reported it
  grep -q "^guest: $1" "$output/guest" || die "the guest did not report: $1" "its console: $output/console"
}
write_spec "$(cat "$closure/toplevel")" "$image"
show microvm check "$output/machine.json"
show microvm explain --accel "$accel" --state-dir "$output" "$output/machine.json" | sed -n '/^Disks/,/^Reachable/{/^Reachable/!p}'
title '5. What its guest sees'
boot
expect 'mount=/nix/.ro-store type=squashfs device=/dev/vda '
expect 'mount=/nix/store type=overlay '
expect "store_paths=$store_paths$"
expect 'store_writable=yes'
expect 'persisted=new'

title '6. The same image again, and after one package has changed'
before=$(sha256sum <"$image")
show microvm-image build --closure-info "$closure/closure-info" "${source[@]}" --output "$image"
[ "$(sha256sum <"$image")" = "$before" ] || die "building the same closure again gave another image"
changed=$output/$size-changed.squashfs
show microvm-image build --closure-info "$closure/closure-info-changed" "${source[@]}" --output "$changed"

title '7. The machine after the update: another store, the same volume'
write_spec "$(cat "$closure/toplevel-changed")" "$changed"
boot
expect "system=$(cat "$closure/toplevel-changed")$"
expect 'persisted=found'

if [ "$mode" = test ]; then
  microvm-image build --closure-info "$closure/closure-info" "${source[@]}" --output "$output/cold.squashfs" --no-cache --quiet >/dev/null
  cmp "$image" "$output/cold.squashfs" || die "the image from the cache differs from one without cache"
fi
title "Done: a machine of $store_paths store paths, image $image, spec $output/machine.json"
[ "$mode" = test ] || printf 'next: docs/getting-started.md, "By hand"\n' >&2
