# A qemu runner of any NixOS configuration, made for a microVM or not: nothing of its disks is there, the store is the
# host's, the root is in memory, the network is the user's.
{ lib }:
configuration:
let
  # File systems of disks that are not there: known still, mounted by nobody.
  absent =
    lib.mapAttrs
      (
        _: _:
        lib.mkVMOverride {
          device = "none";
          fsType = "tmpfs";
          options = [ "noauto" ];
          neededForBoot = false;
        }
      )
      (
        removeAttrs configuration.config.fileSystems [
          "/"
          "/nix/store"
          "/nix/.ro-store"
        ]
      );
  root."/" = lib.mkVMOverride (import ../nixos-modules/microvm/memory-root.nix);
  adapted = configuration.extendModules {
    modules = [
      ../nixos-modules/microvm
      {
        fileSystems = absent // root;
        swapDevices = lib.mkVMOverride [ ];
        microvm = {
          hypervisor = lib.mkVMOverride "qemu";
          writableStoreOverlay = lib.mkVMOverride null;
          volumes = lib.mkVMOverride [ ];
          forwardPorts = lib.mkVMOverride [ ];
          shares = lib.mkVMOverride [
            {
              tag = "ro-store";
              proto = "9p";
              source = "/nix/store";
              mountPoint = "/nix/.ro-store";
            }
          ];
          interfaces = lib.mkVMOverride [
            {
              type = "user";
              id = "user";
              mac = "02:00:00:00:00:01";
            }
          ];
        };
      }
    ];
  };
in
adapted.config.microvm.declaredRunner
