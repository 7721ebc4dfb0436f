# A host of the cluster of systemd.sh: what the NixOS module of a cluster puts on it.
{
  work,
  kernel,
  programs,
  # the initrd of the machine
  initrd,
}:
let
  lib = import ../nix/evaluator;
  pkgs = import ../nix/evaluator/packages.nix { inherit work kernel programs; };

  initrdInStore = builtins.path {
    path = initrd;
    name = "initrd-of-the-rig";
  };
  web = import ../nix/evaluator/system.nix {
    inherit work kernel programs;
    module = {
      networking.hostName = "web";
      microvm = {
        hypervisor = "qemu";
        qemu.accelerator = "tcg";
        mem = 128;
        balloon = false;
        initrdPath = initrdInStore;
        interfaces = [
          {
            type = "bridge";
            id = "vm-web";
            bridge = "br0";
            mac = "02:00:00:00:00:50";
          }
        ];
        volumes = [
          {
            image = "/shared/var.img";
            autoCreate = false;
            size = 64;
          }
        ];
      };
    };
  };

  nodes = [
    "n1"
    "n2"
    "n3"
  ];
  host = lib.evalModules {
    specialArgs = { inherit pkgs; };
    modules = [
      ../nix/evaluator/nixos.nix
      ../../nixos-modules/cluster
      {
        # Nothing of what is used here depends on it.
        networking.hostName = "n1";
        microvm.host.package = pkgs.microvm;
        microvm.host.imageCache.package = pkgs.microvm-image;
        # The hypervisor and, if they are not static, the programs of the project use those of this system.
        microvm.host.readablePaths = [
          "/usr"
          "/lib"
          "/lib64"
          "/bin"
        ];
        systemd.network.netdevs.br0.netdevConfig = {
          Kind = "bridge";
          Name = "br0";
        };
        microvm.cluster = {
          name = "rig";
          bridges = [ "br0" ];
          authKeyFile = "/etc/corosync/authkey";
          nodes = builtins.listToAttrs (
            lib.imap0 (index: name: {
              inherit name;
              value = {
                id = index + 1;
                addresses = [ "10.77.0.1${toString (index + 1)}" ];
                memory = 1024;
              };
            }) nodes
          );
          totem.token = 1000;
          fencing.action = "off";
          fencing.devices.power = {
            agent = "fence_rig";
            targets = nodes;
            timeout = 20;
          };
          sharedPaths = [ "/shared" ];
          migration.command = "ssh -i /root/.ssh/migration -o IdentitiesOnly=yes -o BatchMode=yes root@NODE anything";
          machines.web = {
            runner = web.config.microvm.declaredRunner;
            timeouts.monitor = 30;
            timeouts.migrate = 300;
          };
        };
      }
    ];
  };
  agent = lib.findFirst (
    package: package.name or "" == "microvm-resource-agent"
  ) null host.config.environment.systemPackages;
in
pkgs.runCommand "cluster-host"
  {
    rules = lib.concatMapStrings (rule: "${rule}\n") host.config.systemd.tmpfiles.rules;
    passAsFile = [ "rules" ];
  }
  ''
    mkdir "$out"
    cp -r ${import ../nix/evaluator/units.nix { inherit lib pkgs; } host.config.systemd} "$out/units"
    cp ${host.config.environment.etc."corosync/corosync.conf".source} "$out/corosync.conf"
    cp ${agent}/lib/ocf/resource.d/microvm/MicroVM "$out/MicroVM"
    cp "$rulesPath" "$out/tmpfiles.conf"
    echo ${initrdInStore} >"$out/initrd"
  ''
