# A host in a microVM, which runs a microVM on each hypervisor. This nested virtualisation does not change the real
# host.
{
  guestModule,
  lib,
  pkgs,
  ...
}:
let
  hypervisors = import ../lib/hypervisors.nix;
  number = hypervisor: toString (lib.lists.findFirstIndex (other: other == hypervisor) 0 hypervisors);
in
{
  networking.hostName = "microvms-host";
  users.users.root.password = "";
  system.stateVersion = "24.05";

  microvm = {
    hypervisor = "qemu";
    vcpu = 4;
    mem = 8192;
    interfaces = [
      {
        type = "user";
        id = "host";
        mac = "02:00:00:02:00:01";
      }
    ];
    volumes = [
      {
        image = "microvms-host.img";
        mountPoint = "/var";
        size = 4096;
      }
    ];

    # The nested machines; `ssh NAME` on the host in the microVM connects to one.
    vms = lib.genAttrs hypervisors (hypervisor: {
      config = {
        imports = [ guestModule ];
        microvm = {
          inherit hypervisor;
          interfaces = [
            {
              type = "tap";
              id = "vm-${number hypervisor}";
              mac = "02:00:00:02:01:0${number hypervisor}";
            }
          ];
        };
        networking.useNetworkd = true;
        users.users.root.password = "";
        services.openssh = {
          enable = true;
          settings = {
            PermitRootLogin = "yes";
            PermitEmptyPasswords = "yes";
          };
        };
        security.pam.services.sshd.allowNullPassword = true;
        system.stateVersion = "24.05";
      };
    });
  };

  environment.systemPackages = [ pkgs.openssh ];

  # A bridge that provides DHCP and names for the machines.
  networking.useNetworkd = true;
  systemd.network = {
    netdevs."10-virbr0".netdevConfig = {
      Kind = "bridge";
      Name = "virbr0";
    };
    networks."10-virbr0" = {
      matchConfig.Name = "virbr0";
      networkConfig = {
        Address = "10.0.0.1/24";
        DHCPServer = true;
        IPMasquerade = "ipv4";
      };
      # As text: the option for leases has another form in newer NixOS.
      extraConfig = lib.concatMapStrings (hypervisor: ''
        [DHCPServerStaticLease]
        MACAddress=02:00:00:02:01:0${number hypervisor}
        Address=10.0.0.1${number hypervisor}
      '') hypervisors;
    };
    networks."11-machines" = {
      matchConfig.Name = "vm-*";
      networkConfig.Bridge = "virbr0";
    };
  };
  networking.extraHosts = lib.concatMapStrings (
    hypervisor: "10.0.0.1${number hypervisor} ${hypervisor}\n"
  ) hypervisors;
  networking.firewall.allowedUDPPorts = [ 67 ];
}
