# What every guest of the rig has: the programs of this checkout, and emulation, which works everywhere. Two emulated processors
# that share one of a busy computer wait for each other.
{ lib, pkgs, ... }:
{
  microvm = {
    launcher.package = pkgs.microvm-test-launcher;
    imageBuilder.package = pkgs.microvm-test-imagebuilder;
    mem = lib.mkDefault 1024;
    vcpu = lib.mkDefault 1;
    qemu.accelerator = "tcg";
  };
}
