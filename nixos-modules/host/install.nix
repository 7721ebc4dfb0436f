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
        "microvm"
      ];
      partOf = [ "microvm@${name}.service" ];
      wantedBy = [ "microvms.target" ];
      # Those are the command's to update.
      unitConfig = lib.optionalAttrs (isInstalledOnce vm) {
        ConditionPathExists = "!${cfg.stateDir}/${name}";
      };
      path = [ pkgs.coreutils ];
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
      };
      environment = {
        STATE = "${cfg.stateDir}/${name}";
        RUNNER = "${runnerOf vm}";
        # What `microvm update` builds from; without, the machine is the host's own, and `toplevel` says so.
        FLAKE =
          if vm.flake == null then
            ""
          else if vm.updateFlake != null then
            vm.updateFlake
          else
            "${vm.flake}";
      };
      script = ''
        mkdir -p "$STATE"
        chown microvm:kvm "$STATE"
        for directory in ${
          lib.escapeShellArgs (builtins.filter (source: !isAbsolute source) (sharedDirectories vm))
        }; do
          [ -e "$STATE/$directory" ] || install -d -m 0775 -o microvm -g kvm "$STATE/$directory"
        done
        # Renamed over the old link: there is a runner at any time.
        ln -sfnT "$RUNNER" "$STATE/current.new"
        mv -T "$STATE/current.new" "$STATE/current"
        if [ -n "$FLAKE" ]; then
          printf '%s' "$FLAKE" >"$STATE/flake"
          rm -f "$STATE/toplevel"
        else
          ln -sfnT "$RUNNER" "$STATE/toplevel"
          rm -f "$STATE/flake"
        fi
      '';
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
