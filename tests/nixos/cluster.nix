# A test of nixosModules.cluster in three virtual hosts, modelled on the test of Pacemaker in NixOS: the host that runs a
# machine crashes, and the machine starts on another one. `nix build .#microvm.tests.cluster` runs it, which requires KVM
# with nested virtualisation, or patience.
{ pkgs, flake }:
let
  # Diskless: the store disk is read-only, so the machine needs no shared storage.
  machine = flake.lib.nixosSystem {
    system = null;
    modules = [
      flake.nixosModules.microvm
      {
        nixpkgs.pkgs = pkgs;
        networking.hostName = "web";
        system.stateVersion = "24.05";
        microvm = {
          hypervisor = "qemu";
          mem = 256;
        };
      }
    ];
  };
  names = [
    "host1"
    "host2"
    "host3"
  ];
  address = id: "192.168.1.${toString id}";
  host = { config, lib, ... }: {
    imports = [ flake.nixosModules.cluster ];
    virtualisation.memorySize = 2048;
    virtualisation.cores = 2;
    # At least 128 bytes. A real key must not be in the store.
    systemd.tmpfiles.rules = [
      "f /run/corosync.key 0400 root root - ${lib.concatStrings (lib.genList (_: "test") 40)}"
    ];
    systemd.services.corosync.after = [ "systemd-tmpfiles-setup.service" ];
    microvm.cluster = {
      name = "test";
      authKeyFile = "/run/corosync.key";
      totem.token = 1000;
      # The hosts of this test have no power switch.
      fencing.acceptDataLoss = true;
      nodes = lib.listToAttrs (
        lib.imap1 (id: name: {
          inherit name;
          value = {
            inherit id;
            addresses = [ (address id) ];
            memory = 1024;
          };
        }) names
      );
      machines.web.runner = machine.config.microvm.declaredRunner;
    };
    assertions = [
      {
        assertion = lib.elem config.networking.hostName names;
        message = "the test's hosts are those of the cluster";
      }
    ];
  };
in
pkgs.testers.runNixOSTest {
  name = "microvm-cluster";
  nodes = pkgs.lib.genAttrs names (_: host);
  testScript = ''
    import json

    start_all()
    hosts = {host.name: host for host in machines}
    for host in machines:
        host.wait_for_unit("pacemaker.service")
        host.wait_until_succeeds("microvm cluster status --json | grep -q '\"hasQuorum\": true'", timeout=300)

    def runs_on(host):
        status = json.loads(host.succeed("microvm cluster status --json"))
        return [node for machine in status["machines"] for node in machine["nodes"] if machine["role"] == "Started"]

    host1.wait_until_succeeds("microvm cluster status | grep -q 'web  running on'", timeout=600)
    first = runs_on(host1)[0]
    hosts[first].crash()
    survivor = next(host for host in machines if host.name != first)
    survivor.wait_until_succeeds(f"microvm cluster status | grep 'web  running on' | grep -qv {first}", timeout=600)
    assert len(runs_on(survivor)) == 1
  '';
}
