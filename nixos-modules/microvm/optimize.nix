# What a microVM rarely needs.
{
  config,
  lib,
  options,
  ...
}:
let
  cfg = config.microvm;
  # microvm.nix' users could not mount the store from it on crosvm and kvmtool; nobody has shown yet that it works here.
  hasSystemdInitrd = builtins.elem cfg.hypervisor [
    "qemu"
    "cloud-hypervisor"
    "firecracker"
  ];
in
{
  config = lib.mkIf (cfg.guest.enable && cfg.optimize.enable) {
    documentation.enable = lib.mkDefault false;
    # Sixteen serial ports are looked for otherwise.
    boot.kernelParams = [ "8250.nr_uarts=1" ];
    # Drivers of disks, keyboards and USB that no microVM has.
    boot.initrd.includeDefaultModules = lib.mkDefault false;
    boot.initrd.systemd = {
      # Where it is not set, NixOS decides: until 25.11 for its script, from 26.05 on for systemd.
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
    # NixOS 24.05 has no such option.
    systemd = lib.optionalAttrs (options.systemd ? tpm2) { tpm2.enable = lib.mkDefault false; } // {
      network.wait-online.enable = lib.mkDefault false;
    };
    # A new system cannot be switched to when its store is not the host's.
    system.switch.enable = lib.mkDefault (!cfg.storeOnDisk && config.services.openssh.enable);
  };
}
