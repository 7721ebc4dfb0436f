# The hosts that are booted as containers: for each scenario a list of systems. The first one is booted, and `checks`
# switches to the others.
# `guest NAME MODULE` evaluates a NixOS as a flake does.
{ pkgs, guest }:
let
  inherit (pkgs) lib;
  host = {
    boot.isContainer = true;
    networking = {
      hostName = "host";
      useNetworkd = true;
      useDHCP = false;
      useHostResolvConf = false;
    };
    systemd.network.wait-online.enable = false;
    # /sys is read-only in a container.
    hardware.ksm.enable = false;
    # The paths of this computer's qemu and its libraries in the container.
    microvm.host.readablePaths = [
      "/host/lib64"
      "/host/usr"
    ];
  };
  machine = name: {
    imports = [
      ./wrapping/system.nix
      ./guest-settings.nix
    ];
    networking.hostName = name;
    microvm = {
      mem = 512;
      storeDiskBuild = "host";
      interfaces = [
        {
          type = "tap";
          id = "vm-${name}";
          mac = "02:00:00:00:00:${builtins.substring 0 2 (builtins.hashString "sha256" name)}";
        }
      ];
    };
  };
  first = {
    imports = [ host ];
    microvm.vms = {
      web.config = machine "web";
      steady = {
        config = machine "steady";
        restartIfChanged = false;
      };
      asleep = {
        config = machine "asleep";
        autostart = false;
      };
    };
  };
  second = {
    imports = [ first ];
    microvm.vms.web.config.environment.etc.second.text = "yes";
    microvm.vms.steady.config.environment.etc.second.text = "yes";
    environment.etc.second.text = "yes";
  };
  third = {
    imports = [ second ];
    microvm.vms.steady.config.environment.etc.third.text = "yes";
  };
  small = name: {
    imports = [ (machine name) ];
    microvm.mem = lib.mkForce 256;
    microvm.vcpu = 1;
  };
  # A flake as a host has it: a store path with outputs.
  flake =
    module:
    pkgs.writeTextDir "flake.nix" "{ }"
    // {
      nixosConfigurations = builtins.listToAttrs (
        map
          (name: {
            inherit name;
            value = guest name {
              imports = [
                (small name)
                module
              ];
            };
          })
          [
            "from-flake"
            "own-flake"
          ]
      );
    };
  withFlake = module: {
    imports = [ host ];
    microvm = {
      vms.from-flake.flake = flake module;
      vms.own-flake = {
        flake = flake { };
        updateFlake = "path:/srv/machines";
        autostart = false;
      };
      autostart = [ "by-hand" ];
    };
    # What the flake of the machine that is made by hand is made of.
    environment.etc = {
      "rig/by-hand".source =
        (guest "by-hand" {
          imports = [ (small "by-hand") ];
          microvm.consoleSocket = "console.sock";
        }).config.microvm.declaredRunner;
      "rig/own-flake".source = (flake { }).nixosConfigurations.own-flake.config.microvm.declaredRunner;
    };
  };
in
{
  flakes = {
    systems = [
      {
        imports = [ (withFlake { }) ];
        microvm.vms.leaving.config = small "leaving";
      }
      (withFlake { environment.etc.second.text = "yes"; })
    ];
    checks = ./host-flakes.sh;
  };
  declared = {
    systems = [
      first
      second
      third
    ];
    checks = ./host-declared.sh;
  };
}
