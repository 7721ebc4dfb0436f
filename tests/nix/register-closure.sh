#!/usr/bin/env bash
# register-closure.sh: tests the boot script of the guest's Nix database on a real store, over three boots: the first
# system, the same system with paths built in the guest, and another system. Run it as root; it uses its own mount
# namespace.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")"
if [ "${1:-}" != --in-namespace ]; then
  exec unshare --mount --propagation private "$(realpath "$(basename "$0")")" --in-namespace
fi

die() { printf 'error: %s\n' "$1" >&2; exit 1; }
script=../../nixos-modules/microvm/register-closure.sh
export NIX_REMOTE='' NIX_CONF_DIR=/var/empty NIX_USER_CONF_FILES=/dev/null NIX_CONFIG='substituters =
build-users-group =
sandbox = false
fsync-metadata = false'

mkdir -p /nix
mount -t tmpfs tmpfs /nix
mkdir -p /nix/store /nix/var/nix
old_registration=/nix/store/00000000000000000000000000000000-closure-info/registration
new_registration=/nix/store/11111111111111111111111111111111-closure-info/registration
cmdline=$(mktemp)
trap 'rm -f "$cmdline"' EXIT

build() { # NAME REFERENCE...: prints a store path that refers to the others
  nix-build --quiet --no-out-link --expr "derivation { name = \"$1\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \"echo $1 \${toString [ ${*:2} ]} >\$out\" ]; }" 2>/dev/null
}
reference() { printf '(builtins.storePath "%s")' "$1"; }
valid() { nix-store --check-validity "$1" 2>/dev/null; }
boot() { # REGISTRATION: boots with empty memory and the existing volume
  umount /nix/var/nix/{db,profiles,gcroots/auto,gcroots/per-user} 2>/dev/null || true
  rm -rf /nix/var/nix
  mkdir -p /nix/var/nix
  echo "quiet regInfo=$1 init=/init" >"$cmdline"
  CMDLINE=$cmdline PERSISTENT_STATE=/nix/.rw-store/var NIX_STATE=/nix/var/nix STORE_IS_WRITABLE=1 bash "$script"
}

# Two systems, each with a library and a path that refers to it. The registrations list the content of the lower layer.
old_library=$(build old-library)
old_system=$(build old-system "$(reference "$old_library")")
new_library=$(build new-library)
new_system=$(build new-system "$(reference "$new_library")")
mkdir "${old_registration%/*}" "${new_registration%/*}"
nix-store --dump-db "$old_library" "$old_system" >"$old_registration"
nix-store --dump-db "$new_library" "$new_system" >"$new_registration"
mkdir /nix/aside
mv "$new_library" "$new_system" "${new_registration%/*}" /nix/aside/

boot "$old_registration" >/dev/null
valid "$old_system" || die "the first boot does not know its system"
! valid "$new_system" || die "the first boot knows a system that it does not have"

in_guest=$(build in-guest)
on_library=$(build on-library "$(reference "$old_library")")
nix-store --realise "$in_guest" --add-root /nix/.rw-store/result >/dev/null
boot "$old_registration" >/dev/null
nix-store --gc --print-roots 2>/dev/null | grep -qx "/nix/.rw-store/result -> $in_guest" || die "after a reboot the result of a build is garbage"
for path in "$old_library" "$old_system" "$in_guest" "$on_library"; do
  valid "$path" || die "after a reboot $path is not known any more"
done

for path in "$old_system" "$in_guest" "$on_library"; do ln -s "$path" "/nix/var/nix/gcroots/${path##*-}"; done
nix-store --gc 2>/dev/null >/dev/null
[ -e "$old_registration" ] || die "a garbage collection deletes the registration that the next boot reads"

rm -rf "$old_library" "$old_system" "${old_registration%/*}"
mv /nix/aside/* /nix/store/
printed=$(boot "$new_registration" 2>/dev/null)
for path in "$new_library" "$new_system" "$in_guest"; do
  valid "$path" || die "after the upgrade $path is not known"
done
for path in "$old_library" "$old_system" "$on_library"; do
  ! valid "$path" || die "after the upgrade $path is still taken for valid"
done
[ ! -e "$on_library" ] || die "what was built from a vanished path is still there"
grep -q 'dropping 3 paths' <<<"$printed" || die "the boot does not say what it dropped, but: $printed"
[ -z "$(nix-store --verify --check-contents 2>&1 | grep -v -e '^reading' -e '^checking' || true)" ] || die "the database is not sound"

# A read-only share of a store that does not have the owner and the mode that Nix wants.
mkdir /nix/share
mount -t tmpfs tmpfs /nix/share
cp -a /nix/store/. /nix/share/
chown 1000:1000 /nix/share
mount -o remount,ro /nix/share
mount --bind /nix/share /nix/store
without_build_users=$NIX_CONFIG
export NIX_CONFIG=${NIX_CONFIG/build-users-group =/build-users-group = daemon}
! boot "$new_registration" >/dev/null 2>&1 || die "with build users Nix does not change the store any more: the setting of boot.nix is useless"
export NIX_CONFIG=$without_build_users
boot "$new_registration" >/dev/null
valid "$new_system" || die "the database of a guest with somebody else's store does not know its system"
[ "$(stat -c %u /nix/store)" = 1000 ] || die "the owner of the store was changed"
printf 'nix: the database of the guest follows its store\n' >&2
