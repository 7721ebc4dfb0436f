# install-microvm-NAME: creates the state directory of a declared machine and installs its runner there.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:
let
  cfg = config.microvm;
  isInstalledOnce = vm: vm.updateFlake != null;
  runnerOf = vm: vm.configuration.config.microvm.declaredRunner;
  # The host's store always exists.
  sharedDirectories =
    vm:
    builtins.filter (source: source != "/nix/store") (
      map (share: share.source) vm.configuration.config.microvm.shares
    );
  isAbsolute = lib.hasPrefix "/";
  # Quotes a word of a unit's command line, see systemd.service(5), "Command lines".
  escape =
    text:
    "\"${
      lib.replaceStrings
        [
          "\\"
          "\""
          "%"
          "$"
        ]
        [
          "\\\\"
          "\\\""
          "%%"
          "$$"
        ]
        text
    }\"";

  install = name: vm: {
    name = "install-microvm-${name}";
    value = {
      description = "Install microVM '${name}'";
      before = map (unit: "${unit}@${name}.service") [
        "microvm-tap-interfaces"
        "microvm-macvtap-interfaces"
        "microvm-pci-devices"
        "microvm-virtiofsd"
        "microvm-set-booted"
        "microvm-root"
        "microvm"
      ];
      partOf = [ "microvm@${name}.service" ];
      wantedBy = [ "microvms.target" ];
      # The command `microvm` updates these machines.
      unitConfig = lib.optionalAttrs (isInstalledOnce vm) {
        ConditionPathExists = "!${cfg.stateDir}/${name}";
      };
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        # `microvm update` builds the machine from its flake. A machine without a flake is part of the host's
        # configuration.
        ExecStart = lib.concatStringsSep " " (
          [
            "${lib.getExe cfg.host.package} unit install ${name} --runner ${runnerOf vm}"
          ]
          ++
            lib.optional (vm.flake != null)
              "--flake ${escape (if vm.updateFlake != null then vm.updateFlake else "${vm.flake}")}"
          ++ map (directory: "--directory ${escape directory}") (
            builtins.filter (source: !isAbsolute source) (sharedDirectories vm)
          )
        );
      };
      environment = {
        MICROVM_STATE_DIR = cfg.stateDir;
        MICROVM_FIRST_USER_ID = toString cfg.host.firstUserId;
      };
    };
  };

  # A changed runner restarts the machine, or is only reported.
  restarts = name: vm: {
    name = "microvm@${name}";
    value = {
      overrideStrategy = "asDropin";
      restartTriggers = [ (runnerOf vm) ];
      serviceConfig = {
        # The template disables restarts. The empty value resets that.
        X-RestartIfChanged = [
          ""
          vm.restartIfChanged
        ];
      }
      // lib.optionalAttrs ((runnerOf vm).supportsNotifySocket or false) { Type = "notify"; };
      # Without this, NixOS would override the template's PATH.
      path = lib.mkForce [ ];
    };
  };

  # A switch restarts a declared machine, or only installs its new runner.
  nextRunner =
    name: vm:
    "${lib.escapeShellArg name}) "
    + (if vm.restartIfChanged then "continue" else "next=${runnerOf vm}")
    + " ;;\n";
  # Names the machines that keep running with an older runner. It runs before new runners are installed.
  outdated = action: ''
    case "${action}" in
      switch | test)
        for state in ${lib.escapeShellArg cfg.stateDir}/*; do
          next=$(${pkgs.coreutils}/bin/readlink "$state/current") || continue
          booted=$(${pkgs.coreutils}/bin/readlink "$state/booted") || continue
          case "''${state##*/}" in
            ${builtins.concatStringsSep "" (
              lib.mapAttrsToList nextRunner (lib.filterAttrs (_: vm: !isInstalledOnce vm) cfg.vms)
            )}
          esac
          if [ "$booted" != "$next" ]; then
            echo "warning: microVM ''${state##*/} keeps running an older system; after the switch, run: microvm restart ''${state##*/}" >&2
          fi
        done
        ;;
    esac
  '';
in
{
  config = lib.mkIf cfg.host.enable {
    systemd.services = lib.mapAttrs' install cfg.vms // lib.mapAttrs' restarts cfg.vms;

    system = {
      # Machines that use the same name, interface, address, port or volume are detected when the host is built.
      checks = lib.optional (cfg.vms != { }) (
        pkgs.runCommand "microvm-machines-checked"
          {
            specs = lib.mapAttrsToList (_: vm: "${(runnerOf vm).machineSpec}") cfg.vms;
            preferLocalBuild = true;
            allowSubstitutes = false;
          }
          ''
            ${lib.getExe cfg.host.package} check $specs >"$out"
          ''
      );
    }
    # NixOS deprecates activation scripts, and does not run them with `system.nixos-init`.
    // (
      if options.system ? preSwitchChecks then
        { preSwitchChecks.microvm-outdated = outdated "\${2:-switch}"; }
      else
        # The variable is only set by a switch, not when the host boots.
        { activationScripts.microvm-outdated = outdated "\${NIXOS_ACTION:-}"; }
    );

    # passt isolates itself in its own namespaces.
    microvm.host.machines = lib.mapAttrs (
      _: vm:
      let
        inherit (vm.configuration.config) microvm;
      in
      {
        namespaces = lib.mkDefault (
          microvm.hypervisor == "cloud-hypervisor"
          && lib.any (interface: interface.type == "user") microvm.interfaces
        );
      }
    ) cfg.vms;

    microvm.autostart = builtins.attrNames (lib.filterAttrs (_: vm: vm.autostart) cfg.vms);

    # Creates missing directories that machines share. Existing ones are not changed.
    systemd.tmpfiles.rules =
      map
        (
          source:
          let
            quoted = lib.replaceStrings [ "\\" "\"" "%" ] [ "\\\\" "\\\"" "%%" ] source;
          in
          "d \"${quoted}\" :0775 :microvm :kvm -"
        )
        (
          lib.unique (
            lib.concatMap (vm: builtins.filter isAbsolute (sharedDirectories vm)) (builtins.attrValues cfg.vms)
          )
        );
  };
}
