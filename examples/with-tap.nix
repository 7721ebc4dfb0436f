# Adds a tap interface. Create it before you start the machine: sudo result/bin/tap-up --owner $USER
{ config, ... }:
{
  microvm.interfaces = [
    {
      type = "tap";
      id = "vm-${builtins.substring 0 4 config.microvm.hypervisor}-a1";
      mac = "02:00:00:01:01:01";
    }
  ];
  networking.useNetworkd = true;
  systemd.network.networks."10-ethernet" = {
    matchConfig.Type = "ether";
    networkConfig = {
      Address = [
        "192.168.240.2/24"
        "fec0::2/64"
      ];
      Gateway = "192.168.240.1";
    };
  };
  services.openssh = {
    enable = true;
    settings.PermitRootLogin = "yes";
  };
}
