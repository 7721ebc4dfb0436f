# The hosts that are booted as containers: for each scenario a list of systems. The first one is booted, and `checks`
# switches to the others.
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
