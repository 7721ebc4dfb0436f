# The runner: a package whose scripts call the launcher with the machine spec, in the layout that hosts of microvm.nix
# expect.
{
  config,
  extendModules,
  lib,
  ...
}:
let
  cfg = config.microvm;
  inherit (config.networking) hostName;
  host = cfg.vmHostPackages;
  hypervisors = import ../../lib/hypervisors.nix;
  capabilities = import ../../lib/capabilities.nix { inherit lib; };

  launcher = lib.getExe cfg.launcher.package;

  # If the launcher refuses the spec, this build fails with the launcher's message.
  machineSpec =
    host.runCommand "microvm-machine-${hostName}.json"
      {
        document = builtins.toJSON cfg.machineSpec;
        passAsFile = [ "document" ];
        preferLocalBuild = true;
        allowSubstitutes = false;
      }
      ''
        cp "$documentPath" machine.json
        ${launcher} check machine.json
        cp machine.json "$out"
      '';

  interfacesOf = type: builtins.filter (interface: interface.type == type) cfg.interfaces;
  taps = interfacesOf "tap";
  macvtaps = interfacesOf "macvtap";
  virtiofsShares = builtins.filter (share: share.proto == "virtiofs") cfg.shares;
  devicesOn = bus: builtins.filter (device: device.bus == bus) cfg.devices;
  tapMultiQueue = cfg.vcpu > 1 && capabilities.can cfg.hypervisor "TapMultiQueue";

  call = word: "${launcher} ${word} ${machineSpec} \"$@\"";
  # The launcher replaces the shell, so that it receives signals and its exit code is returned.
  become = word: "exec ${call word}";

  # Programs that a launch may start besides the hypervisor, which the spec names. They are not in the PATH of a systemd
  # unit.
  fileSystemPackages = {
    ext2 = host.e2fsprogs;
    ext3 = host.e2fsprogs;
    ext4 = host.e2fsprogs;
    xfs = host.xfsprogs;
    btrfs = host.btrfs-progs;
    vfat = host.dosfstools;
  };
  runPath = lib.unique (
    lib.concatMap (
      volume:
      lib.optional (
        volume.autoCreate && fileSystemPackages ? ${volume.fsType}
      ) fileSystemPackages.${volume.fsType}
    ) cfg.volumes
    ++ lib.optional (cfg.hypervisor == "cloud-hypervisor" && interfacesOf "user" != [ ]) host.passt
  );

  withPath =
    packages: script:
    lib.optionalString (packages != [ ]) "export PATH=${lib.makeBinPath packages}:$PATH\n" + script;

  # Scripts of users can override these shell options.
  scripts = lib.mapAttrs (_: script: "set -eu\n" + script) (
    {
      microvm-run = withPath runPath (become "run");
      microvm-shutdown = call "stop";
    }
    // lib.optionalAttrs cfg.balloon { microvm-balloon = call "balloon"; }
    // lib.optionalAttrs (taps != [ ]) {
      tap-up = call "tap up";
      tap-down = call "tap down";
    }
    // lib.optionalAttrs (macvtaps != [ ]) {
      macvtap-up = call "macvtap up";
      macvtap-down = call "macvtap down";
    }
    // lib.optionalAttrs (virtiofsShares != [ ]) { virtiofsd-run = become "virtiofsd"; }
    // lib.optionalAttrs (devicesOn "pci" != [ ]) {
      # It needs modprobe, which is not in the PATH of a systemd unit.
      pci-setup = withPath [ host.kmod ] (call "pci-setup");
    }
    // lib.optionalAttrs cfg.registerWithMachined {
      microvm-register = call "register";
      microvm-unregister = call "unregister";
    }
  );

  lines = list: lib.concatMapStrings (line: "${line}\n") list;

  # Files in share/microvm, which hosts read.
  facts = {
    hypervisor = lines [ cfg.hypervisor ];
  }
  // lib.optionalAttrs (taps != [ ]) {
    tap-interfaces = lines (map (interface: interface.id) taps);
    tap-flags = lines ([ "vnet_hdr" ] ++ lib.optional tapMultiQueue "multi_queue");
  }
  // lib.optionalAttrs (macvtaps != [ ]) {
    macvtap-interfaces = lines (
      map (
        {
          id,
          mac,
          macvtap,
          ...
        }:
        "${id} ${mac} ${toString macvtap.link} ${macvtap.mode}"
      ) macvtaps
    );
  }
  // lib.optionalAttrs (cfg.vsock.cid != null) { vsock-cid = lines [ (toString cfg.vsock.cid) ]; }
  // lib.genAttrs (map (bus: "${bus}-devices") (
    builtins.filter (bus: devicesOn bus != [ ]) [
      "pci"
      "usb"
    ]
  )) (name: lines (map (device: device.path) (devicesOn (lib.removeSuffix "-devices" name))))
  // lib.listToAttrs (
    lib.concatMap (share: [
      (lib.nameValuePair "virtiofs/${share.tag}/source" (lines [ share.source ]))
      (lib.nameValuePair "virtiofs/${share.tag}/socket" (lines [ (toString share.socket) ]))
    ]) virtiofsShares
  );

  # The commands that write a file of the runner.
  writeFile = path: text: ''
    mkdir -p "$(dirname "$out/${path}")"
    printf %s ${lib.escapeShellArg text} >"$out/${path}"
  '';
  writeScript =
    name: text:
    writeFile "bin/${name}" "#!${host.runtimeShell}\n${text}\n"
    + ''
      chmod +x "$out/bin/${name}"
    '';

  runner =
    host.runCommand "microvm-${cfg.hypervisor}-${hostName}"
      {
        preferLocalBuild = true;
        allowSubstitutes = false;
        passthru = {
          inherit (cfg) hypervisor machineId registerWithMachined;
          inherit machineSpec tapMultiQueue;
          canShutdown = capabilities.can cfg.hypervisor "GracefulStop";
          supportsNotifySocket = cfg.vsock.notify;
        };
        meta.mainProgram = "microvm-run";
      }
      (
        builtins.concatStringsSep "" (lib.mapAttrsToList writeScript cfg.binScripts)
        + builtins.concatStringsSep "" (lib.mapAttrsToList (name: writeFile "share/microvm/${name}") facts)
        + ''
          ln -s ${machineSpec} "$out/share/microvm/machine.json"
        ''
        + lib.optionalString cfg.systemSymlink ''
          ln -s ${config.system.build.toplevel} "$out/share/microvm/system"
        ''
      );

  # The guest also depends on the hypervisor, for example in the name of its store disk, so each runner has its own
  # guest.
  runnerOf =
    hypervisor:
    (extendModules { modules = [ { microvm.hypervisor = lib.mkVMOverride hypervisor; } ]; })
    .config.microvm.declaredRunner;
in
{
  config.microvm = {
    binScripts = scripts;
    runner = lib.genAttrs hypervisors (
      hypervisor: if hypervisor == cfg.hypervisor then runner else runnerOf hypervisor
    );
  };
}
