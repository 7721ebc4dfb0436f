# install-microvm-NAME: creates the state directory of a declared machine and installs its runner there.
{
  config,
  lib,
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
in
{
  config = lib.mkIf cfg.host.enable {
    systemd.services = lib.mapAttrs' install cfg.vms // lib.mapAttrs' restarts cfg.vms;

    # Machines that use the same name, interface, address, port or volume are detected when the host is built.
    system.checks = lib.optional (cfg.vms != { }) (
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

    system.activationScripts.microvm-outdated = lib.mkIf (cfg.vms != { }) ''
      for state in ${cfg.stateDir}/*; do
        [ -e "$state/booted" ] && [ -e "$state/current" ] || continue
        [ "$(readlink "$state/booted")" = "$(readlink "$state/current")" ] ||
          echo "warning: microVM ''${state##*/} runs an older system than it has; microvm restart ''${state##*/}" >&2
      done
    '';
  };
}
