# A host with two machines, one declared with the host and one of a flake: its units, as a directory.
{
  work,
  kernel,
  programs,
  stateDir,
}:
let
  lib = import ./evaluator;
  pkgs = import ./evaluator/packages.nix {
    inherit
      lib
      work
      kernel
      programs
      ;
  };
  guest = import ./evaluator/system.nix { inherit work kernel programs; };
  host =
    settings:
    lib.evalModules {
      specialArgs = { inherit pkgs; };
      modules = [
        ./evaluator/nixos.nix
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
  inherit (declared.config.microvm) autostart;
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
      }).config.assertions
  );
}
