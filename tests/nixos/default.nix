# NixOS systems of nixpkgs' modules, this project's modules and Debian's programs.
#   nixpkgs: a nixpkgs tree; rig: what wrapping/prepare.sh left; product: this checkout; virtiofsd: a program, or ""
# `plan` is what run.sh does with `guests` and `hosts`.
{
  nixpkgs,
  rig,
  product,
  virtiofsd ? "",
}:
let
  debian = import ./wrapping/debian.nix { inherit rig; };
  pkgs = import nixpkgs {
    system = "x86_64-linux";
    config = { };
    stdenvStages = import ./wrapping/stdenv.nix { inherit nixpkgs debian; };
    overlays = [ (import ./wrapping/packages.nix { inherit rig debian; }) ];
  };
  inherit (pkgs) lib;
  nixos =
    modules:
    import (nixpkgs + "/nixos/lib/eval-config.nix") {
      system = null;
      modules = [
        ./wrapping/system.nix
        { nixpkgs.pkgs = pkgs; }
      ]
      ++ modules;
    };
  guest =
    name: module:
    nixos [
      (product + "/nixos-modules/microvm")
      ./guest-checks.nix
      {
        networking.hostName = name;
        microvm.virtiofsd.package = lib.mkIf (virtiofsd != "") (
          pkgs.writeShellScriptBin "virtiofsd" ''exec ${virtiofsd} "$@"'' // { version = "1.13.3"; }
        );
      }
      module
    ];
  shared = toString rig + "/shared";
  scenarios = import ./guests.nix { inherit shared lib; };
in
{
  inherit pkgs;
  guests = lib.mapAttrs (name: { boots, ... }: map (boot: guest name boot.machine) boots) (
    lib.filterAttrs (_: scenario: !(scenario.needsVirtiofsd or false) || virtiofsd != "") scenarios
  );
  plan =
    lib.mapAttrs
      (_: scenario: {
        kind = "guest";
        boots = map (
          {
            end ? "poweroff",
            outside ? "",
            ...
          }:
          {
            inherit end outside;
          }
        ) scenario.boots;
      })
      (lib.filterAttrs (_: scenario: !(scenario.needsVirtiofsd or false) || virtiofsd != "") scenarios);
}
