# The names that Linux gives to virtio disks: vda to vdz, then vdaa to vdzz.
{ lib }:
let
  letters = lib.stringToCharacters "abcdefghijklmnopqrstuvwxyz";
in
rec {
  driveLetters = letters ++ lib.concatMap (first: map (second: first + second) letters) letters;

  # Adds its `letter` to each volume of a configuration's `microvm`.
  withDriveLetters =
    {
      volumes,
      storeOnDisk,
      hypervisor ? null,
      storeDiskBuild ? "derivation",
      storeDiskTransport ? "block",
      ...
    }:
    let
      # Persistent memory has no letter, and crosvm attaches a disk that is served after its own.
      storeIsFirst =
        storeOnDisk
        && storeDiskTransport == "block"
        && !(storeDiskBuild == "live" && hypervisor == "crosvm");
      free = if storeIsFirst then builtins.tail driveLetters else driveLetters;
    in
    lib.imap0 (index: volume: volume // { letter = builtins.elemAt free index; }) volumes;
}
