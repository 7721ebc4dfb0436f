# Builds the units of a host with two machines, one declared with modules and one from a flake, as a directory.
{
  work,
  kernel,
  programs,
  stateDir,
}:
let
  lib = import ./evaluator;
  pkgs = import ./evaluator/packages.nix { inherit work kernel programs; };
  guestOf =
    module:
    import ./evaluator/system.nix {
      inherit
        work
        kernel
        programs
        module
        ;
    };
  guest = guestOf { };
  sharing = guestOf {
    microvm = {
      vsock.cid = 3;
      vsock.notify = true;
      shares =
        map
          (
            source:
            let
              tag = builtins.substring 0 8 (builtins.hashString "sha256" source);
            in
            {
              proto = "virtiofs";
              inherit tag source;
              mountPoint = "/srv/${tag}";
            }
          )
          [
            "/nix/store"
            "/srv/100% of it"
            "home"
          ];
    };
  };
  host = hostOf ./evaluator/nixos.nix;
  hostOf =
    nixos: settings:
    lib.evalModules {
      specialArgs = { inherit pkgs; };
      modules = [
        nixos
        ../../nixos-modules/host
        {
          microvm = {
            inherit stateDir;
            host.package = pkgs.microvm;
            host.imageCache.package = pkgs.microvm-image;
          };
        }
        { microvm = settings; }
      ];
    };
  flake = {
    outPath = "/nix/store/00000000000000000000000000000000-source";
    nixosConfigurations.imperative = guest;
  };
  declared = host {
    vms.declared.evaluatedConfig = guest;
    vms.imperative = {
      inherit flake;
      updateFlake = "git+https://example.org/machines";
      autostart = false;
    };
  };
in
{
  units = import ./evaluator/units.nix { inherit lib pkgs; } declared.config.systemd;
  # Two machines use the same tap, so the build of the host fails.
  clash =
    let
      tapped =
        name:
        guestOf {
          networking.hostName = name;
          microvm.interfaces = [
            {
              type = "tap";
              id = "vm-same";
              mac = "02:00:00:00:00:0${name}";
            }
          ];
        };
    in
    builtins.head
      (host {
        vms.first.evaluatedConfig = tapped "1";
        vms.second.evaluatedConfig = tapped "2";
      }).config.system.checks;
  # The same check succeeds for machines without conflicts.
  checked =
    let
      named = name: { evaluatedConfig = guestOf { networking.hostName = name; }; };
    in
    builtins.head
      (host {
        vms.first = named "first";
        vms.second = named "second";
      }).config.system.checks;
  # A host whose package of the command contains only the program.
  command = builtins.head declared.config.environment.systemPackages;
  # What a switch runs: on NixOS 24.05, and on newer releases.
  outdated =
    let
      vms = {
        restarted = {
          evaluatedConfig = guest;
          restartIfChanged = true;
        };
        kept.evaluatedConfig = guest;
        own = {
          inherit flake;
          updateFlake = "path:/srv";
        };
      };
      flake.nixosConfigurations.own = guest;
      flake.outPath = "/nix/store/00000000000000000000000000000000-source";
    in
    {
      runner = "${guest.config.microvm.declaredRunner}";
      older = (host { inherit vms; }).config.system.activationScripts.microvm-outdated;
      newer =
        (hostOf ./evaluator/newer-nixos.nix { inherit vms; })
        .config.system.preSwitchChecks.microvm-outdated;
    };
  # The results for the host's machines besides the units; host-facts.json has the expected values.
  facts =
    let
      inherit
        ((host {
          vms.quick.evaluatedConfig = guest;
          vms.sharing.evaluatedConfig = sharing;
          vms.sleeping = {
            evaluatedConfig = guest;
            autostart = false;
          };
          autostart = [ "by-hand" ];
        }).config
        )
        microvm
        systemd
        ;
      types = lib.mapAttrs (_: unit: unit.serviceConfig.Type or "the template's") (
        lib.filterAttrs (name: _: lib.hasPrefix "microvm@" name && name != "microvm@") systemd.services
      );
    in
    {
      inherit (microvm) autostart;
      inherit types;
      directories = builtins.filter (lib.hasInfix "/srv") systemd.tmpfiles.rules;
      # The paths that builds in Nix's sandbox see in addition to the store.
      sandboxPaths =
        map
          (
            service:
            (host { host.imageCache = { inherit service; }; }).config.nix.settings.extra-sandbox-paths or [ ]
          )
          [
            { }
            { sandbox = false; }
            { enable = false; }
          ];
      # How long a guest has to shut down, by the timeout of its service.
      stopTimeouts =
        map
          (
            startupTimeout:
            let
              inherit (host { host = { inherit startupTimeout; }; }) config;
              service = config.systemd.services."microvm@".serviceConfig;
              lastWord = command: builtins.head (builtins.match ".* ([^ ]*)" command);
            in
            map lastWord ([ service.ExecStart ] ++ service.ExecStop) ++ [ service.TimeoutSec ]
          )
          [
            150
            45
          ];
      inStateDirectory = lib.hasInfix "--directory \"home\"" systemd.services.install-microvm-sharing.serviceConfig.ExecStart;
    };
  refusals = map (assertion: assertion.message) (
    builtins.filter (assertion: !assertion.assertion)
      (host {
        vms.both = {
          inherit flake;
          evaluatedConfig = guest;
        };
        vms.none = { };
        vms.update = {
          evaluatedConfig = guest;
          updateFlake = "path:/srv";
        };
        vms."-x".evaluatedConfig = guest;
        vms.web.evaluatedConfig = guest;
        vms.booted-web.evaluatedConfig = guest;
        vms.xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.evaluatedConfig = guest;
      }).config.assertions
  );
}
