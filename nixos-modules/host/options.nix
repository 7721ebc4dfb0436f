# The host's options.
{ lib, pkgs, ... }:
let
  inherit (lib) literalExpression mkOption types;

  # The NixOS configuration of a machine that is given as modules.
  evaluate =
    vm: name: definitions:
    import (vm.nixpkgs + "/nixos/lib/eval-config.nix") {
      inherit (vm) specialArgs;
      prefix = [
        "microvm"
        "vms"
        name
        "config"
      ];
      system = null;
      modules = [
        ../microvm
        {
          networking.hostName = lib.mkDefault name;
          microvm.vmHostPackages = lib.mkDefault pkgs;
          nixpkgs =
            if vm.pkgs != null then
              { pkgs = lib.mkDefault vm.pkgs; }
            else
              { hostPlatform = lib.mkDefault pkgs.stdenv.hostPlatform.system; };
        }
      ]
      ++ map (definition: {
        _file = definition.file;
        imports = [ definition.value ];
      }) definitions
      ++ vm.extraModules;
    };

  vm =
    { config, name, ... }:
    {
      options = {
        config = mkOption {
          # Evaluated where it is defined, so that the host's modules can read `vms.NAME.config.config`.
          type = types.nullOr (
            lib.mkOptionType {
              name = "module";
              merge = _: evaluate config name;
            }
          );
          default = null;
          description = ''
            The machine's NixOS configuration. It needs no flake, and an update is a switch of the host. What is read from
            here is the evaluated configuration.
          '';
        };
        evaluatedConfig = mkOption {
          type = types.nullOr types.raw;
          default = null;
          description = "A NixOS configuration that is evaluated already.";
        };
        flake = mkOption {
          type = types.nullOr types.raw;
          default = null;
          description = "A flake whose `nixosConfigurations.NAME` is the machine.";
        };
        updateFlake = mkOption {
          type = types.nullOr types.str;
          default = null;
          example = "git+https://example.org/machines";
          description = "Where `microvm update` gets the flake from. With it the host only sees to it that the machine is there.";
        };
        nixpkgs = mkOption {
          type = types.path;
          default = if config.pkgs == null then pkgs.path else config.pkgs.path;
          defaultText = literalExpression "pkgs.path";
          description = "The Nixpkgs that evaluates `config`.";
        };
        pkgs = mkOption {
          type = types.nullOr types.raw;
          default = pkgs;
          defaultText = literalExpression "pkgs";
          description = "The packages of `config`; null leaves them to its own `nixpkgs.*` options.";
        };
        specialArgs = mkOption {
          type = types.attrsOf types.raw;
          default = { };
          description = "Further arguments of the modules of `config`.";
        };
        extraModules = mkOption {
          type = types.listOf types.raw;
          default = [ ];
          description = "Further modules beside `config`.";
        };
        autostart = mkOption {
          type = types.bool;
          default = true;
          description = "Whether it starts with the host.";
        };
        restartIfChanged = mkOption {
          type = types.bool;
          default = config.config != null;
          defaultText = "whether the machine is declared with `config`";
          description = "Whether a switch of the host restarts it when its runner changed.";
        };
        configuration = mkOption {
          type = types.raw;
          internal = true;
          readOnly = true;
          description = "The machine's evaluated configuration, wherever it comes from.";
        };
      };
      config.configuration =
        if config.config != null then
          config.config
        else if config.evaluatedConfig != null then
          config.evaluatedConfig
        else
          config.flake.nixosConfigurations.${name}
            or (throw "microvm.vms.${name}.flake: has no nixosConfigurations.${name}");
    };
in
{
  options.microvm = {
    host = {
      enable = mkOption {
        type = types.bool;
        default = true;
        description = "Whether this host runs microVMs.";
      };
      package = mkOption {
        type = types.package;
        default = pkgs.callPackage ../../package.nix { crate = "launcher"; };
        defaultText = "microvm, built from this project";
        description = "The package of the command `microvm`.";
      };
      startupTimeout = mkOption {
        type = types.ints.positive;
        default = 150;
        description = "How many seconds a machine may take to start, and to stop.";
      };
      useNotifySockets = mkOption {
        type = types.bool;
        default = false;
        description = "Whether a machine counts as started only when its guest says so over vsock.";
      };
      bridgeHelper.enable = mkOption {
        type = types.bool;
        default = true;
        description = "Whether interfaces of type `bridge` work: qemu's helper may then make taps, whoever starts it.";
      };
      imageCache = {
        package = mkOption {
          type = types.package;
          default = pkgs.callPackage ../../package.nix { crate = "imagebuilder"; };
          defaultText = "microvm-image, built from this project";
          description = "The package of `microvm-image`.";
        };
        directory = mkOption {
          type = types.path;
          default = "/var/cache/microvm-image";
          description = "Where the blocks of store disks that are made on this host are kept.";
        };
        maxSize = mkOption {
          type = types.str;
          default = "20G";
          description = "Size to which the cache is trimmed, the longest unused first.";
        };
        gcDates = mkOption {
          type = types.str;
          default = "weekly";
          description = "When it is trimmed, as in systemd.time(7).";
        };
      };
    };

    stateDir = mkOption {
      type = types.path;
      default = "/var/lib/microvms";
      description = "Where the machines' state directories are.";
    };

    autostart = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = ''
        Machines that start with the host. Those of `microvm.vms` with `autostart` are added to it; those that
        `microvm create` made can be.
      '';
    };

    vms = mkOption {
      type = types.attrsOf (types.submodule vm);
      default = { };
      description = "The machines that are declared with the host.";
    };
  };
}
