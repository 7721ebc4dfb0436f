# The outputs of a configuration: the machine spec and the runner packages.
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
      description = "The content of `share/microvm/machine.json`; `docs/machine-spec.md` describes its fields.";
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
      description = "The package of `microvm`, which the scripts of the runner call.";
    };

    preStart = mkOption {
      type = types.lines;
      default = "";
      description = "Shell commands to run in the state directory before the hypervisor starts.";
    };

    extraArgsScript = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "A shell command that runs at every start and prints additional arguments for the hypervisor, on one line. They are checked and merged like `extraArgs`.";
    };

    binScripts = mkOption {
      type = types.attrsOf types.lines;
      default = { };
      description = ''
        Shell scripts to install as `bin/NAME` in the runner. To extend a script that the runner already has (`microvm-run`,
        `tap-up`...), use `lib.mkBefore` and `lib.mkAfter`.
      '';
    };

    prettyProcnames = mkOption {
      type = types.bool;
      default = true;
      description = "Whether the process is named `microvm@NAME` in process lists.";
    };

    systemSymlink = mkOption {
      type = types.bool;
      default = !cfg.storeOnDisk || cfg.storeDiskBuild == "host";
      defaultText = "whether the host needs the system's store paths to start the machine";
      description = "Whether the runner has a link `share/microvm/system` to the system, which keeps the system's closure on the host.";
    };

    registerWithMachined = mkOption {
      type = types.bool;
      default = false;
      description = "Whether the host registers the machine with systemd-machined, for `machinectl`.";
    };
  };
}
