# The NixOS module of a guest.
{
  imports = [
    ./options
    ./assertions.nix
    ./boot.nix
    ./credentials.nix
    ./deploy.nix
    ./machine-spec.nix
    ./mounts.nix
    ./optimize.nix
    ./register-closure.nix
    ./runner.nix
    ./sealed-store.nix
    ./store-disk.nix
    ./vsock-ssh.nix
  ];
}
