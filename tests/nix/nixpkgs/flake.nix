# run.sh copies this to the root of a copy of the project, because a flake cannot read files above its directory.
{
  description = "A substitute for Nixpkgs, to run the real flake.nix without Nixpkgs; it does not contain NixOS";

  outputs = _: {
    lib = import ./tests/nix/nixpkgs/lib.nix;
    legacyPackages = import ./tests/nix/nixpkgs/packages-of-systems.nix;
  };
}
