# shellcheck shell=bash disable=SC2154
# Sets the mode and group of the root directory in the erofs image $out to those that Nix expects of a store: 1775 and
# 30000, the group of build users in NixOS. If they differ, Nix tries to change them, even if it only reads the store, and
# fails on a read-only disk. mkfs.erofs can only set the same group for all files.
#
# The offsets are those of fs/erofs/erofs_fs.h. The superblock at 1024 has the base 2 logarithm of the block size at 12,
# the root's number (in slots of 32 bytes, from the first metadata block) at 14, and that block at 40. An inode begins
# with its format, whose bit 0 is set for the extended form. Its mode is at 4, and its group at 26 (compact, two bytes)
# or at 28.
erofs_number() { od -A n -t "u$2" -j "$1" -N "$2" "$out" | tr -d ' '; } # OFFSET BYTES
erofs_put() { printf '%b' "$2" | dd of="$out" bs=1 seek="$1" conv=notrunc status=none; } # OFFSET TEXT
[ "$(erofs_number 1024 4)" = 3774210530 ] || { echo "$out is not an erofs image" >&2; exit 1; }
chmod u+w "$out"
root=$((($(erofs_number 1064 4) << $(erofs_number 1036 1)) + 32 * $(erofs_number 1038 2)))
erofs_put $((root + 4)) '\xfd\x43' # a directory, 041775
case $(($(erofs_number "$root" 2) & 1)) in
0) erofs_put $((root + 26)) '\x30\x75' ;;
1) erofs_put $((root + 28)) '\x30\x75\x00\x00' ;;
esac
