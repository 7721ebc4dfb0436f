# A guest in a window of this desktop: a terminal, full screen. Log in on the window's other consoles, or where it was
# started, as "root" with an empty password.
{ lib, pkgs, ... }:
{
  networking.hostName = "graphics";
  microvm = {
    hypervisor = "qemu";
    mem = 2000;
    vcpu = 2;
    graphics.enable = true;
  };

  users.users.user = {
    isNormalUser = true;
    password = "";
  };
  services.cage = {
    enable = true;
    user = "user";
    program = lib.getExe pkgs.foot;
  };
}
