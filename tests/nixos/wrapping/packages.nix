# The packages that a small NixOS uses, as wrapped Debian packages. All other packages are the derivations of nixpkgs.
# They can be built if they only combine other packages with shell commands, but not if they need sources from the
# network.
{ rig, debian }:
final: prev:
let
  inherit (prev) lib;
  deb = debian.packages;
  input =
    name:
    builtins.path {
      inherit name;
      path = rig + "/inputs/${name}";
    };

  # Several as one.
  # Files of this machine, dynamic programs made to run from the store.
  program =
    name: version: files:
    debian.package {
      pname = name;
      inherit version;
      environment = {
        src = input files;
        inherit (debian) patchelf;
        libc = deb.glibc;
      };
      script = ''
        mkdir -p $out/bin $out/share; cp $src/* $out/bin/; chmod u+w $out/bin/*
        for f in $out/bin/*; do
          $patchelf/ld-linux-x86-64.so.2 --library-path $patchelf $patchelf/patchelf --set-interpreter $libc/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --force-rpath --set-rpath $libc/lib/x86_64-linux-gnu $f || true
        done
      '';
    };
  empty =
    name:
    debian.package {
      pname = name;
      version = "0";
      environment = { };
      script = "mkdir -p $out/bin $out/share $out/lib";
    };

  kernelVersion = builtins.head (
    builtins.attrNames (builtins.readDir (rig + "/inputs/linux/lib/modules"))
  );
  kernelConfig = lib.listToAttrs (
    lib.concatMap (
      line:
      let
        m = builtins.match "(CONFIG_[A-Za-z0-9_]+)=(.*)" line;
      in
      lib.optional (m != null) (lib.nameValuePair (builtins.elemAt m 0) (builtins.elemAt m 1))
    ) (lib.splitString "\n" (builtins.readFile (rig + "/inputs/linux/config")))
  );
  kernel = lib.makeOverridable (
    {
      features ? { },
      ...
    }:
    debian.package rec {
      pname = "linux";
      version = builtins.head (builtins.match "([0-9.]+).*" kernelVersion);
      environment = {
        src = input "linux";
        inherit (deb) kmod;
        inherit kernelVersion;
      };
      script = ''
        mkdir $out
        cp -a $src/bzImage $src/lib $out/
        chmod -R u+w $out
        $kmod/bin/depmod -b $out -a $kernelVersion
      '';
      passthru = {
        inherit features;
        modDirVersion = kernelVersion;
        kernelPatches = [ ];
        isZen = false;
        isHardened = false;
        isLibre = false;
        isXen = false;
        withRust = false;
        stdenv = final.stdenv;
        kernelOlder = lib.versionOlder version;
        kernelAtLeast = lib.versionAtLeast version;
        config = kernelConfig // rec {
          isSet = name: kernelConfig ? "CONFIG_${name}";
          getValue = name: kernelConfig."CONFIG_${name}" or null;
          isYes = name: getValue name == "y";
          isNo = name: !isSet name;
          isModule = name: getValue name == "m";
          isEnabled = name: isModule name || isYes name;
          isDisabled = name: !isSet name;
        };
        moduleBuildDependencies = [ ];
      };
    }
  ) { };

  systemd = deb.systemd // {
    kmod = final.kmod;
    kbd = final.kbd;
    util-linux = final.util-linux;
    withCryptsetup = false;
    withEfi = false;
    withBootloader = false;
    withUtmp = false;
    withImportd = false;
    withMachined = false;
    withTimedated = true;
    withLocaled = true;
    withHostnamed = true;
    withPortabled = false;
    withLogind = true;
    withSysusers = true;
    withRepart = true;
    withTpm2Tss = false;
    withNetworkd = true;
    withHomed = false;
    withTimesyncd = true;
    withResolved = true;
    withCoredump = false;
    withNspawn = false;
    withUserDb = true;
    withOomd = false;
    withHwdb = true;
    withSysupdate = false;
    withVmspawn = false;
    interfaceVersion = 2;
    override = _: systemd;
    overrideAttrs = _: systemd;
  };
  perl = deb.perl // {
    libPrefix = "lib/perl5/site_perl";
    # Debian's modules are there with their own dependencies.
    withPackages = _: perlWithModules;
    buildEnv = _: perlWithModules;
    pkgs = {
      makePerlPath = _: "";
    };
  };
  perlModules = map (name: deb.${name}) (
    builtins.filter (name: deb ? ${name}) [
      "libfile-slurp-perl"
      "libjson-perl"
      "libnet-dbus-perl"
      "libconfig-inifiles-perl"
      "libxml-twig-perl"
      "libxml-parser-perl"
      "libio-stringy-perl"
      "liburi-perl"
      "liblist-moreutils-perl"
      "libexporter-tiny-perl"
      "libjson-xs-perl"
      "libcommon-sense-perl"
      "libtypes-serialiser-perl"
    ]
  );
  perlWithModules = debian.package {
    pname = "perl-with-modules";
    inherit (deb.perl) version;
    environment = {
      perl = deb.perl;
      bash = deb.bash;
      modules = perlModules;
    };
    script = ''
      mkdir -p $out/bin
      inc=; for m in $modules; do for d in $m/share/perl5 $m/lib/x86_64-linux-gnu/perl5/5.40; do [ ! -d $d ] || inc=$inc:$d; done; done
      { echo "#!$bash/bin/bash"; echo "PERL5LIB=\''${PERL5LIB:+\$PERL5LIB:}''${inc#:} exec $perl/bin/perl \"\$@\""; } >$out/bin/perl
      chmod +x $out/bin/perl
    '';
  };
in
{
  bash = deb.bash // {
    shellPath = "/bin/bash";
  };
  inherit (deb)
    coreutils
    findutils
    diffutils
    gawk
    gzip
    bzip2
    kmod
    e2fsprogs
    dosfstools
    iproute2
    less
    ncurses
    dbus
    openssh
    jq
    cpio
    patchelf
    patch
    file
    psmisc
    acl
    attr
    strace
    rsync
    curl
    socat
    zstd
    tzdata
    lvm2
    bcache-tools
    util-linux
    glibc
    binutils
    ;
  inherit (deb) erofs-utils python3;
  composefs = final.writeTextFile {
    name = "composefs";
    destination = "/bin/mkcomposefs";
    executable = true;
    text = "#!${final.python3}/bin/python3\n" + builtins.readFile ./mkcomposefs.py;
  };
  # Debian has it in a directory in which no program looks for it.
  virtiofsd = final.runCommand "virtiofsd" {
    inherit (deb.virtiofsd) version;
  } "mkdir -p $out/bin; ln -s ${deb.virtiofsd}/libexec/virtiofsd $out/bin/virtiofsd";
  shadow = deb.shadow // {
    su = deb.util-linux;
    shellPath = "/bin/nologin";
  };
  kbd = deb.kbd // {
    gzip = deb.gzip;
  };
  bashInteractive = final.bash;
  which = deb.debianutils;
  runtimeShellPackage = final.bash;
  coreutils-full = deb.coreutils;
  gnugrep = deb.grep;
  gnused = deb.sed;
  gnutar = deb.tar;
  gnumake = deb.make;
  xz = deb.xz-utils;
  procps = deb.procps;
  iputils = deb.iputils-ping;
  hostname-debian = deb.hostname;
  inetutils = deb.hostname;
  nettools = deb.hostname;
  util-linuxMinimal = deb.util-linux;
  libuuid = deb.util-linux;
  libcap = deb.libcap2-bin;
  getent = deb.glibc;
  glibcLocales = empty "glibc-locales";
  glibcLocalesUtf8 = empty "glibc-locales";
  linux-pam = deb.linux-pam;
  pam = deb.linux-pam;
  lvm2_dmeventd = deb.lvm2;
  device-mapper = deb.lvm2;
  nix = deb.nix-bin // {
    pname = "nix";
    version = "2.26.3";
  };
  nixVersions = prev.nixVersions // {
    stable = final.nix;
    latest = final.nix;
  };
  inherit systemd perl;
  systemdMinimal = systemd;
  systemdStage1 = systemd;
  systemdStage1Network = systemd;
  systemdLibs = systemd;
  udev = systemd;
  perlPackages = {
    makePerlPath = _: "";
  };
  cacert =
    debian.package {
      pname = "cacert";
      version = "0";
      environment.src = input "cacert";
      script = "mkdir -p $out/etc/ssl/certs; cp $src/ca-bundle.crt $out/etc/ssl/certs/; touch $out/etc/ssl/certs/ca-no-trust-rules-bundle.crt; mkdir -p $out/etc/ssl/trust-source";
      passthru = rec {
        p11kit = final.cacert;
        unbundled = final.cacert;
      };
    }
    // {
      override = _: final.cacert;
    };
  iana-etc = deb.netbase;
  linuxPackages = final.linuxPackagesFor kernel;
  linuxPackages_latest = final.linuxPackages;
  linuxKernel = prev.linuxKernel // {
    kernels = prev.linuxKernel.kernels // {
      linux_default = kernel;
    };
    packages = prev.linuxKernel.packages // {
      linux_default = final.linuxPackages;
    };
  };
  makeInitrdNGTool = program "make-initrd-ng" "0.1.0" "make-initrd-ng";
  # The C program of NixOS's wrappers. prepare.sh compiled it once; here it gets the name of the wrapped program.
  curlMinimal = deb.curl;
  libxslt = deb.xsltproc;
  fetchurl = final.stdenv.fetchurlBoot;
  pkgsStatic = final // {
    callPackage =
      path: args:
      if baseNameOf (toString path) == "wrapper.nix" then
        final.runCommand "security-wrapper-${baseNameOf args.sourceProg}"
          { nativeBuildInputs = [ final.perl ]; }
          ''
            mkdir -p $out/bin
            # The program's name has a place of 256 bytes; what is left of it stays zero.
            program=${args.sourceProg} perl -0777 -pe 's/\x40{255}\0/$ENV{program} . "\0" x (256 - length $ENV{program})/e' ${input "security-wrapper"}/security-wrapper >$out/bin/security-wrapper
            grep -q '${args.sourceProg}' $out/bin/security-wrapper
            chmod +x $out/bin/security-wrapper
          ''
      else
        final.callPackage path args;
  };
  # Our own programs, from the product's release build.
  microvm-test-launcher = program "microvm" "0.2.0" "microvm";
  microvm-test-imagebuilder = program "microvm-image" "0.2.0" "microvm-image";
  # qemu of this machine
  # qemu of this machine; in a container of the rig this machine is at /host
  qemu_kvm = final.runCommand "qemu" { } ''
    mkdir -p $out/bin $out/libexec
    cat >$out/bin/qemu-system-x86_64 <<Q
    #!${final.runtimeShell}
    [ -e /host/usr/bin/qemu-system-x86_64 ] || exec /usr/bin/qemu-system-x86_64 "\$@"
    export QEMU_MODULE_DIR=/host/usr/lib/x86_64-linux-gnu/qemu
    exec /host/lib64/ld-linux-x86-64.so.2 --library-path /host/usr/lib/x86_64-linux-gnu --argv0 qemu-system-x86_64 /host/usr/bin/qemu-system-x86_64 -L /host/usr/share/qemu -L /host/usr/share/seabios -L /host/usr/lib/ipxe/qemu "\$@"
    Q
    chmod +x $out/bin/qemu-system-x86_64
    ln -s $out/bin/qemu-system-x86_64 $out/libexec/qemu-bridge-helper
  '';
  qemu = final.qemu_kvm;

  xonsh = empty "xonsh";
  fish = empty "fish";
  zsh = empty "zsh";
  # Only a switch to another system uses it.
  move-mount-beneath = empty "move-mount-beneath";
  rustPlatform = {
    buildRustPackage = args: empty (args.pname or "rust");
  };
  gnupatch = deb.patch;
  getconf = deb.glibc;
  mkpasswd = empty "mkpasswd";
  time = empty "time";
  host = empty "host";
  bind = empty "bind";
  libxml2 = empty "libxml2";
  xorg = prev.xorg // {
    xauth = empty "xauth";
    lndir = final.writeShellScriptBin "lndir" "[ \"$1\" != -silent ] || shift; exec cp -rs --no-preserve=mode \"$(realpath \"$1\")\"/. \"$2\"/";
  };
  lndir = final.xorg.lndir;
  audit = debian.package {
    pname = "audit";
    version = "0";
    environment.shell = final.runtimeShell;
    script = "mkdir -p $out/bin; { echo \"#!$shell\"; echo exit 0; } >$out/bin/auditctl; chmod +x $out/bin/auditctl; mkdir -p $out/lib";
  };
  kmod-blacklist-ubuntu = final.writeTextDir "modprobe.conf" "";
  kmod-debian-aliases = final.writeText "kmod-debian-aliases" "";
  # Debian's kernel has no virtio_mmio.
  makeModulesClosure = arguments: prev.makeModulesClosure (arguments // { allowMissing = true; });
  # of the scripted stage 1
  bintools = deb.binutils;
  busybox = debian.package {
    pname = "busybox";
    version = "1";
    environment.src = debian.busybox;
    script = "mkdir -p $out/bin; cp -a $src/bin/. $out/bin/; ln -s bin $out/sbin";
  };
  nano = empty "nano";
  man-db = empty "man-db";
  gnupg = empty "gnupg";
  git = empty "git";
  sudo = empty "sudo";
  su = deb.shadow;
  mdadm = empty "mdadm";
  bashCompletion = empty "bash-completion";
  nix-bash-completions = empty "nix-bash-completions";
  bash-completion = empty "bash-completion";
  texinfoInteractive = empty "texinfo";
  libressl = deb.socat;
  netcat = deb.socat;
  wget = deb.curl;
  ed = empty "ed";
  kexec-tools = empty "kexec-tools";
  mtools = empty "mtools";
  fuse =
    final.runCommand "fuse" { }
      "mkdir -p $out/bin; ln -s ${deb.util-linux}/bin/mount $out/bin/fusermount; ln -s ${deb.util-linux}/bin/mount $out/bin/fusermount3";
  fuse3 = final.fuse;
  nsncd = empty "nsncd";
  stub-ld = empty "stub-ld";
  polkit = empty "polkit";
  openresolv = empty "openresolv";
  dhcpcd = empty "dhcpcd";
  firewall = empty "firewall";
  iptables = empty "iptables";
  linux-firmware = empty "linux-firmware";
  crda = empty "crda";
  wireless-regdb = empty "wireless-regdb";
}
