# The programs that check Nix code. Since Nixpkgs 25.11, RFC 166's formatter is named `nixfmt`.
{ pkgs }:
{
  inherit (pkgs) deadnix;
  nixfmt =
    if pkgs.lib.versionAtLeast pkgs.lib.version "25.11" then pkgs.nixfmt else pkgs.nixfmt-rfc-style;
}
