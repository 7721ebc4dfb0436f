#!/usr/bin/env bash
# release.sh [--profile PROFILE]: builds a release of the current commit for x86_64 Linux, on Debian 12 or later.
#
#   target/release-VERSION/microvm-VERSION-x86_64-linux.tar.xz   both programs, manual pages, completions, SBOMs
#                                                                (release-VERSION-PROFILE with another profile)
#   target/release-VERSION/SHA256SUMS
#
# The programs are static, so they run on every distribution. They are built twice, in directories with different names;
# the script fails if the bytes differ. It installs cargo-cyclonedx once. CARGO_BUILD_JOBS limits the jobs. Both builds
# together take about 20 minutes of processor time; `--profile dev` is a faster test of this script.
set -euo pipefail

die() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit "${3:-1}"; }
say() { printf 'release: %s\n' "$*" >&2; }

profile=release
case $#,${1:-} in
0,) ;;
2,--profile) profile=$2 ;;
*) die "usage: ${0##*/} [--profile PROFILE]" "the profile is one of Cargo's, such as release or dev" 2 ;;
esac

# The directory in which Cargo puts what it builds with a profile.
built=$profile
[ "$profile" != dev ] || built=debug

cd "$(dirname "$(realpath "$0")")/.."
project=$PWD
# The tests run programs that are linked like these (tests/nix/run.sh). Those of musl would need other rules for seccomp.
target=x86_64-unknown-linux-gnu
cyclonedx=0.5.9

[ -z "$(git status --porcelain)" ] || die "there are changes that are not committed" "git status"
commit=$(git rev-parse --short=12 HEAD)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC CARGO_TERM_COLOR=never
umask 022
version=$(cargo metadata --no-deps --locked --format-version 1 | jq -r '.packages[] | select(.name == "launcher").version')
grep -q "^## $version\b" CHANGELOG.md || die "CHANGELOG.md has no section $version"
[ -e "$(gcc -print-file-name=libc.a)" ] || die "the static C library is missing" "apt-get install libc6-dev"

tools=$project/target/release-tools/cyclonedx-$cyclonedx
if [ ! -x "$tools/bin/cargo-cyclonedx" ]; then
  say "installing cargo-cyclonedx $cyclonedx with cargo, once"
  cargo install --quiet --locked --debug --root "$tools" "cargo-cyclonedx@$cyclonedx"
fi
# The sources of all dependencies must be there before the paths are known.
cargo fetch --quiet --locked --target "$target"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Paths of this computer would be in panic messages and, in C code, in assertions.
build() { # DIRECTORY: builds the programs, and describes what they consist of
  local directory=$1 sources flags=() words
  mkdir -p "$directory"
  git archive HEAD | tar -x -C "$directory"
  flags=("$directory=/microvm")
  for sources in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do flags+=("$sources=/crates"); done
  printf -v words -- '-ffile-prefix-map=%s ' "${flags[@]}"
  local -x CFLAGS_x86_64_unknown_linux_gnu=$words MICROVM_COMMIT=$commit CARGO_INCREMENTAL=0 CARGO_TARGET_DIR=$directory/target
  # The separator of these flags, so that a path may contain spaces.
  printf -v words -- $'--remap-path-prefix=%s\x1f' "${flags[@]}"
  local -x CARGO_ENCODED_RUSTFLAGS=${words}-Ctarget-feature=+crt-static
  (cd "$directory" && cargo build --quiet --locked --profile "$profile" --target "$target" --package imagebuilder --package launcher --bins)
  mkdir "$directory/out"
  cp "$directory/target/$target/$built"/{microvm,microvm-image} "$directory/out/"
  rm -rf "$directory/target"
  (cd "$directory" && "$tools/bin/cargo-cyclonedx" cyclonedx --quiet --format json --spec-version 1.5 --target "$target" --describe binaries)
  local name
  for name in launcher/microvm imagebuilder/microvm-image; do
    sed "s|$directory|/microvm|g" "$directory/${name}_bin.cdx.json" >"$directory/out/${name##*/}.cdx.json"
  done
}

first=$scratch/first second=$scratch/second-directory-with-a-longer-name
for directory in "$first" "$second"; do
  say "building $version ($commit), profile $profile, in $directory"
  build "$directory"
done
for name in microvm microvm-image microvm.cdx.json microvm-image.cdx.json; do
  cmp "$first/out/$name" "$second/out/$name" || die "$name differs between two builds"
  ! grep -qaF -e "$scratch" -e "${CARGO_HOME:-$HOME/.cargo}/" "$first/out/$name" || die "$name contains paths of this computer"
done
say "both builds are equal"

content=$scratch/microvm-$version
mkdir -p "$content"/{bin,share/sbom,share/man/man1,share/bash-completion/completions,share/fish/vendor_completions.d,share/zsh/site-functions}
cp LICENSE README.md CHANGELOG.md "$content/"
for program in microvm microvm-image; do
  [ "$("$first/out/$program" --version)" = "$program $version ($commit)" ] || die "$program has another version: $("$first/out/$program" --version)"
  readelf --program-headers --dynamic "$first/out/$program" >"$scratch/headers"
  ! grep -e INTERP -e NEEDED "$scratch/headers" || die "$program is not static"
  install -m 755 "$first/out/$program" "$content/bin/"
  install -m 644 "$first/out/$program.cdx.json" "$content/share/sbom/"
  "$content/bin/$program" man --output "$content/share/man/man1"
  "$content/bin/$program" completions bash >"$content/share/bash-completion/completions/$program"
  "$content/bin/$program" completions fish >"$content/share/fish/vendor_completions.d/$program.fish"
  "$content/bin/$program" completions zsh >"$content/share/zsh/site-functions/_$program"
done

name=$version
[ "$profile" = release ] || name=$version-$profile
release=$project/target/release-$name archive=microvm-$name-x86_64-linux.tar.xz
mkdir "$scratch/finished"
tar -C "$scratch" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -cf - "microvm-$version" | xz -T1 >"$scratch/finished/$archive"
(cd "$scratch/finished" && sha256sum "$archive" >SHA256SUMS)
rm -rf "$release"
mv "$scratch/finished" "$release"
say "wrote $release/$archive"
cat "$release/SHA256SUMS"
