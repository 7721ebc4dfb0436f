# The minimal evaluator of the tests, and the functions of Nixpkgs' `lib` that only the flake and the packages use.
let
  evaluator = import ../evaluator;

  # A file set is represented by a function that returns whether a path is in the set.
  toFiles =
    part:
    if builtins.isFunction part then
      part
    else
      path: type:
      path == toString part
      || evaluator.hasPrefix "${toString part}/" path
      || (type == "directory" && evaluator.hasPrefix "${path}/" (toString part));
in
evaluator
// {
  version = "stand-in";
  versionAtLeast = _: _: true;
  importTOML = path: builtins.fromTOML (builtins.readFile path);
  licenses.mit.spdxId = "MIT";
  platforms.linux = [
    "x86_64-linux"
    "aarch64-linux"
  ];
  fileset = {
    unions =
      parts: path: type:
      builtins.any (part: toFiles part path type) parts;
    fileFilter =
      predicate: _: path: type:
      type == "directory" || predicate { name = baseNameOf path; };
    toSource =
      { root, fileset }:
      builtins.path {
        path = root;
        name = "source";
        filter = toFiles fileset;
      };
  };
  nixosSystem = import ./nixos/lib/eval-config.nix;
}
