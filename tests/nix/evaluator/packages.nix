# The packages and builders of Nixpkgs that the modules use, made from the fixture closure: real derivations that Nix
# builds in its sandbox with the closure's bash.
#   work, kernel   what fixtures/closure/build.sh prepared
#   programs       a directory with bin/microvm and bin/microvm-image, static
#   system         the system to build for; the closure's packages are for x86_64
{
  lib ? import ./.,
  work,
  kernel,
  programs,
  system ? "x86_64-linux",
}:
let
  isX86 = system == "x86_64-linux";
  arguments = {
    inherit work kernel;
    modules = "modules-initrd";
    install = [
      "bash"
      "coreutils"
    ];
  };
  closure = import ../../../fixtures/closure {
    inherit (arguments)
      work
      kernel
      modules
      install
      ;
  };
  groups = import ../../../fixtures/closure/packages.nix { inherit work; };
  inherit (groups) busybox;
  inherit (closure.packages) bash coreutils jq;

  build =
    name: attributes: script:
    let
      given = removeAttrs attributes [
        "meta"
        "passthru"
        "nativeBuildInputs"
      ];
      path = lib.makeBinPath (
        (attributes.nativeBuildInputs or [ ])
        ++ [
          coreutils
          bash
          busybox
        ]
      );
      isStructured = attributes.__structuredAttrs or false;
      # With structured attributes, the environment is empty and does not even contain the output's name.
      prelude = lib.optionalString isStructured ''
        . "$NIX_BUILD_TOP/.attrs.sh"
        out=''${outputs[out]}
      '';
    in
    derivation (
      {
        inherit name system;
        builder = "${bash}/bin/bash";
        # Bash replaces itself with the last command of `-c`. Programs of coreutils close their output before they end,
        # and Nix kills a builder that has closed its output, which fails the build: `exit` keeps Bash.
        args = [
          "-euc"
          ''
            ${prelude}export PATH=${path}
            ${script}
            exit 0
          ''
        ];
      }
      // given
    )
    // (attributes.passthru or { })
    // {
      meta = attributes.meta or { };
    };

  writeScript =
    name: text:
    build name {
      inherit text;
      passAsFile = [ "text" ];
    } ''cp "$textPath" "$out"; chmod +x "$out"'';

  # Programs of the machine that runs the test, because hypervisors are not part of the fixture.
  programOfHost = name: programsOfHost name [ name ];
  programsOfHost =
    package: names:
    build package { meta.mainProgram = builtins.head names; } ''
      mkdir -p "$out/bin"
      for name in ${builtins.concatStringsSep " " names}; do
        printf '#!%s\nexec "$(PATH=/usr/bin:/usr/sbin command -v %s)" "$@"\n' ${bash}/bin/bash "$name" >"$out/bin/$name"
        chmod +x "$out/bin/$name"
      done
    '';

  static = builtins.path {
    path = programs;
    name = "microvm-static";
  };
  program = name: {
    type = "derivation";
    outPath = static;
    meta.mainProgram = name;
  };

  # A hypervisor whose program has another name is replaced below.
  hypervisors = lib.genAttrs (import ../../../lib/hypervisors.nix) programOfHost;

  pkgs = hypervisors // {
    inherit lib bash coreutils;
    inherit (closure.packages) cpio;
    nix = bash;
    findutils = busybox;
    util-linux = busybox;
    fixture = {
      inherit (closure) toplevel;
      initialRamdisk = closure.initrd;
    };
    linux = closure.kernel // {
      dev = closure.kernelElf;
    };
    stdenv.hostPlatform = {
      inherit system;
      isx86 = isX86;
      isx86_64 = isX86;
      isLinux = true;
      qemuArch = if isX86 then "x86_64" else "aarch64";
    };
    buildPackages = pkgs // {
      inherit jq;
      erofs-utils = programOfHost "mkfs.erofs";
    };
    microvm = program "microvm";
    microvm-image = program "microvm-image";
    runCommand = build;
    runtimeShell = "${bash}/bin/bash";
    writeShellScript = name: text: writeScript name "#!${bash}/bin/bash\n${text}";
    writeShellScriptBin =
      name: text:
      build name
        {
          inherit text;
          passAsFile = [ "text" ];
          meta.mainProgram = name;
        }
        ''
          mkdir -p "$out/bin"
          (echo "#!${bash}/bin/bash"; cat "$textPath") >"$out/bin/${name}"
          chmod +x "$out/bin/${name}"
        '';
    closureInfo =
      { rootPaths }:
      (import ../../../fixtures/closure/closure-info.nix { inherit busybox jq; } { inherit rootPaths; })
      .closureInfo;
    qemu = programOfHost "qemu-system-x86_64";
    qemu_kvm = pkgs.qemu;
    kvmtool = programOfHost "lkvm";
    virtiofsd = programOfHost "virtiofsd";
    passt = programOfHost "passt";
    e2fsprogs = programOfHost "mkfs.ext4";
    kmod = programOfHost "modprobe";
    openssh = bash;
    iproute2 = busybox;
    ocf-resource-agents = busybox;
    pacemaker =
      programsOfHost "pacemaker" [
        "crm_simulate"
        "crm_verify"
      ]
      // {
        overrideAttrs = change: pkgs.pacemaker // change { configureFlags = [ ]; };
      };
  };
in
pkgs
