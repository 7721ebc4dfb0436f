# nixpkgs' own stdenv (setup.sh, its hooks) over wrapped Debian tools; there is no C compiler
# Given to nixpkgs as `stdenvStages`.
{ nixpkgs, debian }:
{
  localSystem,
  config,
  overlays,
  ...
}:
let
  inherit (debian) packages;
in
[
  ({ }: { __raw = true; })
  (_: {
    inherit config overlays;
    stdenv = import (nixpkgs + "/pkgs/stdenv/generic") {
      inherit config;
      buildPlatform = localSystem;
      hostPlatform = localSystem;
      targetPlatform = localSystem;
      preHook = ''
        export NIX_ENFORCE_PURITY=
      '';
      initialPath = map (name: packages.${name}) [
        "coreutils"
        "findutils"
        "diffutils"
        "sed"
        "grep"
        "gawk"
        "tar"
        "gzip"
        "bzip2"
        "xz-utils"
        "make"
        "bash"
        "patch"
        "file"
        "patchelf"
      ];
      # only the attributes that nixpkgs reads
      cc = debian.package {
        pname = "cc";
        version = "0";
        environment = { };
        script = "mkdir $out";
        passthru = {
          libc = packages.glibc;
          libc_dev = packages.glibc;
          libc_lib = packages.glibc;
          libc_bin = packages.glibc;
          nativeLibc = false;
          nativeTools = false;
          isGNU = true;
          isClang = false;
          targetPrefix = "";
          bintools = packages.binutils // {
            isLLVM = false;
            isGNU = true;
            dynamicLinker = "${packages.glibc}/lib/ld-linux-x86-64.so.2";
            bintools = packages.binutils;
          };
          cc = packages.binutils;
          libcxx = null;
        };
      };
      # There is no network, so packages that need this cannot be built.
      fetchurlBoot =
        {
          name ? baseNameOf (builtins.head ([ (args.url or "source") ])),
          ...
        }@args:
        debian.package {
          pname = "unfetched-${name}";
          version = "0";
          environment = { };
          script = "echo 'a source that is not here'; exit 1";
        };
      shell = "${packages.bash}/bin/bash";
    };
  })
]
