# A host for tests/nix/systemd.sh, with a machine on each hypervisor, one whose store disk the host builds, and one whose store
# disk has no image. Their kernel is the probe guest, which reports its devices and then waits for a request to stop.
{
  work,
  kernel,
  programs,
  # a directory with bzImage and vmlinux: fixtures/probe-guest
  probe,
  # whether virtiofsd is available
  hasVirtiofsd,
}:
let
  lib = import ./evaluator;
  pkgs = import ./evaluator/packages.nix { inherit work kernel programs; };
  capabilities = import ../../lib/capabilities.nix { inherit lib; };
  hypervisors = import ../../lib/hypervisors.nix;

  probeKernel =
    let
      package = {
        type = "derivation";
        outPath = builtins.path {
          path = probe;
          name = "probe-guest";
        };
      };
    in
    package // { dev = package; };

  guest =
    index:
    {
      name,
      hypervisor,
      storeDiskBuild,
      further ? { },
    }:
    lib.nameValuePair name (
      import ./evaluator/system.nix {
        inherit work kernel programs;
        module = {
          # A machine is identified by its directory, not by the name of its guest.
          networking.hostName = lib.mkForce "guest-of-${name}";
          imports = [ further ];
          microvm = {
            inherit hypervisor storeDiskBuild;
            kernel = probeKernel;
            # The probe guest reads the whole initrd.
            initrdPath = builtins.toFile "initrd" "no archive";
            kernelParams = [ "probe=wait" ];
            qemu.accelerator = "tcg";
            mem = 256;
            balloon = true;
            interfaces = [
              {
                type = "tap";
                id = "vm-${builtins.substring 0 11 name}";
                mac = "02:00:00:00:00:${if index < 10 then "0" else ""}${toString index}";
              }
            ];
            volumes = [
              {
                image = "var.img";
                size = 8;
              }
            ];
            # A machine with shares cannot be suspended.
            shares =
              lib.optional (hasVirtiofsd && name != "suspended" && capabilities.can hypervisor "Virtiofs")
                {
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
        {
          name = "live";
          hypervisor = "qemu";
          storeDiskBuild = "live";
        }
        {
          name = "suspended";
          hypervisor = "qemu";
          storeDiskBuild = "host";
          further.microvm.kernelParams = [ "wait=long" ];
        }
        {
          # The kinds of devices that reach a machine through its root directory and the device rules of its unit.
          name = "devices";
          hypervisor = "qemu";
          storeDiskBuild = "derivation";
          further.microvm = {
            interfaces = [
              {
                type = "macvtap";
                id = "mv-devices";
                mac = "02:00:00:00:02:01";
                macvtap = {
                  link = "br-macvtap";
                  mode = "bridge";
                };
              }
            ];
            volumes = [
              {
                image = "/dev/block-of-machine";
                autoCreate = false;
              }
            ];
            shares = [
              {
                proto = "9p";
                tag = "nine";
                source = "/srv/nine";
                mountPoint = "/nine";
              }
            ];
          };
        }
        {
          name = "user-network";
          hypervisor = "cloud-hypervisor";
          storeDiskBuild = "derivation";
          further.microvm.interfaces = [
            {
              type = "user";
              id = "user0";
              mac = "02:00:00:00:02:02";
            }
          ];
        }
        {
          name = "victim";
          hypervisor = "qemu";
          storeDiskBuild = "derivation";
          # This is not a valid name for an interface.
          further.microvm.interfaces = [
            {
              type = "bridge";
              id = "interface-of-the-victim-in-a-bridge";
              bridge = "br-test";
              mac = "02:00:00:00:01:01";
            }
          ];
        }
        {
          name = "attacker";
          hypervisor = "qemu";
          storeDiskBuild = "derivation";
          # Replaces a qemu that an attacker has taken over.
          further.microvm.qemu.package =
            pkgs.runCommand "attacker"
              {
                script = builtins.readFile ./attacks.pl;
                passAsFile = [ "script" ];
              }
              ''
                mkdir -p "$out/bin"
                cp "$scriptPath" "$out/bin/qemu-system-x86_64"
                chmod +x "$out/bin/qemu-system-x86_64"
              '';
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
          host.suspendOnShutdown = [ "suspended" ];
          host.imageCache.package = pkgs.microvm-image;
          # The hypervisors of this system are used.
          host.readablePaths = [
            "/usr"
            "/lib"
            "/lib64"
            "/bin"
          ];
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
