#!/usr/bin/env bash
# prepare.sh PRODUCT PROGRAMS: fetches and unpacks the inputs of the systems into $NIXOS_RIG. It is fast if they already
# exist. The first time it needs network, dpkg-deb and cargo. run.sh sets NIXPKGS and NIXOS_RIG.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
product=$1 programs=$2 rig=${NIXOS_RIG:?} nixpkgs=${NIXPKGS:?}
fixtures=$product/fixtures
inputs=$rig/inputs
mkdir -p "$rig/packages" "$inputs"/{microvm,microvm-image,cacert}

fetch() { # LIST: the .deb of every line's packages
  local arguments
  grep -v '^#' "$1" | while read -ra arguments; do "$fixtures/fetch-packages.sh" "${arguments[@]}"; done
}

# Existing packages are kept until a list changes, because another version of one package would rebuild everything.
if [ ! -e "$rig/graph.json" ] || ! cmp --quiet "$rig/lists" <(cat "$here/packages.list" "$here/merge.list"); then
  fetch "$here/packages.list" | sort -u >"$rig/debs.list"
  mapfile -t debs <"$rig/debs.list"
  python3 "$here/package-groups.py" "$rig" "$here/merge.list" "${debs[@]}"
  cat "$here/packages.list" "$here/merge.list" >"$rig/lists"
fi

# The only programs of builders that Nix does not build.
if [ ! -e "$rig/patchelf" ]; then
  mkdir -p "$rig/busybox/bin" "$rig/patchelf.new" "$rig/unpacked"
  cp "$rig"/packages/busybox-static_*/usr/bin/busybox "$rig/busybox/bin/"
  for applet in $("$rig/busybox/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -sf busybox "$rig/busybox/bin/$applet"
  done
  mapfile -t debs < <(fetch "$fixtures/closure/packages/patchelf.list")
  for deb in "${debs[@]}"; do dpkg-deb --extract "$deb" "$rig/unpacked"; done
  cp "$rig/unpacked/usr/bin/patchelf" "$rig/patchelf.new/"
  for library in ld-linux-x86-64.so.2 libc.so.6 libm.so.6 libstdc++.so.6 libgcc_s.so.1; do
    cp --dereference "$(find "$rig/unpacked" -name "$library" | sed -n 1p)" "$rig/patchelf.new/$library"
  done
  mv "$rig/patchelf.new" "$rig/patchelf"
fi

if ! compgen -G "$inputs/linux/lib/modules/*/kernel/drivers/gpu/drm/virtio" >/dev/null; then
  rm -rf "$inputs/linux"
  kernel=$(echo "$rig"/packages/linux-image-*)
  version=$(ls "$kernel/usr/lib/modules")
  modules=$inputs/linux/lib/modules
  mkdir -p "$modules"
  cp -a "$kernel/usr/lib/modules/$version" "$modules/"
  rm -f "$modules/$version"/{build,source}
  # Large, and for devices that no machine of the rig has.
  rm -rf "$modules/$version"/kernel/{sound,drivers/{gpu,media,infiniband,staging,iio,net/{wireless,ethernet,can,dsa},isdn,comedi}}
  gpu=kernel/drivers/gpu/drm
  mkdir -p "$modules/$version/$gpu"
  cp -a "$kernel/usr/lib/modules/$version/$gpu"/{virtio,drm.ko.xz,drm_kms_helper.ko.xz,drm_shmem_helper.ko.xz} "$modules/$version/$gpu/"
  cp "$kernel/boot/vmlinuz-$version" "$inputs/linux/bzImage"
  cp "$kernel/boot/config-$version" "$inputs/linux/config"
fi

# nixpkgs' own program that copies files with their libraries into an initrd.
if [ ! -e "$inputs/make-initrd-ng/make-initrd-ng" ]; then
  mkdir -p "$rig/make-initrd-ng" "$inputs/make-initrd-ng"
  cp -r "$nixpkgs/pkgs/build-support/kernel/make-initrd-ng/." "$rig/make-initrd-ng/"
  # Its own workspace, because the rig may be inside of another one.
  grep -q '^\[workspace\]' "$rig/make-initrd-ng/Cargo.toml" || printf '\n[workspace]\n' >>"$rig/make-initrd-ng/Cargo.toml"
  (cd "$rig/make-initrd-ng" && cargo build --quiet --release --locked --target-dir "$rig/make-initrd-ng/target")
  cp "$rig/make-initrd-ng/target/release/make-initrd-ng" "$inputs/make-initrd-ng/"
fi

# NixOS's setuid wrapper, with 255 placeholders for the name of the wrapped program, which packages.nix fills in.
if [ ! -e "$inputs/security-wrapper/security-wrapper" ]; then
  mkdir -p "$inputs/security-wrapper" "$rig/unsecvars"
  printf '#define UNSECURE_ENVVARS "LD_PRELOAD\\0" "LD_LIBRARY_PATH\\0" "LD_AUDIT\\0" "GCONV_PATH\\0" "TMPDIR\\0"\n' >"$rig/unsecvars/unsecvars.h"
  gcc -static -O2 -DSOURCE_PROG="\"$(printf '@%.0s' {1..255})\"" -I"$rig/unsecvars" \
    "$nixpkgs/nixos/modules/security/wrappers/wrapper.c" -o "$inputs/security-wrapper/security-wrapper"
fi

cp --update "$programs/bin/microvm" "$inputs/microvm/"
cp --update "$programs/bin/microvm-image" "$inputs/microvm-image/"
cp -L --update /etc/ssl/certs/ca-certificates.crt "$inputs/cacert/ca-bundle.crt"
