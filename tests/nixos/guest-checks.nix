# The checks in a guest: those of every boot, and rig.checks of a single scenario. They report to run-guest.sh with
# lines `RIG: ...` on the console.
{
  config,
  lib,
  pkgs,
  ...
}:
{
  imports = [ ./guest-settings.nix ];
  options.rig.checks = lib.mkOption {
    type = lib.types.lines;
    default = "";
    description = "Shell commands that call `check WHAT COMMAND...`, `same WHAT FOUND EXPECTED` and `value NAME TEXT...`.";
  };
  config = {
    # The rig uses the console.
    systemd.services."serial-getty@ttyS0".enable = false;
    systemd.services.rig-checks = {
      wantedBy = [ "multi-user.target" ];
      after = [ "multi-user.target" ];
      unitConfig.DefaultDependencies = false;
      path = [
        config.nix.package
        config.systemd.package
        pkgs.util-linux
        pkgs.iproute2
        pkgs.iputils
        pkgs.gnugrep
        pkgs.gawk
        pkgs.kmod
        pkgs.bash
        pkgs.curl
      ];
      environment.ARTEFACTS = ./artefacts.txt;
      environment.NIX_CONFIG = "experimental-features = nix-command";
      serviceConfig.Type = "simple";
      script = ''
        exec 3<>/dev/ttyS0
        exec > >(sed -u 's/^/RIG: /' >&3) 2>&1
      ''
      + builtins.readFile ./checks.sh
      + builtins.readFile ./guest-checks.sh
      + config.rig.checks
      + "\nfinish\n";
    };
  };
}
