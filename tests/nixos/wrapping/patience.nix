# Long timeouts for emulation on a busy computer, and no animated status line, which would take seconds.
{ lib, options, ... }:
let
  manager = {
    DefaultTimeoutStartSec = 2700;
    DefaultTimeoutStopSec = 900;
    DefaultDeviceTimeoutSec = 2700;
  };
  # NixOS 25.11 has settings where those before have text.
  of =
    systemd:
    if systemd ? settings then
      { settings.Manager = manager; }
    else
      { extraConfig = lib.generators.toKeyValue { } manager; };
  # Units of systemd that have a timeout of 90 seconds of their own.
  services =
    lib.genAttrs
      [
        "systemd-modules-load"
        "systemd-sysctl"
      ]
      (_: {
        serviceConfig.TimeoutSec = 2700;
      });
in
{
  boot.kernelParams = [
    "systemd.show_status=error"
    "systemd.service_watchdogs=0"
    "udev.event_timeout=2700"
    "rcupdate.rcu_cpu_stall_suppress=1"
    "nosoftlockup"
  ];
  systemd = of options.systemd // {
    inherit services;
  };
  boot.initrd.systemd = of options.boot.initrd.systemd // {
    inherit services;
  };
}
