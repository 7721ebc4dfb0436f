# Every option of a microVM: types, defaults and documentation, nothing else. `nixosModules.microvm-options` is this file.
{
  imports = [
    ./devices.nix
    ./former.nix
    ./graphics.nix
    ./hypervisors.nix
    ./machine.nix
    ./network.nix
    ./runner.nix
    ./storage.nix
    ./store-disk.nix
  ];
}
