# Without flakes: nix-build -E '((import <nixpkgs> { }).nixos (import ./no-flake.nix)).config.microvm.declaredRunner'
{
  imports = [
    ../nixos-modules/microvm
    ./guest.nix
  ];

  networking.hostName = "no-flake";
  microvm.hypervisor = "qemu";
}
