# Builds the configurations of a cluster, as the build of its hosts does: the launcher checks the machines, and Pacemaker's
# scheduler places them.
{
  work,
  kernel,
  programs,
}:
let
  lib = import ./evaluator;
  pkgs = import ./evaluator/packages.nix { inherit work kernel programs; };
  guest =
    name: mac:
    import ./evaluator/system.nix {
      inherit work kernel programs;
      module = {
        networking.hostName = name;
        # Without a store disk, which would be built.
        microvm.shares = [
          {
            tag = "ro-store";
            source = "/nix/store";
            mountPoint = "/nix/.ro-store";
          }
        ];
        microvm.interfaces = [
          {
            type = "tap";
            id = "vm-${name}";
            inherit mac;
          }
        ];
      };
    };
  names = [
    "host1"
    "host2"
    "host3"
  ];
  cluster =
    machines:
    (lib.evalModules {
      specialArgs = { inherit pkgs; };
      modules = [
        ./evaluator/nixos.nix
        ../../nixos-modules/cluster
        {
          networking.hostName = "host1";
          microvm.host.package = pkgs.microvm;
          microvm.host.imageCache.package = pkgs.microvm-image;
          microvm.cluster = {
            name = "rack";
            authKeyFile = "/run/secrets/corosync";
            nodes = builtins.listToAttrs (
              lib.imap0 (index: name: {
                inherit name;
                value = {
                  id = index + 1;
                  addresses = [ "10.0.0.${toString (index + 1)}" ];
                  memory = 2048;
                };
              }) names
            );
            fencing.devices.power = {
              agent = "fence_apc";
              targets = names;
            };
            machines = builtins.mapAttrs (_: machine: {
              runner = machine.config.microvm.declaredRunner;
            }) machines;
          };
        }
      ];
    }).config.microvm.cluster.configuration;
in
{
  configuration = cluster {
    web = guest "web" "02:00:00:00:00:01";
    db = guest "db" "02:00:00:00:00:02";
  };
  clash = cluster {
    web = guest "web" "02:00:00:00:00:01";
    db = guest "db" "02:00:00:00:00:01";
  };
}
