# Scripts that install a machine on a host, and a new system in a running machine, over SSH.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.microvm;
  inherit (config.networking) hostName;
  plain = path: builtins.unsafeDiscardStringContext "${path}";

  # The commands for the other side are in a separate script, so that the local shell does not expand them.
  command =
    name: values: script:
    pkgs.writeShellScriptBin "microvm-${name}-${hostName}" ''
      set -euo pipefail
      ${lib.concatMapStrings (variable: "${variable}=${lib.escapeShellArg values.${variable}}\n") (
        builtins.attrNames values
      )}
      ${builtins.readFile ./deploy.sh}
      ${script} "$@"
    '';

  # The reason why a running machine cannot switch to the new system; null if it can.
  obstacle =
    if cfg.storeOnDisk then
      "the store is a disk, which a running system cannot change; share the host's /nix/store, or use deploy.rebuild, which restarts the machine"
    else if !config.services.openssh.enable then
      "needs services.openssh.enable = true in the guest"
    else if !config.system.switch.enable then
      "needs system.switch.enable = true in the guest"
    else
      null;

  values = {
    name = hostName;
    # Only the derivation is copied, because the host builds it.
    runner = builtins.unsafeDiscardOutputDependency cfg.declaredRunner.drvPath;
  };
  # Without a system, the machine is restarted.
  restarting = {
    system = "";
    registration = "";
    closureOnly = "";
  };
  switching = {
    closureOnly = lib.optionalString (lib.any (share: share.closureOnly) cfg.shares) "1";
    system = plain config.system.build.toplevel;
    registration = lib.optionalString cfg.registerClosure "${plain cfg.closureRegistration}/registration";
  };
in
{
  options.microvm.deploy = {
    installOnHost = lib.mkOption {
      type = lib.types.package;
      readOnly = true;
      description = "A command that builds the machine on a host and installs it there: `USER@HOST [--use-remote-sudo]`.";
    };
    sshSwitch = lib.mkOption {
      type = lib.types.package;
      readOnly = true;
      description = "A command that switches the running machine to this system: `USER@MACHINE [--use-remote-sudo] [switch|boot|test]`. The machine must share the host's store.";
    };
    rebuild = lib.mkOption {
      type = lib.types.package;
      readOnly = true;
      description = "A command that installs the machine on its host, and then switches the running machine: `USER@HOST USER@MACHINE [--use-remote-sudo]`. A machine that cannot be switched is restarted by its host.";
    };
  };

  config.microvm.deploy = {
    installOnHost = command "install-on-host" values "install_on_host";
    sshSwitch =
      if obstacle == null then
        command "ssh-switch" (values // switching) "ssh_switch"
      else
        throw "${hostName}: microvm.deploy.sshSwitch: ${obstacle}";
    rebuild = command "rebuild" (
      values // (if obstacle == null then switching else restarting)
    ) "rebuild";
  };
}
