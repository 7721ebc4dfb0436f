# NixOS systems of nixpkgs' modules, this project's modules and Debian's programs.
#   nixpkgs: a nixpkgs tree; rig: what wrapping/prepare.sh left; product: this checkout
# `plan` is what run.sh does with `guests` and `hosts`.
{
  nixpkgs,
  rig,
  product,
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
      { networking.hostName = name; }
      module
    ];
  shared = toString rig + "/shared";
  guestScenarios = import ./guests.nix { inherit shared lib; };
  host =
    checks: module:
    nixos [
      (product + "/nixos-modules/host")
      ./host-checks.nix
      { rig = { inherit checks; }; }
      module
    ];
  hostScenarios = import ./hosts.nix { inherit pkgs guest; };
in
{
  inherit pkgs;
  guests = lib.mapAttrs (
    name:
    { boots, ... }:
    map (
      boot:
      guest name {
        imports = [
          ./guest-checks.nix
          # This computer does not need to have the group kvm.
          { microvm.virtiofsd.group = null; }
          boot.machine
        ];
      }
    ) boots
  ) guestScenarios;
  hosts = lib.mapAttrs (_: { systems, checks }: map (host checks) systems) hostScenarios;
  plan =
    lib.mapAttrs (_: scenario: {
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
    }) guestScenarios
    // lib.mapAttrs (_: scenario: {
      kind = "host";
      systems = builtins.length scenario.systems;
    }) hostScenarios;
}
