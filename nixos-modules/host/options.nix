# The options of hosts.
{ lib, pkgs, ... }:
let
  inherit (lib) literalExpression mkOption types;

  # The NixOS configuration of a machine that is declared with modules.
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

  machine = {
    options = {
      readablePaths = mkOption {
        type = types.listOf types.path;
        default = [ ];
        description = "Files and directories of the host that the machine's hypervisor and scripts may read.";
      };
      writablePaths = mkOption {
        type = types.listOf types.path;
        default = [ ];
        description = "Files and directories of the host that the machine's hypervisor and scripts may also write to, if the machine's user has permission.";
      };
      namespaces = mkOption {
        type = types.bool;
        default = false;
        description = "Whether the machine may create namespaces, as passt does for user networking with cloud-hypervisor.";
      };
    };
  };

  vm =
    { config, name, ... }:
    {
      options = {
        config = mkOption {
          # Evaluated where it is defined, so that modules of the host can read `vms.NAME.config.config`.
          type = types.nullOr (
            lib.mkOptionType {
              name = "module";
              merge = _: evaluate config name;
            }
          );
          default = null;
          description = ''
            The NixOS configuration of the machine. It requires no flake; `nixos-rebuild switch` on the host updates it. When you
            read this option, you get the evaluated configuration.
          '';
        };
        evaluatedConfig = mkOption {
          type = types.nullOr types.raw;
          default = null;
          description = "An already evaluated NixOS configuration.";
        };
        flake = mkOption {
          type = types.nullOr types.raw;
          default = null;
          description = "A flake that contains the machine as `nixosConfigurations.NAME`.";
        };
        updateFlake = mkOption {
          type = types.nullOr types.str;
          default = null;
          example = "git+https://example.org/machines";
          description = "The flake for `microvm update`. If it is set, the host installs the machine but does not update it.";
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
          description = "The packages for `config`; with null, its `nixpkgs.*` options determine them.";
        };
        specialArgs = mkOption {
          type = types.attrsOf types.raw;
          default = { };
          description = "Additional arguments for the modules of `config`.";
        };
        extraModules = mkOption {
          type = types.listOf types.raw;
          default = [ ];
          description = "Additional modules of the machine.";
        };
        autostart = mkOption {
          type = types.bool;
          default = true;
          description = "Whether the machine starts with the host.";
        };
        restartIfChanged = mkOption {
          type = types.bool;
          default = config.config != null;
          defaultText = "whether the machine is declared with `config`";
          description = "Whether `nixos-rebuild switch` on the host restarts the machine if its runner changed.";
        };
        configuration = mkOption {
          type = types.raw;
          internal = true;
          readOnly = true;
          description = "The evaluated configuration of the machine.";
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
        description = "The time limit in seconds for starting a machine, and for stopping it. The guest may use two thirds of it to shut down.";
      };
      suspendOnShutdown = mkOption {
        type = types.either types.bool (types.listOf types.str);
        default = false;
        example = [ "web" ];
        description = ''
          Whether machines are suspended instead of shut down when the host shuts down or reboots: all of them, or only those
          listed. If a machine's runner or host has changed by its next start, the machine boots and finds its volumes as after
          a power cut. A machine that cannot be suspended is shut down.
        '';
      };
      useNotifySockets = mkOption {
        type = types.bool;
        default = false;
        description = "Whether a machine counts as started only when its guest reports over vsock that it has booted.";
      };
      bridgeHelper.enable = mkOption {
        type = types.bool;
        default = true;
        description = "Whether to support interfaces of type `bridge`. This allows qemu's helper to create taps for any user.";
      };
      firstUserId = mkOption {
        type = types.ints.between 1000 4000000000;
        default = 1879048192;
        description = ''
          The first of about a million user ids, of which each machine gets one. In systemd's list of user ids, the default
          range is unused.
        '';
      };
      readablePaths = mkOption {
        type = types.listOf types.path;
        default = [ ];
        description = "Files and directories of the host, in addition to the store, that every machine's hypervisor may read.";
      };
      machines = mkOption {
        type = types.attrsOf (types.submodule machine);
        default = { };
        example = literalExpression ''{ web.writablePaths = [ "/srv/web" ]; }'';
        description = ''
          Additional permissions of individual machines on this host, whether they are declared here or created by
          `microvm create`.
        '';
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
          description = ''
            The cache of the user `microvm`, for store disks that are built on this host. The service has its own directory,
            `/var/cache/microvm-image-service`.
          '';
        };
        service = {
          enable = mkOption {
            type = types.bool;
            default = true;
            description = ''
              Whether a service compresses store paths and keeps the result for all builds of this host. The service starts
              when a build needs it and stops after five minutes without clients.
            '';
          };
          sandbox = mkOption {
            type = types.bool;
            default = true;
            description = ''
              Whether builds in Nix's sandbox can use the service, through `nix.settings.extra-sandbox-paths`. Without it,
              they build the same store disks but take longer.
            '';
          };
        };
        maxSize = mkOption {
          type = types.str;
          default = "20G";
          description = "The size to which each of the two caches is trimmed; the least recently used entries are removed first.";
        };
        gcDates = mkOption {
          type = types.str;
          default = "weekly";
          description = "When the cache is trimmed, in the format of systemd.time(7).";
        };
      };
    };

    stateDir = mkOption {
      type = types.path;
      default = "/var/lib/microvms";
      description = "The directory that contains the state directories of the machines.";
    };

    autostart = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = ''
        The machines that start with the host. Machines in `microvm.vms` with `autostart` are added to it. You can also add
        machines created with `microvm create`.
      '';
    };

    vms = mkOption {
      type = types.attrsOf (types.submodule vm);
      default = { };
      description = "The machines that are declared in the configuration of the host.";
    };
  };
}
