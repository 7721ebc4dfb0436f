#!/usr/bin/env bash
# quickstart.sh [--system | --test]
#
# From nothing to a booted microVM, on Debian 12 or later as root: makes a real Nix closure, builds its image, verifies it,
# boots it with qemu and shows what the guest saw; then builds the image again to show what the cache does.
#   --system   a closure of about 180 store paths and 480 MB instead of 21 paths and 70 MB
#   --test     for scripts/test.sh: a debug build, a cache and images of its own that go away, checks instead of a show
set -euo pipefail

case ${1:-} in
'') size=small mode=show ;;
--system) size=system mode=show ;;
--test) size=small mode=test ;;
*) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

cd "$(dirname "$(realpath "$0")")/.."
root=$PWD
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
boot() { # what the guest prints goes to $output/console
  local khz
  # the guest's clock is the host's counter; on a busy machine an emulated guest fails to calibrate it by itself
  khz=$(awk '/^cpu MHz/ { printf "%d", $4 * 1000; exit }' /proc/cpuinfo)
  timeout 300 qemu-system-x86_64 -machine q35,accel=tcg -m 512 -nodefaults -no-user-config -nographic -no-reboot \
    -serial stdio -kernel "$closure/vmlinux" -initrd "$closure/initrd" \
    -append "console=ttyS0 quiet panic=-1 tsc_early_khz=$khz init=$(cat "$closure/toplevel")/init guest.actions=report" \
    -drive "id=store,if=none,format=raw,read-only=on,file=${image//,/,,}" -device virtio-blk-pci,drive=store,serial=store \
    </dev/null >"$output/console" || { cat "$output/console" >&2; die "the guest did not end well" "its console is above"; }
  grep --text --only-matching 'guest: .*' "$output/console" | tr -d '\r' # after what the BIOS left on the line
}
boot | tee "$output/guest"
grep -q "^guest: store_paths=$store_paths$" "$output/guest" ||
  die "the guest did not see the $store_paths store paths of the closure" "its console: $output/console"
grep -q '^guest: mount=/nix/store type=squashfs device=/dev/vda ' "$output/guest" ||
  die "the guest's /nix/store is not the image on /dev/vda" "its console: $output/console"

title '5. The same image again, and after one package of the closure has changed'
before=$(sha256sum <"$image")
show microvm-image build --closure-info "$closure/closure-info" "${source[@]}" --output "$image"
[ "$(sha256sum <"$image")" = "$before" ] || die "building the same closure again gave another image"
show microvm-image build --closure-info "$closure/closure-info-changed" "${source[@]}" --output "$output/$size-changed.squashfs"

if [ "$mode" = test ]; then
  microvm-image build --closure-info "$closure/closure-info" "${source[@]}" --output "$output/cold.squashfs" --no-cache --quiet >/dev/null
  cmp "$image" "$output/cold.squashfs" || die "the image from the cache differs from one without cache"
fi
title "Done: $store_paths store paths, image $image"
