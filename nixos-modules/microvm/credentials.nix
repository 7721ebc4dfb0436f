# Credentials in stage 1: all hypervisors but qemu, whose firmware configuration systemd reads by itself, get them in an
# initrd that the launcher puts together. The guest's systemd takes them from where an initrd leaves them.
{
  config,
  lib,
  options,
  ...
}:
let
  cfg = config.microvm;
  inherit (config.boot) initrd;
  handOver = builtins.readFile ./hand-over-credentials.sh;
in
{
  config = lib.mkIf (cfg.guest.enable && cfg.credentialFiles != { } && cfg.hypervisor != "qemu") {
    boot.initrd =
      # NixOS is going to have no script any more.
      lib.optionalAttrs (options.boot.initrd ? postMountCommands) {
        # After the root is mounted nothing of stage 1 touches /run any more, which goes over to stage 2 as it is.
        postMountCommands = lib.mkIf (!initrd.systemd.enable) handOver;
      }
      // lib.optionalAttrs (options.boot.initrd.systemd ? services) {
        systemd.services.microvm-credentials = lib.mkIf initrd.systemd.enable {
          description = "Credentials of the microVM";
          wantedBy = [ "initrd.target" ];
          before = [
            "initrd.target"
            "initrd-cleanup.service"
          ];
          unitConfig = {
            DefaultDependencies = false;
            ConditionPathIsDirectory = "/microvm-credentials";
          };
          serviceConfig.Type = "oneshot";
          script = handOver;
        };
      };
  };
}
