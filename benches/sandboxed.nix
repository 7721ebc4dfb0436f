# Builds a store disk of the paths in a list in Nix's sandbox, for sandboxed.sh.
{
  # a file with store paths, one per line, all valid
  paths,
  # a directory with the static program microvm-image
  program,
  # "disk", or "nothing" to measure Nix alone
  what,
  # makes each derivation unique
  round,
}:
let
  lines = builtins.filter (line: builtins.isString line && line != "") (
    builtins.split "\n" (builtins.readFile paths)
  );
  image = builtins.path {
    path = program;
    name = "microvm-image-static";
  };
  graph = [
    "--graph"
    ".attrs.json"
    "--output"
    (placeholder "out")
  ];
in
derivation {
  name = "store-disk-${what}-${toString round}";
  system = "x86_64-linux";
  __structuredAttrs = true;
  unsafeDiscardReferences.out = true;
  exportReferencesGraph.closure = map builtins.storePath lines;
  builder = "${image}/microvm-image";
  args =
    if what == "disk" then
      [
        "build"
        "--no-cache"
        "--cache-socket"
        "/run/microvm-image/cache.sock"
      ]
      ++ graph
    else
      [ "plan" ] ++ graph;
}
