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
  # `./secret` is a path in the store if the configuration is in a flake; otherwise Nix would copy it there.
  inStore = file: builtins.isPath file || lib.hasPrefix "${builtins.storeDir}/" (toString file);
  refusal = name: {
    assertion = false;
    message = "${config.networking.hostName}: microvm.credentialFiles.${name}: the file would be in the Nix store, where every user of the host can read it; set the option to the path of a file on the host, as a string: \"/run/secrets/${name}\"";
  };
in
{
  config = lib.mkIf (cfg.guest.enable && cfg.credentialFiles != { }) {
    assertions = map refusal (
      builtins.filter (name: inStore cfg.credentialFiles.${name}) (builtins.attrNames cfg.credentialFiles)
    );

    boot.initrd = lib.mkIf (cfg.hypervisor != "qemu") (
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
      }
    );
  };
}
