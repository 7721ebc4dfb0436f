# Bringing a machine to a host, and a new system into a running machine, by SSH.
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

  # What is done on the other side is a script of its own, so that nothing of it is expanded on this side.
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

  onlyWithSharedStore =
    package:
    if cfg.storeOnDisk then
      throw "${hostName}: microvm.deploy: the store is a disk, which a running system cannot change; share the host's /nix/store, or use deploy.installOnHost and restart the machine"
    else if !config.services.openssh.enable then
      throw "${hostName}: microvm.deploy: needs services.openssh.enable = true in the guest"
    else
      package;

  values = {
    name = hostName;
    # The host builds it: only its derivation is copied.
    runner = builtins.unsafeDiscardOutputDependency cfg.declaredRunner.drvPath;
  };
  guestValues = {
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
      description = "A command that switches the running machine to this system: `USER@MACHINE [switch|boot|test]`. The machine must share the host's store.";
    };
    rebuild = lib.mkOption {
      type = lib.types.package;
      readOnly = true;
      description = "Both: `USER@HOST USER@MACHINE [--use-remote-sudo]`.";
    };
  };

  config.microvm.deploy = {
    installOnHost = command "install-on-host" values "install_on_host";
    sshSwitch = onlyWithSharedStore (command "ssh-switch" (values // guestValues) "ssh_switch");
    rebuild = onlyWithSharedStore (command "rebuild" (values // guestValues) "rebuild");
  };
}
