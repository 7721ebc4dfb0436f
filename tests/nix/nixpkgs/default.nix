# Replaces `import <nixpkgs> { }`.
{
  system ? "x86_64-linux",
}:
(import ./packages-of-systems.nix).${system}
