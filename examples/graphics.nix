# A guest in a window of this desktop that shows a terminal in full screen. Log in as "root" with an empty password, on
# the window's other consoles or in the terminal that started the guest.
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
