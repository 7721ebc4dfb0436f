# The part of NixOS's module argument `utils` that the mount points of the tests need.
{ lib }:
{
  escapeSystemdPath =
    path: lib.replaceStrings [ "-" "/" ] [ "\\x2d" "-" ] (lib.removePrefix "/" path);
}
