# Evaluates a module of the manual with the minimal evaluator of the tests: the machine spec, the guest's file systems
# and failed assertions. The examples of docs/ that begin with a Nix module use it.
#   nix-instantiate --eval --strict --json manual/spec.nix --arg module ./FILE.nix --argstr fixtures DIR
{ module, fixtures }:
let
  lib = import ../tests/nix/evaluator;
  configuration = import ../tests/nix/evaluator/system.nix {
    work = /. + "${fixtures}/work/small";
    kernel = /. + "${fixtures}/work/kernel";
    programs = ../lib/hypervisors.nix;
    inherit module;
  };
in
{
  spec = configuration.config.microvm.machineSpec;
  refused = map (assertion: assertion.message) (
    builtins.filter (assertion: !assertion.assertion) configuration.config.assertions
  );
  warnings = configuration.config.warnings;
  mounts = lib.mapAttrs (_: fileSystem: {
    inherit (fileSystem) device fsType options;
  }) configuration.config.fileSystems;
}
