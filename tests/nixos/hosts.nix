# The hosts that are booted as containers: by the scenario's name the systems, in a row. The first is booted, and switches to
# the others as `checks` says.
let
  host = {
    boot.isContainer = true;
    networking = {
      hostName = "host";
      useNetworkd = true;
      useDHCP = false;
      useHostResolvConf = false;
    };
    systemd.network.wait-online.enable = false;
    # /sys cannot be written in a container.
    hardware.ksm.enable = false;
    # Where this computer's qemu and its libraries are in the container.
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
in
{
  declared = {
    systems = [
      first
      second
      third
    ];
    checks = ./host-declared.sh;
  };
}
