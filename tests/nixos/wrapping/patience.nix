# Long timeouts for emulation on a busy computer, and no animated status line, which would take seconds.
{ lib, options, ... }:
let
  manager = {
    DefaultTimeoutStartSec = 900;
    DefaultTimeoutStopSec = 300;
    DefaultDeviceTimeoutSec = 900;
  };
  # NixOS 25.11 has settings where those before have text.
  of =
    systemd:
    if systemd ? settings then
      { settings.Manager = manager; }
    else
      { extraConfig = lib.generators.toKeyValue { } manager; };
in
{
  boot.kernelParams = [
    "systemd.show_status=error"
    "udev.event_timeout=1800"
    "rcupdate.rcu_cpu_stall_suppress=1"
  ];
  systemd = of options.systemd;
  boot.initrd.systemd = of options.boot.initrd.systemd;
}
