# A host of the rig. It runs rig.checks when it has booted, and writes their output to /out/printed, for run-host.sh.
{
  config,
  lib,
  pkgs,
  ...
}:
{
  options.rig.checks = lib.mkOption {
    type = lib.types.path;
    description = "The shell script, after host-checks.sh.";
  };
  config = {
    microvm.host.package = pkgs.microvm-test-launcher;
    microvm.host.imageCache.package = pkgs.microvm-test-imagebuilder;
    systemd.services.rig-checks = {
      wantedBy = [ "multi-user.target" ];
      after = [ "multi-user.target" ];
      unitConfig.DefaultDependencies = false;
      # A switch must not end the checks, which run the switch.
      restartIfChanged = false;
      stopIfChanged = false;
      path = [
        config.nix.package
        config.systemd.package
        pkgs.util-linux
        pkgs.iproute2
        pkgs.gnugrep
        pkgs.gawk
        pkgs.gnused
        pkgs.procps
        pkgs.jq
        pkgs.diffutils
        pkgs.bash
        "/run/current-system/sw"
      ];
      environment.ARTEFACTS = ./artefacts.txt;
      serviceConfig.Type = "simple";
      script = ''
        exec >>/out/printed 2>&1
      ''
      + builtins.readFile ./checks.sh
      + builtins.readFile ./host-checks.sh
      + builtins.readFile config.rig.checks
      + ''

        journal_errors
        echo end
        systemctl poweroff
      '';
    };
  };
}
