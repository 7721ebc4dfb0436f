# The disk with the system closure. `microvm-image` builds it, or mkfs.erofs if there are options for it.
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

  # Nix 2.8 sets the variable to a file outside of the sandbox. All versions have the file in the build directory.
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
        # The input has gigabytes and is already on this machine, as is the only user of the output.
        preferLocalBuild = true;
        allowSubstitutes = false;
      }
      // attributes
    ) (findGraph + script);

  image = {
    # The uncompressed parts of an image contain store paths as text, which must not become references to the closure.
    unsafeDiscardReferences.out = true;
  };

  formatFlags =
    if cfg.storeDiskType == "squashfs" then
      cfg.storeDiskSquashfsFlags
    else
      [
        "--format"
        "erofs"
      ]
      ++ lib.optional (cfg.storeDiskTransport == "pmem") "--dax";
  sealFlags = lib.optional cfg.storeDiskVerity "--verity";
  # The root hash is in a file beside the image, so both are in a directory.
  imageName = "store.${cfg.storeDiskType}";

  byMicrovmImage =
    fromClosure
      "microvm-store-disk-${hostName}${lib.optionalString (!cfg.storeDiskVerity) ".${cfg.storeDiskType}"}"
      (image // { nativeBuildInputs = [ cfg.imageBuilder.package ]; })
      ''
        ${lib.optionalString cfg.storeDiskVerity ''mkdir "$out"; out+=/${imageName}''}
        # The cache service is available if the host's Nix gives builds access to it. The image is the same without it.
        microvm-image build --no-cache --cache-socket /run/microvm-image/cache.sock --jobs "''${NIX_BUILD_CORES:-1}" ${
          lib.escapeShellArgs (formatFlags ++ sealFlags)
        } \
          --graph "$graph" --output "$out"
      '';

  byMkfs =
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
        # A fixed UUID and fixed times make images of the same closure equal. The checksum of the superblock's block is
        # disabled, because that block can contain the root directory's inode, which is changed below.
        flags=(-U 2ba3a4f8-1a5e-5c5b-9a3c-b7e0b1c9d2f4 -T 1 --all-root -E nosbcrc ${lib.escapeShellArgs cfg.storeDiskErofsFlags})
        jq -r '.closure[].path | split("/")[-1]' "$graph" | LC_ALL=C sort >closure
        ls -A ${builtins.storeDir} | LC_ALL=C sort | LC_ALL=C comm -13 closure - >others

        # mkfs.erofs accepts one directory. In Nix's sandbox the store contains little besides the closure, and the
        # rest is excluded. The closure is copied only if the store is that of a whole host, or if an old mkfs.erofs would
        # preserve the hard links that `nix-store --optimise` creates on some hosts, so that the image would not be the
        # same everywhere.
        if [ ! -e ${builtins.storeDir}/.links ] && [ "$(wc -l <others)" -lt 2000 ] && [[ $(mkfs.erofs --help 2>&1) == *--hard-dereference* ]]; then
          # The image itself must be excluded too.
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
    storeDisk = lib.mkDefault (
      if cfg.storeDiskType == "erofs" && cfg.storeDiskErofsFlags != [ ] then
        byMkfs
      else if cfg.storeDiskVerity then
        "${byMicrovmImage}/${imageName}"
      else
        byMicrovmImage
    );
    closurePaths =
      fromClosure "microvm-closure-${hostName}" { nativeBuildInputs = [ pkgs.buildPackages.jq ]; }
        ''
          jq -r '.closure[].path' "$graph" | sort >"$out"
        '';
    storeDiskPlan =
      fromClosure "microvm-store-plan-${hostName}.json"
        { nativeBuildInputs = [ cfg.imageBuilder.package ]; }
        ''
          microvm-image plan ${
            lib.escapeShellArgs (formatFlags ++ sealFlags)
          } --graph "$graph" --output "$out"
        '';
  };
}
