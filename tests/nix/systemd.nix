# A host for tests/nix/systemd.sh, with a machine on each hypervisor and one whose store disk the host makes. Their kernel
# is the probe guest, which tells what it sees and then waits to be asked to stop.
{
  work,
  kernel,
  programs,
  # a directory with bzImage and vmlinux: fixtures/probe-guest
  probe,
  # whether there is a virtiofsd
  hasVirtiofsd,
}:
let
  lib = import ./evaluator;
  pkgs = import ./evaluator/packages.nix { inherit work kernel programs; };
  capabilities = import ../../lib/capabilities.nix { inherit lib; };
  hypervisors = import ../../lib/hypervisors.nix;

  probeKernel =
    let
      package.outPath = builtins.path {
        path = probe;
        name = "probe-guest";
      };
    in
    package // { dev = package; };

  guest =
    index:
    {
      name,
      hypervisor,
      storeDiskBuild,
    }:
    lib.nameValuePair name (
      import ./evaluator/system.nix {
        inherit work kernel programs;
        module = {
          networking.hostName = name;
          microvm = {
            inherit hypervisor storeDiskBuild;
            kernel = probeKernel;
            # The probe guest reads all of it.
            initrdPath = builtins.toFile "initrd" "no archive";
            kernelParams = [ "probe=wait" ];
            qemu.accelerator = "tcg";
            mem = 256;
            balloon = true;
            interfaces = [
              {
                type = "tap";
                id = "vm-${builtins.substring 0 11 name}";
                mac = "02:00:00:00:00:0${toString index}";
              }
            ];
            volumes = [
              {
                image = "var.img";
                size = 8;
              }
            ];
            shares = lib.optional (hasVirtiofsd && capabilities.can hypervisor "Virtiofs") {
              proto = "virtiofs";
              tag = "shared";
              source = "/srv/shared";
              mountPoint = "/shared";
            };
          };
        };
      }
    );
  guests = builtins.listToAttrs (
    lib.imap0 guest (
      map (hypervisor: {
        name = hypervisor;
        inherit hypervisor;
        storeDiskBuild = "derivation";
      }) hypervisors
      ++ [
        {
          name = "made-on-host";
          hypervisor = "qemu";
          storeDiskBuild = "host";
        }
      ]
    )
  );

  host = lib.evalModules {
    specialArgs = { inherit pkgs; };
    modules = [
      ./evaluator/nixos.nix
      ../../nixos-modules/host
      {
        microvm = {
          host.package = pkgs.microvm;
          host.imageCache.package = pkgs.microvm-image;
          autostart = lib.mkForce [ ];
          vms = builtins.mapAttrs (_: evaluatedConfig: { inherit evaluatedConfig; }) guests;
        };
      }
    ];
  };
in
{
  units = import ./evaluator/units.nix { inherit lib pkgs; } host.config.systemd;
  tmpfiles = pkgs.runCommand "microvm.conf" {
    rules = lib.concatMapStrings (rule: "${rule}\n") host.config.systemd.tmpfiles.rules;
    passAsFile = [ "rules" ];
  } ''cp "$rulesPath" "$out"'';
}
