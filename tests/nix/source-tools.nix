# The programs that look at Nix code. Nixpkgs 25.11 gave RFC 166's formatter the plain name.
{ pkgs }:
{
  inherit (pkgs) deadnix;
  nixfmt =
    if pkgs.lib.versionAtLeast pkgs.lib.version "25.11" then pkgs.nixfmt else pkgs.nixfmt-rfc-style;
}
