# Disables what a microVM rarely needs.
{
  config,
  lib,
  options,
  ...
}:
let
  cfg = config.microvm;
  # Users of microvm.nix could not mount the store with it on crosvm and kvmtool. It has not been tested on them in this
  # project.
  hasSystemdInitrd = builtins.elem cfg.hypervisor [
    "qemu"
    "cloud-hypervisor"
    "firecracker"
  ];
in
{
  config = lib.mkIf (cfg.guest.enable && cfg.optimize.enable) {
    documentation.enable = lib.mkDefault false;
    # By default, the kernel looks for sixteen serial ports.
    boot.kernelParams = [ "8250.nr_uarts=1" ];
    # They are drivers of disks, keyboards and USB devices that no microVM has.
    boot.initrd.includeDefaultModules = lib.mkDefault false;
    boot.initrd.systemd = {
      # The default of NixOS is its script until 25.11, and systemd from 26.05 on.
      enable = lib.mkIf hasSystemdInitrd (lib.mkDefault true);
    }
    // (
      # NixOS 24.05 has the older name.
      if options.boot.initrd.systemd ? tpm2 then
        { tpm2.enable = lib.mkDefault false; }
      else
        lib.optionalAttrs (options.boot.initrd.systemd ? enableTpm2) { enableTpm2 = lib.mkDefault false; }
    );
    boot.swraid.enable = lib.mkDefault false;
    networking.useNetworkd = lib.mkDefault true;
    # NixOS 24.05 does not have this option.
    systemd = lib.optionalAttrs (options.systemd ? tpm2) { tpm2.enable = lib.mkDefault false; } // {
      network.wait-online.enable = lib.mkDefault false;
    };
    # Switching to a new system requires the host's store.
    system.switch.enable = lib.mkDefault (!cfg.storeOnDisk && config.services.openssh.enable);
  };
}
