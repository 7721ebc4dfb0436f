# run.sh puts this into the root of a copy of the project: a flake sees nothing above its directory.
{
  description = "A stand-in for Nixpkgs, so that the real flake.nix runs where there is none: no NixOS is in it";

  outputs = _: {
    lib = import ./tests/nix/nixpkgs/lib.nix;
    legacyPackages = import ./tests/nix/nixpkgs/packages-of-systems.nix;
  };
}
