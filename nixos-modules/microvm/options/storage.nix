# Volumes and shares.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) literalExpression mkOption types;
  inherit (config.networking) hostName;

  volume = {
    options = {
      image = mkOption {
        type = types.str;
        description = "The image on the host, relative to the state directory, or a block device.";
      };
      size = mkOption {
        type = types.nullOr types.ints.positive;
        default = null;
        description = "The size in MiB of a new image.";
      };
      fsType = mkOption {
        type = types.str;
        default = import ../../../lib/default-fs-type.nix;
        description = "The file system.";
      };
      label = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "The label of the file system; the guest mounts the volume by its label.";
      };
      serial = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "The serial number of the disk, at most 20 bytes; the disk is `/dev/disk/by-id/virtio-SERIAL` in the guest.";
      };
      mountPoint = mkOption {
        type = types.nullOr types.path;
        default = null;
        description = "Where the guest mounts the volume; null means that it is not mounted.";
      };
      autoCreate = mkOption {
        type = types.bool;
        default = true;
        description = "Whether to create the image before the start if it does not exist.";
      };
      mkfsExtraArgs = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Additional arguments for mkfs.";
      };
      readOnly = mkOption {
        type = types.bool;
        default = false;
        description = "Whether it is read-only for the guest.";
      };
      direct = mkOption {
        type = types.bool;
        default = false;
        description = "Whether to bypass the host's page cache.";
      };
      imageType = mkOption {
        type = types.enum [
          "raw"
          "qcow2"
          "vhd"
          "vhdx"
        ];
        default = "raw";
        description = "The format of the image.";
      };
    };
  };

  share =
    { config, ... }:
    {
      options = {
        tag = mkOption {
          type = types.str;
          description = "The name that the guest uses to mount it.";
        };
        proto = mkOption {
          type = types.enum [
            "9p"
            "virtiofs"
          ];
          default = "9p";
          description = "The protocol. virtiofs is faster. The host module or `bin/virtiofsd-run` starts its daemon.";
        };
        source = mkOption {
          type = types.nonEmptyStr;
          description = "The directory on the host, relative to the state directory.";
        };
        mountPoint = mkOption {
          type = types.path;
          description = "Where the guest mounts the share.";
        };
        socket = mkOption {
          type = types.nullOr types.str;
          default = if config.proto == "virtiofs" then "${hostName}-virtiofs-${config.tag}.sock" else null;
          defaultText = literalExpression ''"''${config.networking.hostName}-virtiofs-''${tag}.sock"'';
          description = "The socket of the virtiofs daemon.";
        };
        readOnly = mkOption {
          type = types.bool;
          default = config.source == "/nix/store";
          defaultText = literalExpression ''source == "/nix/store"'';
          description = ''
            Whether it is read-only for the guest. The host's `/nix/store` is shared read-only by default. If the host cannot
            refuse writes (9p on crosvm and kvmtool, virtiofsd before 1.13), only the guest's read-only mount and the host's file
            permissions protect it.
          '';
        };
        closureOnly = mkOption {
          type = types.bool;
          default = false;
          description = ''
            For the source `/nix/store`: whether the guest sees only its closure instead of all store paths of the host. The
            process that serves the share runs in a mount namespace with these paths. `microvm share-path` adds paths while
            the machine runs, as `deploy.rebuild` does. With 9p, it needs qemu.
          '';
        };
        securityModel = mkOption {
          type = types.enum [
            "passthrough"
            "none"
            "mapped"
            "mapped-file"
          ];
          default = "none";
          description = "9p: how ownership and permissions of files in the guest map to the host.";
        };
        cache = mkOption {
          type = types.enum [
            "auto"
            "always"
            "metadata"
            "never"
          ];
          # A store path never changes, so the guest does not have to ask again and read again at each open.
          default = if config.closureOnly then "always" else "auto";
          defaultText = literalExpression ''if closureOnly then "always" else "auto"'';
          description = "virtiofs: how the guest caches files.";
        };
        posixAcl = mkOption {
          type = types.bool;
          default = true;
          description = "virtiofs: whether POSIX access control lists are supported; cannot be combined with mapped user ids.";
        };
        extraArgs = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "virtiofs: additional arguments for the daemon of this share.";
        };
      };
    };
in
{
  options.microvm = {
    volumes = mkOption {
      type = types.listOf (types.submodule volume);
      default = [ ];
      description = "Disk images, in the order in which the guest sees them.";
      example = literalExpression ''
        [
          {
            image = "var.img";
            mountPoint = "/var";
            size = 1024;
          }
        ]
      '';
    };

    shares = mkOption {
      type = types.listOf (types.submodule share);
      default = [ ];
      description = "Directories on the host that the guest mounts. A share with the source `/nix/store` replaces the store disk.";
      example = literalExpression ''
        [
          {
            tag = "ro-store";
            source = "/nix/store";
            mountPoint = "/nix/.ro-store";
          }
        ]
      '';
    };

    virtiofsd = {
      inodeFileHandles = mkOption {
        type = types.nullOr (
          types.enum [
            "never"
            "prefer"
            "mandatory"
          ]
        );
        default = "prefer";
        description = ''
          When the daemons use file handles, which keeps their number of open files low; null means `prefer`. Shares with
          `closureOnly` never use them, and cannot be combined with `mandatory`.
        '';
      };
      threadPoolSize = mkOption {
        type = types.either (types.strMatching "`nproc`|\\$\\(nproc\\)") (types.nullOr types.ints.positive);
        default = null;
        description = "The number of threads of each daemon. Null, and microvm.nix's \"`nproc`\", mean one thread per CPU of the host.";
      };
      group = mkOption {
        type = types.nullOr types.str;
        default = "kvm";
        description = "The group that owns the sockets of the daemons.";
      };
      extraArgs = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Additional arguments for all daemons.";
      };
      package = mkOption {
        type = types.package;
        default = config.microvm.vmHostPackages.virtiofsd;
        defaultText = literalExpression "config.microvm.vmHostPackages.virtiofsd";
        description = "The package of virtiofsd.";
      };
    };
  };
}
