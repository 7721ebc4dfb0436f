# install-microvm-NAME: the state directory of a declared machine, and its runner in it.
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
  # The host's store is there.
  sharedDirectories =
    vm:
    builtins.filter (source: source != "/nix/store") (
      map (share: share.source) vm.configuration.config.microvm.shares
    );
  isAbsolute = lib.hasPrefix "/";
  # A word of a unit's command line: systemd.service(5), "Command lines".
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
      # Those are the command's to update.
      unitConfig = lib.optionalAttrs (isInstalledOnce vm) {
        ConditionPathExists = "!${cfg.stateDir}/${name}";
      };
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        # A flake is what `microvm update` builds from; without, the machine is the host's own.
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

  # A changed runner restarts the machine, or is only told.
  restarts = name: vm: {
    name = "microvm@${name}";
    value = {
      overrideStrategy = "asDropin";
      restartTriggers = [ (runnerOf vm) ];
      serviceConfig = {
        # The template says never; the empty word takes that back.
        X-RestartIfChanged = [
          ""
          vm.restartIfChanged
        ];
      }
      // lib.optionalAttrs ((runnerOf vm).supportsNotifySocket or false) { Type = "notify"; };
      # The template's, not another one.
      path = lib.mkForce [ ];
    };
  };
in
{
  config = lib.mkIf cfg.host.enable {
    systemd.services = lib.mapAttrs' install cfg.vms // lib.mapAttrs' restarts cfg.vms;

    # Two machines that want the same name, interface, address, port or volume are found when the host is built.
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

    # passt makes itself a jail of namespaces.
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

    # Directories that machines share, where there are none yet; those that are there stay as they are.
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
