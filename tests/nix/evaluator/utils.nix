# NixOS' module argument of this name, as far as the mount points of the tests need it.
{ lib }:
{
  escapeSystemdPath =
    path: lib.replaceStrings [ "-" "/" ] [ "\\x2d" "-" ] (lib.removePrefix "/" path);
}
