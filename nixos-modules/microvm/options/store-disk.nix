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
      description = "Whether the system closure is on a disk.";
    };

    storeDisk = mkOption {
      type = types.path;
      defaultText = "made from the system closure";
      description = "The store disk's image.";
    };

    storeDiskPlan = mkOption {
      type = types.path;
      description = "What `storeDisk` is made from: the closure's paths and the settings, kilobytes of JSON.";
      readOnly = true;
    };

    storeDiskBuild = mkOption {
      type = types.enum [
        "derivation"
        "host"
      ];
      default = "derivation";
      description = ''
        Where the store disk is made. `derivation`: by Nix, from nothing each time, and kept in the store. `host`: the
        store has only a plan, and the host makes the disk in the state directory right before the start, with its
        cache, so that an update costs what changed.
      '';
    };

    storeDiskType = mkOption {
      type = types.enum [
        "squashfs"
        "erofs"
      ];
      default = "squashfs";
      description = "The store disk's file system. Only squashfs is built in parallel and from a cache.";
    };

    storeDiskSquashfsFlags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "--level"
        "19"
      ];
      description = "Options of `microvm-image` for the store disk: `--compression`, `--level`, `--block-size`.";
    };

    storeDiskErofsFlags = mkOption {
      type = types.listOf types.str;
      default = [ "-zlz4hc" ];
      description = "Options of mkfs.erofs for the store disk, after those that make it reproducible.";
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
        Where the guest keeps a writable layer over its `/nix/store`; null is a read-only store. With a volume or
        virtiofs share at this mount point it outlives the machine, and so does the Nix database; without, it is in memory.
      '';
    };

    registerClosure = mkOption {
      type = types.bool;
      default = config.nix.enable;
      defaultText = literalExpression "config.nix.enable";
      description = "Whether the guest's Nix knows the paths of the system closure.";
    };
  };
}
