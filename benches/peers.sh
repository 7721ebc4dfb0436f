#!/usr/bin/env bash
# peers.sh [DIR]
#
# Installs the programs that the benchmarks compare with, from Debian sid's packages, without touching the system: they
# are unpacked into DIR (default: target/peers) together with their libraries, and DIR/bin/NAME starts them through the
# unpacked loader. Prints DIR, and their versions on stderr. Does nothing if they are already installed.
#   mksquashfs, unsquashfs (squashfs-tools 4.7 or later)   gensquashfs (squashfs-tools-ng 1.3)   mkfs.erofs (erofs-utils 1.9)
set -euo pipefail

here=$(dirname "$(realpath "$0")")
dir=$(realpath -m "${1:-$here/../target/peers}")

if [ "$(cat "$dir/made-from" 2>/dev/null)" != "$(sha256sum <"$0")" ]; then
  new=$dir.new.$$
  trap 'rm -rf "$new"' EXIT
  mkdir -p "$new/root" "$new/bin"
  "$here/../fixtures/fetch-packages.sh" sid --with-dependencies squashfs-tools squashfs-tools-ng erofs-utils >"$new/debs"
  while read -r deb; do dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$new/root" --exclude=./usr/share; done <"$new/debs"
  for program in mksquashfs unsquashfs gensquashfs mkfs.erofs; do
    cat >"$new/bin/$program" <<END
#!/bin/sh
usr=\$(dirname "\$(realpath "\$0")")/../root/usr
exec "\$usr/lib64/ld-linux-x86-64.so.2" --library-path "\$usr/lib/x86_64-linux-gnu" "\$usr/bin/$program" "\$@"
END
    chmod +x "$new/bin/$program"
    [ -x "$new/root/usr/bin/$program" ] || { echo "error: no $program in Debian sid's packages" >&2; exit 1; }
  done
  sha256sum <"$0" >"$new/made-from"
  rm -rf "$dir"
  mv -T "$new" "$dir"
  trap - EXIT
fi

version() { # PROGRAM OPTION: its version line; some exit with an error after printing it
  { "$dir/bin/$1" "$2" 2>&1 || true; } | grep -m 1 -E '[0-9]+\.[0-9]+' || { echo "error: $1 does not start" >&2; exit 1; }
}
version mksquashfs -version >&2
version gensquashfs --version >&2
version mkfs.erofs --version >&2
printf '%s\n' "$dir"
