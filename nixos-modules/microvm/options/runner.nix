# What is made of the configuration: the machine spec and the runner packages.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.microvm;
in
{
  options.microvm = {
    machineSpec = mkOption {
      type = types.attrsOf types.anything;
      readOnly = true;
      description = "The machine as `share/microvm/machine.json` has it; `docs/machine-spec.md` tells its fields.";
    };

    runner = mkOption {
      type = types.lazyAttrsOf types.package;
      defaultText = "one for each hypervisor";
      description = "The runner of each hypervisor.";
    };

    declaredRunner = mkOption {
      type = types.package;
      default = cfg.runner.${cfg.hypervisor};
      defaultText = lib.literalExpression "config.microvm.runner.\${config.microvm.hypervisor}";
      description = "The runner of `microvm.hypervisor`.";
    };

    launcher.package = mkOption {
      type = types.package;
      default = cfg.vmHostPackages.callPackage ../../../package.nix { crate = "launcher"; };
      defaultText = "microvm, built from this project with the host's packages";
      description = "The package of `microvm`, which the runner's scripts call.";
    };

    preStart = mkOption {
      type = types.lines;
      default = "";
      description = "Shell commands to run before the hypervisor, in the state directory.";
    };

    extraArgsScript = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "A shell command that prints one line of further hypervisor arguments at every start.";
    };

    binScripts = mkOption {
      type = types.attrsOf types.lines;
      default = { };
      description = ''
        Shell scripts that become `bin/NAME` of the runner. Those that the runner has anyway (`microvm-run`, `tap-up`...)
        can be added to with `lib.mkBefore` and `lib.mkAfter`.
      '';
    };

    prettyProcnames = mkOption {
      type = types.bool;
      default = true;
      description = "Whether the process is called `microvm@NAME` in process lists.";
    };

    systemSymlink = mkOption {
      type = types.bool;
      default = !cfg.storeOnDisk || cfg.storeDiskBuild == "host";
      defaultText = "whether the host needs the system's store paths to start the machine";
      description = "Whether the runner has a link `share/microvm/system` to the system, which keeps its closure on the host.";
    };

    registerWithMachined = mkOption {
      type = types.bool;
      default = false;
      description = "Whether the host registers the machine with systemd-machined, for `machinectl`.";
    };
  };
}
