# Opens a sealed store disk in stage 1, before it is mounted. The root hash is not known to Nix, because the host may build
# the image; the launcher passes it on the kernel command line.
{
  config,
  lib,
  options,
  utils,
  ...
}:
let
  cfg = config.microvm;
  inherit (config.boot) initrd;
  lowerStore = if cfg.writableStoreOverlay == null then "/nix/store" else "/nix/.ro-store";
  mount = "${utils.escapeSystemdPath "/sysroot${lowerStore}"}.mount";
  device = "${utils.escapeSystemdPath cfg.storeDiskDevice}.device";
  veritysetup = "${initrd.systemd.package}/lib/systemd/systemd-veritysetup";
in
{
  config = lib.mkIf (cfg.guest.enable && cfg.storeOnDisk && cfg.storeDiskVerity) {
    boot.initrd = {
      kernelModules = [ "dm_verity" ];
      systemd = {
        enable = lib.mkDefault true;
        storePaths = [ veritysetup ];
        services.microvm-sealed-store = {
          description = "Check of the store disk (dm-verity)";
          requiredBy = [ mount ];
          before = [ mount ];
          bindsTo = [ device ];
          after = [
            device
            "systemd-modules-load.service"
          ];
          unitConfig.DefaultDependencies = false;
          serviceConfig = {
            Type = "oneshot";
            RemainAfterExit = true;
          };
          script = ''
            disk=${cfg.storeDiskDevice}
            veritysetup=${veritysetup}
            ${builtins.readFile ./open-sealed-store.sh}
          '';
        };
      };
    }
    # Device-mapper's udev rules make the links in /dev/mapper.
    // lib.optionalAttrs (options.boot.initrd ? services) { services.lvm.enable = lib.mkDefault true; };
    services.lvm.enable = lib.mkOverride 900 true;
  };
}
