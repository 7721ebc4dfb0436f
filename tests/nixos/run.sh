#!/usr/bin/env bash
# run.sh [SCENARIO...]: boots real NixOS guests and hosts made from this project's modules, as root; all by default.
#
#   NIXPKGS=DIR                a nixpkgs tree, 24.05 or newer, with the modules of the systems; required
#   MICROVM_NIXOS_RIG=DIR      directory for packages, the store and the machines' states, 4 GB; default: target/nixos
#   MICROVM_TEST_PROGRAMS=DIR  directory with bin/microvm and bin/microvm-image; default: a debug build of this checkout
#
# There is no binary cache: the modules are those of nixpkgs, and the programs are Debian's packages, wrapped as
# derivations (wrapping/). Build results are kept, so a second run builds only what changed. README.md explains the
# rest.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")"
product=$(realpath ../..)

die() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit 1; }
say() { printf 'nixos: %s\n' "$*" >&2; }

if [ -z "${NIXPKGS:-}" ]; then
  say "no NixOS is booted: NIXPKGS is not set"
  exit 0
fi
NIXPKGS=$(realpath "$NIXPKGS")
[ "$(id -u)" = 0 ] || die "only root can run sandboxed builds of Nix without a daemon" "run as root"
# A tree in which stage 2 was modified for debugging does not start systemd.
grep -q '^ *exec @systemdExecutable@' "$NIXPKGS/nixos/modules/system/boot/stage-2-init.sh" ||
  die "$NIXPKGS is not a nixpkgs tree as NixOS has it: its stage-2-init.sh does not start systemd"
for program in nix-build dpkg-deb jq qemu-system-x86_64 unshare ssh-keygen; do
  command -v "$program" >/dev/null || die "$program is missing" "run scripts/setup.sh"
done

NIXOS_RIG=${MICROVM_NIXOS_RIG:-${CARGO_TARGET_DIR:-$product/target}/nixos}
mkdir -p "$NIXOS_RIG/states"
NIXOS_RIG=$(realpath "$NIXOS_RIG")
export NIXPKGS NIXOS_RIG
programs=${MICROVM_TEST_PROGRAMS:-}
if [ -z "$programs" ]; then
  cargo build --quiet --locked --manifest-path "$product/Cargo.toml" --package imagebuilder --package launcher --bins
  programs=$NIXOS_RIG/programs
  mkdir -p "$programs/bin"
  cp "${CARGO_TARGET_DIR:-$product/target}/debug/"{microvm,microvm-image} "$programs/bin/"
fi
wrapping/prepare.sh "$product" "$programs"

# Secrets and directories that scenarios share with their machines.
shared=$NIXOS_RIG/shared
mkdir -p "$shared/directory"
echo secret-of-the-rig >"$shared/token"
[ -e "$shared/key" ] || ssh-keygen -q -t ed25519 -N '' -f "$shared/key"

arguments=(--arg nixpkgs "$NIXPKGS" --arg rig "$NIXOS_RIG" --arg product "$product" --show-trace)
plan=$NIXOS_RIG/plan.json
./in-store.sh nix-instantiate --eval --strict --json "${arguments[@]}" -A plan default.nix >"$plan"
mapfile -t scenarios < <(if [ $# -gt 0 ]; then printf '%s\n' "$@"; else jq -r 'keys[]' "$plan"; fi)

# Sets `used` to the processor time in seconds of all programs that have run for this script: the load of the computer hardly
# changes it.
set_used() {
  times >"$NIXOS_RIG/times"
  used=$(awk 'NR == 2 { gsub(/s/, ""); for (i = 1; i <= 2; i++) { split($i, part, "m"); sum += part[1] * 60 + part[2] } } END { printf "%d", sum }' "$NIXOS_RIG/times")
}

failed=()
for scenario in "${scenarios[@]}"; do
  jq -e --arg scenario "$scenario" 'has($scenario)' "$plan" >/dev/null ||
    die "there is no scenario $scenario" "there are: $(jq -r 'keys | join(" ")' "$plan")"
  started=$SECONDS
  set_used
  used_before=$used
  kind=$(jq -r --arg scenario "$scenario" '.[$scenario].kind' "$plan")
  if "./run-$kind.sh" "$scenario" "${arguments[@]}"; then
    set_used
    say "$scenario: passed in $((SECONDS - started)) s, with $((used - used_before)) s of processor time"
  else
    say "$scenario: FAILED after $((SECONDS - started)) s; $NIXOS_RIG/states/$scenario has its consoles"
    failed+=("$scenario")
  fi
done
say "NixOS $(cat "$NIXPKGS/lib/.version"): ${#scenarios[@]} scenarios, ${#failed[@]} failed${failed[*]:+: ${failed[*]}}"
[ ${#failed[@]} -eq 0 ]
