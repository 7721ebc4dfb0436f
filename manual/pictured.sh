#!/usr/bin/env bash
# pictured.sh PICTURE [varying]: fails unless each line of stdin is in docs/pictures/PICTURE.svg. It ignores spaces, and
# with `varying` also numbers and their units. The manual's pages run it in hidden steps, with the commands that
# scripts/pictures.sh types, to detect pictures that are out of date. scripts/pictures.sh renders them again.
set -euo pipefail
picture=$(dirname "$(realpath "$0")")/../docs/pictures/$1.svg
varying=s/x/x/
[ "${2:-}" != varying ] || varying='s/[0-9.]+//g; s/[KMG]iB|\bB\b//g'
shown=$(sed -e 's/<[^>]*>//g' -e 's/&lt;/</g; s/&gt;/>/g; s/&quot;/"/g; s/&amp;/\&/g' "$picture" | sed -E "$varying" | tr -d ' \n')
lines=0
while IFS= read -r line; do
  wanted=$(sed -E "$varying" <<<"$line" | tr -d ' \n')
  [ -n "$wanted" ] || continue
  lines=$((lines + 1))
  [[ $shown == *"$wanted"* ]] || { printf 'error: not in docs/pictures/%s.svg: %s\nhint: scripts/pictures.sh makes it again\n' "$1" "$line" >&2; exit 1; }
done
[ "$lines" -gt 0 ] || { printf 'error: nothing to look for in docs/pictures/%s.svg\n' "$1" >&2; exit 1; }
