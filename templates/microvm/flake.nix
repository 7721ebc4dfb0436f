{
  description = "A NixOS microVM";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    # Change this to the address of the flake that you got the template from. Do not use the name `microvm` alone: in
    # Nix's global registry it is microvm.nix, another project.
    microvm.url = "github:OWNER/REPOSITORY";
    microvm.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    {
      self,
      nixpkgs,
      microvm,
    }:
    let
      system = "x86_64-linux";
    in
    {
      # nix run
      packages.${system} = {
        default = self.packages.${system}.my-microvm;
        my-microvm = self.nixosConfigurations.my-microvm.config.microvm.declaredRunner;
      };

      nixosConfigurations.my-microvm = nixpkgs.lib.nixosSystem {
        inherit system;
        modules = [
          microvm.nixosModules.microvm
          {
            networking.hostName = "my-microvm";
            users.users.root.password = "";
            system.stateVersion = "24.05";

            microvm = {
              # or cloud-hypervisor, firecracker, crosvm, kvmtool
              hypervisor = "qemu";

              # A persistent disk.
              volumes = [
                {
                  image = "var.img";
                  mountPoint = "/var";
                  size = 256;
                }
              ];

              # The store of this computer instead of a store disk: the machine is built faster, but can read the whole
              # store. firecracker does not support shares, and cloud-hypervisor and crosvm require proto = "virtiofs".
              shares = [
                {
                  proto = "9p";
                  tag = "ro-store";
                  source = "/nix/store";
                  mountPoint = "/nix/.ro-store";
                }
              ];
            };
          }
        ];
      };
    };
}
