# cluster.json, and the configurations that `microvm cluster` generates from it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.microvm.cluster;
  microvm = lib.getExe config.microvm.host.package;
in
{
  config.microvm.cluster = lib.mkIf cfg.enable {
    file =
      pkgs.runCommand "cluster.json"
        {
          json = builtins.toJSON {
            version = 1;
            inherit (cfg)
              authKeyFile
              bridges
              cache
              migration
              name
              nodes
              sharedPaths
              totem
              ;
            qdevice = if cfg.qdevice.host == null then null else { inherit (cfg.qdevice) algorithm host; };
            fencing = { inherit (cfg.fencing) acceptDataLoss action devices; };
            stateDirectory = config.microvm.stateDir;
            machines = lib.mapAttrs (
              _: machine:
              removeAttrs machine [
                "_module"
                "flake"
              ]
              // {
                runner = "${machine.runner}";
              }
            ) cfg.machines;
          };
          passAsFile = [ "json" ];
          preferLocalBuild = true;
          allowSubstitutes = false;
        }
        ''
          cp "$jsonPath" "$out"
        '';
    # Problems of the machines and of their placement are found here: the launcher reads the machine specs.
    configuration =
      pkgs.runCommand "microvm-cluster"
        {
          nativeBuildInputs = [ config.services.pacemaker.package ];
          inherit (cfg) file;
          preferLocalBuild = true;
          allowSubstitutes = false;
        }
        ''
          mkdir "$out"
          ${microvm} cluster check "$file" >"$out/placement"
          ${microvm} cluster generate corosync "$file" >"$out/corosync.conf"
          ${microvm} cluster generate cib "$file" >"$out/cib.xml"
        '';
  };
}
