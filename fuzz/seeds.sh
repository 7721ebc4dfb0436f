#!/usr/bin/env bash
# seeds.sh: makes the seeds of the fuzzers: small images made by our builder and the stock tools, entries of a real
# cache, and the specs and texts of the tests.
#
# usage: fuzz/seeds.sh MICROVM_IMAGE CORPUS      (the program, such as target/debug/microvm-image; a new directory)
set -euo pipefail
program=$(realpath "$1")
mkdir -p "$2"
corpus=$(realpath "$2")
cd "$(dirname "$(realpath "$0")")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

seed() { # TARGET NAME: its content is on stdin
  mkdir -p "$corpus/$1"
  cat >"$corpus/$1/$2"
}

# A store of one path with all kinds of files.
name=0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-hello
tree=$work/store/$name
mkdir -p "$tree/directory/deeper" "$tree/many"
printf content >"$tree/directory/deeper/file"
: >"$tree/empty"
ln -s directory/deeper "$tree/link"
seq 1 3000 >"$tree/text"
truncate -s 100000 "$tree/hole"
for number in $(seq 1 300); do printf '%s' "$number" >"$tree/many/$number"; done
printf '/nix/store/%s\n' "$name" >"$work/paths"

build() { "$program" build --quiet "$@" >/dev/null; }

mkdir -p "$corpus/read_image"
for codec in zstd gzip xz lz4 none; do
  build --paths-from "$work/paths" --store-dir "$work/store" --no-cache --compression "$codec" --block-size 4K \
    -o "$corpus/read_image/ours-$codec"
  if [ "$codec" = none ]; then continue; fi
  if command -v mksquashfs >/dev/null; then
    mksquashfs "$work/store" "$corpus/read_image/mksquashfs-$codec" -comp "$codec" -b 4096 -noappend -quiet -no-progress
  fi
  if command -v gensquashfs >/dev/null; then
    gensquashfs -q -f -c "$codec" -b 4096 -D "$work/store" "$corpus/read_image/gensquashfs-$codec"
  fi
done
if command -v mksquashfs >/dev/null; then
  # With uncompressed tables, changing a byte changes a field.
  mksquashfs "$work/store" "$corpus/read_image/plain" -noI -noD -noF -noX -b 4096 -noappend -quiet -no-progress
fi
for options in '' --dax --verity; do
  build --paths-from "$work/paths" --store-dir "$work/store" --no-cache --format erofs ${options:+"$options"} -o "$corpus/read_image/erofs$options"
  # Without the superblock's checksum, so that a changed byte is read.
  printf '\002' | dd of="$corpus/read_image/erofs$options" bs=1 seek=1032 conv=notrunc status=none
done
rm -f "$corpus/read_image/erofs--verity.verity.json"
if command -v mkfs.erofs >/dev/null; then
  # Compact inodes with tails after them, and extended ones.
  mkfs.erofs -T 1 -E force-inode-compact "$corpus/read_image/mkfs-compact" "$work/store" >/dev/null 2>&1
  mkfs.erofs -T 1 -E force-inode-extended,noinline_data "$corpus/read_image/mkfs-extended" "$work/store" >/dev/null 2>&1
  for image in mkfs-compact mkfs-extended; do
    printf '\000' | dd of="$corpus/read_image/$image" bs=1 seek=1032 conv=notrunc status=none
  done
fi
cp -r "$corpus/read_image" "$corpus/extract_image"

# The sources of a closure, and a plan.
hash=sha256:0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv0c0wqvhs4gn6a6ps1q4a
registration=$(printf '/nix/store/%s\n%s\n120\n\n1\n/nix/store/%s' "$name" "$hash" "$name")
printf '%s\n\0%s\n' "$registration" "$(cat "$work/paths")" | seed registration closure-info
printf '{"exportReferencesGraph":{"closure":["/nix/store/%s"]},"closure":[{"path":"/nix/store/%s","narHash":"%s",%s}]}' \
  "$name" "$name" "$hash" '"narSize":120,"references":[]' | seed reference_graph attrs
seed path_list one <"$work/paths"
printf '\r\n/nix/store/%s/\r\n%s\n' "$name" "${name/hello/other}" | seed path_list forms
seed image_plan golden <../imagebuilder/tests/golden/plan-v1.json
for text in "$name" "/nix/store/$name" "$hash" "sha256:$(printf '0a%.0s' {1..32})" 10G 1.5GiB 4096; do
  printf '%s' "$text" | seed values "$(printf '%s' "$text" | tr '/:' '__')"
done

# Machines.
mkdir "$corpus/machine_spec" "$corpus/store_share" "$corpus/cluster_spec"
cp ../fixtures/specs/*.json "$corpus/machine_spec"
cp ../fixtures/clusters/rack.{json,cib.xml} "$corpus/cluster_spec"
cp ../fixtures/specs/{minimal,shares-9p,store-share}.json "$corpus/store_share"

# From a real cache: the parts of its entries after the checksums, and its record of an image.
cat >"$work/plan.json" <<END
{"version": 1, "storeDir": "$work/store",
  "paths": [{"path": "$name", "narHash": "sha256:$(nix-hash --type sha256 --base32 "$tree")"}],
  "settings": {"compression": "zstd", "level": 3, "blockSizeBytes": 4096, "fragmentBlockSizeBytes": 4096}}
END
build --plan "$work/plan.json" --cache "$work/cache" -o "$work/image"
# The indexes of packs: trees, hashes and size words for the fuzzer to combine.
number=0
while read -r pack; do
  number=$((number + 1))
  tail -c 400 "$pack" | seed pack_index "$number"
done < <(find "$work/cache/v2/packs" -type f | sort)
find "$work/cache/v2/outputs" -type f -exec cat {} \; | seed output_record built

# A request of a client to the cache service, its answers, and answers of Nix's daemon.
printf '{"version":1,"encoder":"zstd8-e1","storePath":{"path":"%s","narHash":"%s"},"settings":%s}' "$name" "$hash" \
  '{"compression":"zstd","level":8,"blockSizeBytes":131072,"fragmentBlockSizeBytes":131072}' | seed cache_request request
printf '{"answer":"refused","version":1,"reason":"notValid","message":"no"}' | seed cache_request answer
printf 'oixd\0\0\0\0\042\001\0\0\0\0\0\0\005\0\0\0\0\0\0\0002.8.0\0\0\0stla\0\0\0\0stla\0\0\0\0%08d' 0 | tr 0 '\0' |
  seed cache_request nix-daemon

# Kernels: an ELF with a note of Xen, and the boot image of x86.
{
  printf '\177ELF%028d' 0 | tr 0 '\0'
  printf '\100\0\0\0\0\0\0\0%014d\070\0\001\0%06d' 0 0 | tr 0 '\0'
  printf '\004\0\0\0%04d\200\0\0\0\0\0\0\0%016d\024\0\0\0%020d' 0 0 0 | tr 0 '\0'
  printf '%08d\004\0\0\0\004\0\0\0\022\0\0\0Xen\0%0512d' 0 0 | tr 0 '\0'
} | seed kernel_image elf
printf '%0514dHdrS%010d' 0 0 | seed kernel_image boot-image

# A request of a guest: the header, the size of the disk in sectors, and buffers for the header, the data and the status.
{
  printf '%016d\010\0\0\0' 0 | tr 0 '\0'
  printf '%08d\020\0\0\0\0%08d\0\002\0\0\001%08d\001\0\0\0\001' 0 0 0 | tr 0 '\0'
} | seed disk_request read

# The recorded state of a machine, answers of its hypervisor, messages of its guest, and the content of its volumes.
printf '0{"hypervisor":{"pid":1,"startTicks":5},"supervisor":null,"startedUnixSeconds":1,"consoleSocket":null,%s}' \
  '"guestReady":true' | seed machine_state process
for hypervisor in qemu firecracker; do
  { printf 1 && cat "../fixtures/launches/settings/$hypervisor.json"; } | seed machine_state "launch-$hypervisor"
done
qmp='{"QMP":{}}\r\n{"return":{}}\r\n{"event":"RESUME"}\r\n{"return":{"status":"running"}}\r\n'
http='HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{"state":"Running"}'
# The first byte selects the hypervisor.
printf '0%b' "$qmp" | seed control_answer qemu
printf '1%b' "$http" | seed control_answer cloud-hypervisor
printf '2%b' "$http" | seed control_answer firecracker
printf '3\0\0\0\0' | seed control_answer kvmtool
printf 'READY=1\nSTATUS=Startup finished\nMAINPID=1\n' | seed guest_notification ready
{ printf 0 && head -c 2048 "$corpus/read_image/ours-none"; } | seed volume_superblock squashfs
{ printf 0 && printf 'XFSB%0200d' 0; } | seed volume_superblock xfs
{ printf '1%056d\123\357%0900d' 0 0; } | seed volume_superblock ext
{ printf '2%064d_BHRfS_M%04100d' 0 0; } | seed volume_superblock btrfs
{ printf '0%054dFAT%025dFAT32%0423d\125\252' 0 0 0; } | seed volume_superblock vfat
