{
  description = "NixOS microVMs on qemu, cloud-hypervisor, firecracker, crosvm and kvmtool";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

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

      examples = import ./examples { inherit lib self; };
      # The examples share the packages and the programs of this flake, so Nix evaluates them once per system.
      configure =
        system: modules:
        nixpkgs.lib.nixosSystem {
          system = null;
          modules = modules ++ [
            {
              nixpkgs.pkgs = pkgsOf system;
              microvm.launcher.package = self.packages.${system}.microvm;
              microvm.imageBuilder.package = self.packages.${system}.microvm-image;
            }
          ];
        };
      # Nix keeps every configuration in memory until `nix flake check` ends, about 250 MB each. The other examples, and those
      # of other systems, are packages only.
      configurations = lib.mapAttrs (_: configure "x86_64-linux") examples.configurations;
      runnersOf =
        system:
        lib.mapAttrs (
          name: modules:
          if system == "x86_64-linux" && configurations ? ${name} then
            configurations.${name}.config.microvm.declaredRunner
          else
            withoutConfiguration (configure system modules).config.microvm.declaredRunner
        ) (examples.configurations // examples.others);
      # The derivation without references to the configuration that it was evaluated from, so that Nix can free that memory.
      withoutConfiguration =
        package:
        let
          facts = {
            inherit (package)
              drvPath
              name
              outPath
              system
              ;
            inherit (package.meta) mainProgram;
          };
        in
        fromFacts (builtins.deepSeq facts facts);
      fromFacts =
        facts:
        let
          package = {
            type = "derivation";
            inherit (facts)
              drvPath
              name
              outPath
              system
              ;
            outputName = "out";
            outputs = [ "out" ];
            out = package;
            all = [ package ];
            meta = {
              inherit (facts) mainProgram;
            };
          };
        in
        package;
      programsOf = pkgs: {
        microvm = pkgs.callPackage ./package.nix { crate = "launcher"; } // {
          # Not a check, because it needs KVM and several minutes.
          tests.cluster = import ./tests/nixos/cluster.nix {
            inherit pkgs;
            flake = self // {
              lib = nixpkgs.lib;
            };
          };
        };
        microvm-image = pkgs.callPackage ./package.nix { crate = "imagebuilder"; };
      };
    in
    {
      lib = import ./lib { inherit lib; };

      # Sets instead of paths, because `nix flake check` of Nix 2.8 accepts nothing else.
      nixosModules = {
        microvm.imports = [ ./nixos-modules/microvm ];
        microvm-options.imports = [ ./nixos-modules/microvm/options ];
        host.imports = [ ./nixos-modules/host ];
        cluster.imports = [ ./nixos-modules/cluster ];
        default = self.nixosModules.microvm;
      };

      overlays.default = final: _: programsOf final;
      # The name that flakes written for microvm.nix use.
      overlay = self.overlays.default;

      packages = forSystems (
        system:
        let
          programs = programsOf (pkgsOf system);
        in
        programs
        // runnersOf system
        // {
          default = programs.microvm;
          doc = import ./docs { pkgs = pkgsOf system; };
          build-microvm = import ./lib/build-microvm.nix {
            pkgs = pkgsOf system;
            source = self;
          };
        }
      );

      # Named SYSTEM-NAME; a system's packages are named NAME.
      nixosConfigurations = lib.mapAttrs' (name: lib.nameValuePair "x86_64-linux-${name}") configurations;

      # A host in a microVM with machines on all hypervisors, and machines with a screen in a window and by VNC.
      apps = forSystems (
        system:
        lib.genAttrs [ "vm" "graphics" "qemu-vnc" ] (name: {
          type = "app";
          program = lib.getExe self.packages.${system}.${name};
        })
      );

      # Everything that this flake builds for a system, and the checks that need only Nix.
      checks = forSystems (
        system:
        self.packages.${system}
        // import ./tests/nix/checks.nix {
          pkgs = pkgsOf system // programsOf (pkgsOf system);
        }
      );

      devShells = forSystems (
        system:
        let
          pkgs = pkgsOf system;
        in
        {
          default = pkgs.mkShell {
            inputsFrom = builtins.attrValues (programsOf pkgs);
            packages = builtins.attrValues (import ./tests/nix/source-tools.nix { inherit pkgs; }) ++ [
              pkgs.clippy
              pkgs.erofs-utils
              pkgs.qemu_kvm
              pkgs.rustfmt
              pkgs.shellcheck
              pkgs.squashfsTools
            ];
          };
        }
      );

      # The formatter that supports whole trees, if Nixpkgs has it.
      formatter = forSystems (
        system:
        (pkgsOf system).nixfmt-tree or (import ./tests/nix/source-tools.nix { pkgs = pkgsOf system; })
        .nixfmt
      );

      templates = {
        microvm = {
          path = ./templates/microvm;
          description = "A flake with one microVM";
        };
        default = self.templates.microvm;
      };
    };
}
