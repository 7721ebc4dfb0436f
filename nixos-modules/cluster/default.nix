# The NixOS module of a host in a cluster: it runs machines together with other hosts, on Pacemaker and Corosync.
{
  imports = [
    ../host
    ./assertions.nix
    ./engine.nix
    ./file.nix
    ./options.nix
  ];
}
