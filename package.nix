# One of the two programs: `microvm-image` (crate `imagebuilder`) or `microvm` (crate `launcher`).
{
  lib,
  rustPlatform,
  installShellFiles,
  crate ? "launcher",
  # The commit that `--version` prints, for releases. By default there is none, because every commit would then be another package, and every
  # machine would have to be updated.
  commit ? null,
}:
let
  manifest = lib.importTOML ./Cargo.toml;
  crateManifest = lib.importTOML (./. + "/${crate}/Cargo.toml");
  program = (builtins.head crateManifest.bin).name;
in
rustPlatform.buildRustPackage {
  pname = program;
  inherit (manifest.workspace.package) version;

  # Only the sources of the crates, so that a change of a module, a test fixture or a page does not cause a rebuild.
  src = lib.fileset.toSource {
    root = ./.;
    fileset = lib.fileset.unions [
      ./.cargo
      ./Cargo.lock
      ./Cargo.toml
      ./benches/Cargo.toml
      ./benches/src
      ./imagebuilder/Cargo.toml
      ./imagebuilder/src
      ./launcher/Cargo.toml
      ./launcher/src
      ./manual/Cargo.toml
      ./manual/src
      ./program/Cargo.toml
      ./program/src
      ./testing/Cargo.toml
      ./testing/src
      ./volume-maker/Cargo.toml
      ./volume-maker/src
    ];
  };
  cargoLock.lockFile = ./Cargo.lock;
  env = lib.optionalAttrs (commit != null) { MICROVM_COMMIT = commit; };
  cargoBuildFlags = [ "--package=${crate}" ];
  # Only unit tests. The tests in tests/ need the fixtures and hypervisors; CI runs them.
  cargoTestFlags = [
    "--package=${crate}"
    "--lib"
  ];

  nativeBuildInputs = [ installShellFiles ];
  postInstall = ''
    for shell in bash fish zsh; do
      $out/bin/${program} completions $shell >${program}.$shell
    done
    installShellCompletion ${program}.{bash,fish,zsh}
    mkdir man
    $out/bin/${program} man --output man
    installManPage man/*.1
  ''
  # Pacemaker finds the resource agent ocf:microvm:MicroVM by this name, and so does the program its command.
  + lib.optionalString (crate == "launcher") ''
    mkdir -p $out/lib/ocf/resource.d/microvm
    ln -s $out/bin/${program} $out/lib/ocf/resource.d/microvm/MicroVM
  '';

  meta = {
    inherit (crateManifest.package) description;
    license = lib.licenses.mit;
    mainProgram = program;
    platforms = lib.platforms.linux;
  };
}
