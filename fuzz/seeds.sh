#!/bin/sh
# Makes the images the fuzzers start from: small trees by our builder and, where they are installed, the stock tools.
# usage: fuzz/seeds.sh MICROVM_IMAGE   (the program, such as target/debug/microvm-image)
set -eu
program=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
corpus=$here/corpus/read_image
mkdir -p "$corpus"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/store/00000000000000000000000000000000-tree
mkdir -p "$tree/directory/deeper" "$tree/many"
printf content >"$tree/directory/deeper/file"
: >"$tree/empty"
ln -s directory/deeper "$tree/link"
seq 1 3000 >"$tree/text"
truncate -s 100000 "$tree/hole"
for number in $(seq 1 300); do printf '%s' "$number" >"$tree/many/$number"; done
ls "$work/store" >"$work/paths"
for codec in zstd gzip xz lz4 none; do
    "$program" build --paths-from "$work/paths" --store-dir "$work/store" --no-cache --quiet \
        --compression "$codec" --block-size 4K -o "$corpus/ours-$codec" >/dev/null
    if command -v mksquashfs >/dev/null && [ "$codec" != none ]; then
        mksquashfs "$work/store" "$corpus/mksquashfs-$codec" -comp "$codec" -b 4096 -noappend -quiet -no-progress
    fi
    if command -v gensquashfs >/dev/null && [ "$codec" != none ]; then
        gensquashfs -q -f -c "$codec" -b 4096 -D "$work/store" "$corpus/gensquashfs-$codec"
    fi
done
mkdir -p "$here/corpus/extract_image"
cp "$corpus"/* "$here/corpus/extract_image/"
