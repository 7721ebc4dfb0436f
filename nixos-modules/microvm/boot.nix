# The settings that NixOS needs to boot in a microVM.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.microvm;
  isWritable = cfg.writableStoreOverlay != null;
  hasShare = proto: lib.any (share: share.proto == proto) cfg.shares;
in
{
  config = lib.mkIf cfg.guest.enable {
    microvm.kernelParams = config.boot.kernelParams ++ [
      "init=${config.system.build.toplevel}/init"
    ];

    boot = {
      # The hypervisor loads the kernel; there is no disk to boot from.
      loader.grub.enable = lib.mkDefault false;
      initrd = {
        availableKernelModules = [
          "virtio_mmio"
          "virtio_pci"
          "virtio_blk"
        ]
        ++ lib.optional (cfg.vsock.cid != null) "vmw_vsock_virtio_transport"
        # firecracker requests a shutdown through a keyboard.
        ++ lib.optional (cfg.hypervisor == "firecracker" && pkgs.stdenv.hostPlatform.isx86) "i8042";
        kernelModules =
          lib.optional isWritable "overlay"
          ++ lib.optional cfg.storeOnDisk cfg.storeDiskType
          ++ lib.optionals (cfg.storeOnDisk && cfg.storeDiskTransport == "pmem") [
            "virtio_pmem"
            "nd_pmem"
          ]
          ++ lib.optionals (hasShare "9p") [
            "9pnet_virtio"
            "9p"
          ]
          ++ lib.optional (hasShare "virtiofs") "virtiofs";
        supportedFilesystems = lib.optional cfg.storeOnDisk cfg.storeDiskType;
      };
      kernelModules = lib.optionals cfg.graphics.enable [
        "virtio_gpu"
        "virtio_input"
      ];
      # No microVM has these devices.
      blacklistedKernelModules = [
        "rfkill"
        "intel_pstate"
      ]
      ++ lib.optional (!cfg.graphics.enable) "drm";
    };

    systemd = {
      services = {
        # The platform has no persistent storage for kernel messages.
        mount-pstore.enable = false;
        # Nix cannot work without a writable store.
        nix-daemon.enable = lib.mkDefault isWritable;
      };
      sockets.nix-daemon.enable = lib.mkDefault isWritable;
      # There is no partition table.
      generators.systemd-gpt-auto-generator = "/dev/null";
    };

    # With build users, Nix as root changes the owner and the mode of the store, and fails where it cannot: on a share of a
    # store that is not root:30000 with mode 1775, as on many hosts without NixOS.
    nix.settings = lib.mkIf (!isWritable) { build-users-group = lib.mkDefault ""; };

    environment.etc.machine-id = lib.mkIf (cfg.machineId != null) {
      mode = lib.mkDefault "0444";
      # A user can override it with `text` or `source`.
      text = lib.mkDefault "${lib.replaceStrings [ "-" ] [ "" ] cfg.machineId}\n";
    };
    networking.hostId = lib.mkIf (cfg.machineId != null) (
      lib.mkDefault (builtins.substring 0 8 cfg.machineId)
    );
  };
}
