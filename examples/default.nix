# The modules of the example configurations, by name. `*-example` and `*-example-with-tap` exist for each hypervisor.
{ lib, self }:
let
  hypervisors = import ../lib/hypervisors.nix;

  example = hypervisor: [
    self.nixosModules.microvm
    ./guest.nix
    {
      networking.hostName = "${hypervisor}-example";
      microvm = { inherit hypervisor; };
    }
  ];
in
{
  # Those that the flake has as `nixosConfigurations`.
  configurations = lib.listToAttrs (
    map (hypervisor: lib.nameValuePair "${hypervisor}-example" (example hypervisor)) hypervisors
  );

  others =
    lib.listToAttrs (
      map (
        hypervisor:
        lib.nameValuePair "${hypervisor}-example-with-tap" (example hypervisor ++ [ ./with-tap.nix ])
      ) hypervisors
    )
    // {
      vm = [
        self.nixosModules.microvm
        self.nixosModules.host
        { _module.args.guestModule = self.nixosModules.microvm; }
        ./vm.nix
      ];
      no-flake = [ ./no-flake.nix ];
      graphics = [
        self.nixosModules.microvm
        ./guest.nix
        ./graphics.nix
      ];
      qemu-vnc = [
        self.nixosModules.microvm
        ./guest.nix
        ./qemu-vnc.nix
      ];
    };
}
