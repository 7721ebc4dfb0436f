# Networks of the host for its machines: each is a bridge with DHCP, DNS names, NAT and firewall rules.
{
  imports = [
    ./assertions.nix
    ./networkd.nix
    ./options.nix
  ];
}
