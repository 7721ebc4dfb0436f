# What the host's kernel, users and directories must have.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.microvm;
in
{
  config = lib.mkIf cfg.host.enable {
    boot.kernelModules = [
      "tun"
      "tap"
      "vhost_net"
      "vhost_vsock"
    ];
    # Equal pages of several machines are kept once.
    hardware.ksm.enable = lib.mkDefault true;

    users.users.microvm = {
      isSystemUser = true;
      group = "kvm";
      # block devices as volumes
      extraGroups = [ "disk" ];
    };
    # Devices that are passed through are locked into memory as a whole.
    security.pam.loginLimits = [
      {
        domain = "microvm";
        item = "memlock";
        # soft and hard
        type = "-";
        value = "infinity";
      }
    ];

    security.wrappers = lib.mkIf cfg.host.bridgeHelper.enable {
      qemu-bridge-helper = {
        source = "${pkgs.qemu_kvm}/libexec/qemu-bridge-helper";
        owner = "root";
        group = "root";
        capabilities = "cap_net_admin+ep";
      };
    };
    environment.etc."qemu/bridge.conf" = lib.mkIf cfg.host.bridgeHelper.enable {
      text = lib.mkDefault "allow all\n";
    };

    systemd.tmpfiles.rules = [
      "d ${cfg.stateDir} 0755 microvm kvm -"
      "d /run/microvm 0755 microvm kvm -"
      "d /nix/var/nix/gcroots/microvm 0755 root root -"
    ];

    environment.systemPackages = [
      cfg.host.package
      cfg.host.imageCache.package
    ];
  };
}
