{
  description = "NixOS microVMs on qemu, cloud-hypervisor, firecracker, crosvm and kvmtool";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forSystems = lib.genAttrs systems;
      pkgsOf = system: nixpkgs.legacyPackages.${system};

      # nixosConfigurations are named SYSTEM-NAME; a system's packages are named NAME.
      examples = import ./examples { inherit lib self; };
      configurationsOf =
        system:
        lib.mapAttrs (
          _: modules:
          nixpkgs.lib.nixosSystem {
            inherit system modules;
          }
        ) examples;
      runnersOf =
        system:
        lib.mapAttrs (_: configuration: configuration.config.microvm.declaredRunner) (
          configurationsOf system
        );
      programsOf = pkgs: {
        microvm = pkgs.callPackage ./package.nix { crate = "launcher"; };
        microvm-image = pkgs.callPackage ./package.nix { crate = "imagebuilder"; };
      };
    in
    {
      lib = import ./lib { inherit lib; };

      nixosModules = {
        microvm = ./nixos-modules/microvm;
        microvm-options = ./nixos-modules/microvm/options;
        host = ./nixos-modules/host;
        default = self.nixosModules.microvm;
      };

      overlays.default = final: _: programsOf final;

      packages = forSystems (
        system:
        let
          programs = programsOf (pkgsOf system);
        in
        programs // runnersOf system // { default = programs.microvm; }
      );

      nixosConfigurations = lib.foldl' (
        all: system:
        all // lib.mapAttrs' (name: lib.nameValuePair "${system}-${name}") (configurationsOf system)
      ) { } systems;

      # A host with machines on all hypervisors, itself in a machine.
      apps = forSystems (system: {
        vm = {
          type = "app";
          program = lib.getExe (runnersOf system).vm;
        };
      });

      # All that this flake builds for a system.
      checks = forSystems (system: self.packages.${system});

      devShells = forSystems (
        system:
        let
          pkgs = pkgsOf system;
        in
        {
          default = pkgs.mkShell {
            inputsFrom = builtins.attrValues (programsOf pkgs);
            packages = [
              pkgs.clippy
              pkgs.deadnix
              pkgs.erofs-utils
              pkgs.nixfmt-rfc-style
              pkgs.qemu_kvm
              pkgs.rustfmt
              pkgs.shellcheck
              pkgs.squashfsTools
            ];
          };
        }
      );

      formatter = forSystems (system: (pkgsOf system).nixfmt-rfc-style);

      templates = {
        microvm = {
          path = ./templates/microvm;
          description = "A flake with one microVM";
        };
        default = self.templates.microvm;
      };
    };
}
