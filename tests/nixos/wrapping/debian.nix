# Debian packages as store paths, one for each group of graph.json. The attribute names are those of Debian's packages
# and of the groups.
{ rig }:
let
  directory =
    name:
    builtins.path {
      inherit name;
      path = rig + "/${name}";
    };
  busybox = directory "busybox";
  patchelf = directory "patchelf";
  system = "x86_64-linux";

  # A derivation with the attributes that nixpkgs expects of packages.
  package =
    {
      pname,
      version,
      environment,
      script,
      passthru ? { },
    }:
    let
      drv = derivation (
        {
          name = "${pname}-${version}";
          inherit system script;
          builder = "${busybox}/bin/sh";
          PATH = "${busybox}/bin";
          args = [
            "-euc"
            "eval \"$script\""
          ];
        }
        // environment
      );
      self =
        drv
        // {
          inherit pname version system;
          meta = {
            mainProgram = pname;
            outputsToInstall = [ "out" ];
            platforms = [ system ];
          };
          bin = self;
          lib = self;
          dev = self;
          man = self;
          doc = self;
          info = self;
          getent = self;
          login = self;
          mount = self;
          swap = self;
          minimal = self;
          static = self;
          override = _: self;
          overrideAttrs = _: self;
          passthru = passthru;
        }
        // passthru;
    in
    self;

  graph = builtins.fromJSON (builtins.readFile (rig + "/graph.json"));
  fixups = import ./fixups.nix;
  groups = builtins.foldl' (
    built: group:
    built
    // {
      ${group.name} = package {
        pname = group.name;
        inherit (group) version;
        script = builtins.readFile ./wrap.sh;
        environment = {
          inherit patchelf;
          sources = map (
            p:
            builtins.path {
              name = "${p.name}-source";
              path = rig + "/packages/${p.directory}";
            }
          ) group.packages;
          dependencies = map (name: built.${name}) group.dependencies;
          # These packages are essential in Debian, so no package declares that it depends on them.
          shell = if built ? bash then "${built.bash}/bin/bash" else "";
          perl = if built ? perl then "${built.perl}/bin/perl" else "";
          fixup = fixups.${group.name} or "";
          keepRpath =
            if
              builtins.elem group.name [
                "systemd"
                "kmod"
              ]
            then
              "1"
            else
              "";
        };
      };
    }
  ) { } graph;
in
{
  inherit
    busybox
    patchelf
    package
    groups
    system
    ;
  # by Debian's name too
  packages =
    builtins.listToAttrs (
      builtins.concatMap (
        group:
        map (p: {
          inherit (p) name;
          value = groups.${group.name};
        }) group.packages
      ) graph
    )
    // groups;
}
