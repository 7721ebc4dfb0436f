#!/usr/bin/env bash
# prose.sh: checks spelling (with typos, configured by _typos.toml) and the phrases of scripts/phrases.txt in all files
# that git tracks.
set -euo pipefail
version=1.52.0

cd "$(dirname "$(realpath "$0")")/.."
typos=target/typos/bin/typos
if [ "$("$typos" --version 2>/dev/null)" != "typos-cli $version" ]; then
  echo "prose: installing typos-cli $version with cargo, once" >&2
  cargo install --quiet --locked --debug --root target/typos --version "$version" typos-cli
fi
"$typos" --format brief

paths=('*.md' '*.nix' '*.sh' '*.rs')
failed=0
while IFS=$'\t' read -r phrase instead; do
  case $phrase in '' | '#'*) continue ;; esac
  [ -n "$instead" ] || { echo "prose: scripts/phrases.txt: \`$phrase\` has no replacement after a tab" >&2; exit 1; }
  # Not in the list itself, and not in the style page, which quotes some phrases.
  found=$(git grep -nIiP "$phrase" -- "${paths[@]}" ':!scripts/phrases.txt' ':!CONTRIBUTING.md') || continue
  printf '%s\n    write instead: %s\n' "$found" "$instead"
  failed=1
done <scripts/phrases.txt
[ $failed -eq 0 ] || { echo 'prose: phrases that CONTRIBUTING.md advises against, see above' >&2; exit 1; }
