# The settings with which the scripted stage 1 of NixOS works with Debian's programs: the library that udev opens at run
# time, the directory of modules, and no `strip`.
{ pkgs, ... }:
{
  console.enable = false;
  boot.initrd.extraUtilsCommands = "STRIP=true RANLIB=true; cp -L ${pkgs.kmod}/lib/x86_64-linux-gnu/libkmod.so.2 $out/lib/; chmod u+w $out/lib/*; copy_bin_and_libs ${pkgs.util-linux}/bin/fsck";
  boot.initrd.preDeviceCommands = "mkdir -p /usr/lib; ln -s /lib/modules /usr/lib/modules";
}
