# The manual as a book.
{ pkgs }:
pkgs.runCommand "microvm-manual" { nativeBuildInputs = [ pkgs.mdbook ]; } ''
  mdbook build --dest-dir "$out" ${./.}
''
