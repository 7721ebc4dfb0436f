# The read-only disk with the system closure, and the writable layer over it.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) literalExpression mkOption types;
  cfg = config.microvm;
in
{
  options.microvm = {
    storeOnDisk = mkOption {
      type = types.bool;
      default = !(lib.any (share: share.source == "/nix/store") cfg.shares);
      defaultText = "whether no share has the source `/nix/store`";
      description = "Whether the system closure is on a store disk.";
    };

    storeDisk = mkOption {
      type = types.path;
      defaultText = "made from the system closure";
      description = "The image of the store disk.";
    };

    storeDiskPlan = mkOption {
      type = types.path;
      description = "The plan of `storeDisk`, a JSON document of some kilobytes with the paths of the closure and the settings.";
      readOnly = true;
    };

    closurePaths = mkOption {
      type = types.path;
      description = "A list of the store paths of the system closure, one per line, for shares with `closureOnly`.";
      readOnly = true;
    };

    storeDiskBuild = mkOption {
      type = types.enum [
        "derivation"
        "host"
        "live"
      ];
      default = "derivation";
      description = ''
        Where the store disk is built. With `derivation`, Nix builds the whole disk and keeps it in the store. With `host`, the
        store contains only a plan, and the host builds the disk in the state directory before the start, with a cache, so
        that an update builds only what changed. With `live`, no disk is built: `microvm-image serve` reads the host's store
        while the machine runs, and the guest sees only its closure.
      '';
    };

    storeDiskTransport = mkOption {
      type = types.enum [
        "block"
        "pmem"
      ];
      default = "block";
      description = ''
        How the guest reads the store disk. With `pmem`, the image is mapped into the guest as persistent memory, read-only, and
        the host and all its guests share one copy of each page in memory. The guest needs a file system that is not
        compressed, so the image is an EROFS of the size of the closure. Guests that share pages can observe by timing which
        of them another guest reads; do not use it for guests that must not learn this about each other.
      '';
    };

    storeDiskVerity = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether the store disk is sealed with dm-verity: a hash tree is appended to the image, and the guest checks each block that it
        reads. Reading a changed block fails. The launcher reads the root hash from `IMAGE.verity.json` at the start
        and passes it on the kernel command line. The guest needs systemd in stage 1 (`boot.initrd.systemd.enable`).
      '';
    };

    storeDiskDevice = mkOption {
      type = types.str;
      internal = true;
      readOnly = true;
      description = "The device node of the store disk in the guest.";
    };

    storeDiskType = mkOption {
      type = types.enum [
        "squashfs"
        "erofs"
      ];
      default =
        if cfg.storeDiskBuild == "live" || cfg.storeDiskTransport == "pmem" then "erofs" else "squashfs";
      defaultText = "squashfs, or erofs if `storeDiskBuild` is `live` or `storeDiskTransport` is `pmem`";
      description = ''
        The file system of the store disk. Squashfs is compressed, and an update compresses only what changed. Erofs is not
        compressed: it is as large as the closure, but the guest reads it with less work. With
        `storeDiskBuild = "host"` on btrfs, xfs or bcachefs, it shares the blocks of files with the host's store.
      '';
    };

    storeDiskSquashfsFlags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "--level"
        "19"
      ];
      description = "Options for `microvm-image` when it builds the store disk: `--compression`, `--level`, `--block-size`.";
    };

    storeDiskErofsFlags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "-zlz4hc" ];
      description = ''
        Options for mkfs.erofs, in addition to those that make the store disk reproducible. With any of them, mkfs.erofs
        builds the erofs store disk; without them, `microvm-image` builds it.
      '';
    };

    imageBuilder.package = mkOption {
      type = types.package;
      default = cfg.vmHostPackages.callPackage ../../../package.nix { crate = "imagebuilder"; };
      defaultText = "microvm-image, built from this project with the host's packages";
      description = "The package of `microvm-image`.";
    };

    writableStoreOverlay = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/nix/.rw-store";
      description = ''
        Where the guest keeps a writable layer over its `/nix/store`; with null the store is read-only. With a volume or
        virtiofs share at this mount point, the layer and the Nix database persist; otherwise they are in memory.
      '';
    };

    registerClosure = mkOption {
      type = types.bool;
      default = config.nix.enable;
      defaultText = literalExpression "config.nix.enable";
      description = "Whether to register the paths of the system closure in the guest's Nix database.";
    };
  };
}
