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
        description = "Path of the image on the host, relative to the state directory; or a block device.";
      };
      size = mkOption {
        type = types.nullOr types.ints.positive;
        default = null;
        description = "Size in MiB when it is created.";
      };
      fsType = mkOption {
        type = types.str;
        default = import ../../../lib/default-fs-type.nix;
        description = "The file system.";
      };
      label = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "The file system's label, by which the guest then mounts it.";
      };
      serial = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "The disk's serial number, at most 20 bytes: `/dev/disk/by-id/virtio-SERIAL` in the guest.";
      };
      mountPoint = mkOption {
        type = types.nullOr types.path;
        default = null;
        description = "Where the guest mounts it; null is nowhere.";
      };
      autoCreate = mkOption {
        type = types.bool;
        default = true;
        description = "Whether it is created before the start when there is no such file.";
      };
      mkfsExtraArgs = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Further arguments for mkfs.";
      };
      readOnly = mkOption {
        type = types.bool;
        default = false;
        description = "Whether the guest may only read it.";
      };
      direct = mkOption {
        type = types.bool;
        default = false;
        description = "Whether to go past the host's page cache.";
      };
      imageType = mkOption {
        type = types.enum [
          "raw"
          "qcow2"
          "vhd"
          "vhdx"
        ];
        default = "raw";
        description = "The image's format.";
      };
    };
  };

  share =
    { config, ... }:
    {
      options = {
        tag = mkOption {
          type = types.str;
          description = "The name by which the guest finds it.";
        };
        proto = mkOption {
          type = types.enum [
            "9p"
            "virtiofs"
          ];
          default = "9p";
          description = "The protocol. virtiofs is faster; its daemon is started by the host module, or by `bin/virtiofsd-run`.";
        };
        source = mkOption {
          type = types.nonEmptyStr;
          description = "The directory on the host; a relative one is in the state directory.";
        };
        mountPoint = mkOption {
          type = types.path;
          description = "Where the guest mounts it.";
        };
        socket = mkOption {
          type = types.nullOr types.str;
          default = if config.proto == "virtiofs" then "${hostName}-virtiofs-${config.tag}.sock" else null;
          defaultText = literalExpression ''"''${config.networking.hostName}-virtiofs-''${tag}.sock"'';
          description = "The virtiofs daemon's socket.";
        };
        readOnly = mkOption {
          type = types.bool;
          default = config.source == "/nix/store";
          defaultText = literalExpression ''source == "/nix/store"'';
          description = ''
            Whether the guest may only read it. The host's `/nix/store` is shared read-only by default. Where the host's side
            cannot refuse to write to it (9p by crosvm and kvmtool, virtiofsd before 1.13), the guest mounts it read-only, and
            the host's file permissions keep it.
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
          description = "9p: whose rights the guest's files get on the host.";
        };
        cache = mkOption {
          type = types.enum [
            "auto"
            "always"
            "metadata"
            "never"
          ];
          default = "auto";
          description = "virtiofs: what the guest may keep in its cache.";
        };
        posixAcl = mkOption {
          type = types.bool;
          default = true;
          description = "virtiofs: whether POSIX access control lists work; excludes translated user ids.";
        };
        extraArgs = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "virtiofs: further arguments for the daemon of this share.";
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
      description = "Directories of the host that the guest mounts. One with the source `/nix/store` replaces the store disk.";
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
        description = "When the daemons refer to files by handles, which keeps their number of open files low; null is `prefer`.";
      };
      threadPoolSize = mkOption {
        type = types.either (types.strMatching "`nproc`|\\$\\(nproc\\)") (types.nullOr types.ints.positive);
        default = null;
        description = "Threads of each daemon; null is one per CPU of the host, and so is microvm.nix' \"`nproc`\".";
      };
      group = mkOption {
        type = types.nullOr types.str;
        default = "kvm";
        description = "The group of the daemons' sockets.";
      };
      extraArgs = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Further arguments for every daemon.";
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
