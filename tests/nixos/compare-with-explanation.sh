#!/usr/bin/env bash
# compare-with-explanation.sh RUNNER SAID: compares the disks and mounts that a guest reported with those that
# `microvm explain` prints. Run it where the rig's store is /nix.
set -euo pipefail
runner=$1 printed=$2 differences=0
explanation=$("$(sed -n 's/^exec \([^ ]*\) run .*/\1/p' "$runner/bin/microvm-run")" explain --accel tcg "$runner/share/microvm/machine.json")
different() { printf 'explain: %s\n' "$*" >&2; differences=$((differences + 1)); }
section() { sed -n "/^$1:\$/,/^\$/s/^  //p" <<<"$explanation"; } # TITLE

expected=0
while read -r device access _ link; do
  expected=$((expected + 1))
  disk=$(sed -n "s/^disk: ${device##*/} //p" "$printed")
  case $access in read-only) access=1 ;; *) access=0 ;; esac
  # The guest's driver of persistent memory has no access rights; the scenario writes to it.
  case $device in /dev/pmem*) access=0 ;; esac
  serial=${link##*/virtio-}
  [ "$disk" = "$access $serial" ] || different "$device is \`$disk\` in the guest, not \`$access $serial\`"
done < <(section 'Disks, in guest order')
[ "$(grep -c '^disk: ' "$printed")" = "$expected" ] || different "the guest has $(grep -c '^disk: ' "$printed") disks, not $expected"

while read -r target kind rest; do
  [ -n "$target" ] || continue
  # The last mount over a directory is the visible one.
  mounted=$(awk -v target="$target" '$1 == "mount:" && $2 == target { line = $0 } END { print line }' "$printed")
  read -r _ _ _ type options <<<"$mounted"
  case $kind in
  store) wanted='^(squashfs|erofs)$' wanted_access=ro ;;
  bind) wanted='^(9p|virtiofs)$' wanted_access=ro ;;
  *) wanted="^$kind\$" wanted_access=rw ;;
  esac
  case $rest in *read-only*) wanted_access=ro ;; esac
  [[ ${type:-nothing} =~ $wanted ]] || different "on $target there is ${type:-nothing}, not $kind"
  # A store is read-only everywhere, except for Nix's daemon.
  case $target in /nix/store) wanted_access=ro ;; esac
  case ",${options:-}," in *",$wanted_access,"*) ;; *) different "$target is mounted ${options:-not at all}, not $wanted_access" ;; esac
done < <(section 'Mounts')
[ "$differences" = 0 ]
