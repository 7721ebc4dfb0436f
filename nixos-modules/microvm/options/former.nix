# Options that microvm.nix had or has and this project does not. Setting one is an error that names what to set instead.
{ lib, ... }:
let
  former = lib.mkOption {
    type = lib.types.raw;
    default = null;
    internal = true;
    description = "An option of microvm.nix.";
  };
in
{
  options.microvm = {
    alioth = former;
    balloonMem = former;
    bootDisk = former;
    qemu.bios = former;
    stratovirt = former;
    vfkit = former;
  };
}
