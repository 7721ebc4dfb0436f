# The disk of the system closure: squashfs by `microvm-image`, or erofs by mkfs.erofs.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.microvm;
  inherit (config.networking) hostName;
  roots = [
    config.system.build.toplevel
  ]
  ++ lib.optional cfg.registerClosure cfg.closureRegistration;

  # Nix 2.8 names a file outside the sandbox; in the build directory it is in all versions.
  findGraph = ''
    graph=$NIX_ATTRS_JSON_FILE
    [ -e "$graph" ] || graph=$NIX_BUILD_TOP/.attrs.json
  '';

  fromClosure =
    name: attributes: script:
    pkgs.runCommand name (
      {
        __structuredAttrs = true;
        exportReferencesGraph.closure = roots;
        # The input is gigabytes that are here already, and so is the output's only reader.
        preferLocalBuild = true;
        allowSubstitutes = false;
      }
      // attributes
    ) (findGraph + script);

  image = {
    # An image holds store paths as text wherever it is not compressed; they must not keep the closure on the host.
    unsafeDiscardReferences.out = true;
  };

  squashfs =
    fromClosure "microvm-store-disk-${hostName}.squashfs"
      (image // { nativeBuildInputs = [ cfg.imageBuilder.package ]; })
      ''
        # The cache service is there where the host's Nix lets builds see it. The image is the same without.
        microvm-image build --no-cache --cache-socket /run/microvm-image/cache.sock --jobs "''${NIX_BUILD_CORES:-1}" ${lib.escapeShellArgs cfg.storeDiskSquashfsFlags} \
          --graph "$graph" --output "$out"
      '';

  erofs =
    fromClosure "microvm-store-disk-${hostName}.erofs"
      (
        image
        // {
          nativeBuildInputs = [
            pkgs.buildPackages.erofs-utils
            pkgs.buildPackages.jq
          ];
        }
      )
      ''
        # A fixed UUID and fixed times: without them no two images of one closure are the same. No checksum of the
        # superblock's block, in which the root directory's inode may be, which is changed below.
        flags=(-U 2ba3a4f8-1a5e-5c5b-9a3c-b7e0b1c9d2f4 -T 1 --all-root -E nosbcrc ${lib.escapeShellArgs cfg.storeDiskErofsFlags})
        jq -r '.closure[].path | split("/")[-1]' "$graph" | LC_ALL=C sort >closure
        ls -A ${builtins.storeDir} | LC_ALL=C sort | LC_ALL=C comm -13 closure - >others

        # mkfs.erofs takes one directory. In Nix' sandbox the store has little but the closure, and the rest is left out.
        # The closure is copied only where that store is a whole host's, or where an old mkfs.erofs would keep the hard
        # links that `nix-store --optimise` makes on some hosts: then the image would not be the same everywhere.
        if [ ! -e ${builtins.storeDir}/.links ] && [ "$(wc -l <others)" -lt 2000 ] && [[ $(mkfs.erofs --help 2>&1) == *--hard-dereference* ]]; then
          # mkfs.erofs sees the image that it makes.
          flags+=("--exclude-path=''${out##*/}")
          while read -r other; do flags+=("--exclude-path=$other"); done <others
          mkdir -m 0755 ${builtins.storeDir}/.links
          mkfs.erofs --hard-dereference "''${flags[@]}" "$out" ${builtins.storeDir}
        else
          mkdir "$NIX_BUILD_TOP/store"
          while read -r path; do
            cp -dR --preserve=mode,timestamps --reflink=auto "${builtins.storeDir}/$path" "$NIX_BUILD_TOP/store/"
          done <closure
          mkdir -m 0755 "$NIX_BUILD_TOP/store/.links"
          mkfs.erofs "''${flags[@]}" "$out" "$NIX_BUILD_TOP/store"
        fi
        ${builtins.readFile ./erofs-store-root.sh}
      '';
in
{
  config.microvm = {
    storeDisk = lib.mkDefault (if cfg.storeDiskType == "squashfs" then squashfs else erofs);
    storeDiskPlan =
      fromClosure "microvm-store-plan-${hostName}.json"
        { nativeBuildInputs = [ cfg.imageBuilder.package ]; }
        ''
          microvm-image plan ${lib.escapeShellArgs cfg.storeDiskSquashfsFlags} --graph "$graph" --output "$out"
        '';
  };
}
