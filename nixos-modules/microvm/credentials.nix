# Credentials in stage 1. With qemu, systemd reads them from the firmware configuration. For all other hypervisors the
# launcher adds them to the initrd, and stage 1 moves them to where the guest's systemd expects credentials from an
# initrd.
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
      # Future versions of NixOS will not have this script.
      lib.optionalAttrs (options.boot.initrd ? postMountCommands) {
        # After the root is mounted, stage 1 no longer changes /run, which stage 2 keeps.
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
