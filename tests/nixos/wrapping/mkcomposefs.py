"""mkcomposefs --from-file DUMP IMAGE: writes an erofs image of the metadata in a dump of composefs.

Debian trixie has no composefs. This handles what NixOS writes for /etc: directories, symbolic links, and files whose content
overlayfs takes from a path below its data-only layer.
"""
import io, subprocess, sys, tarfile, tempfile, uuid

DIRECTORY, FILE, LINK = 0o4, 0o10, 0o12


def entry_of(line):
    path, size, mode, _, uid, gid, _, mtime, payload = line.split()[:9]
    mode = int(mode, 8)
    kind = mode >> 12
    entry = tarfile.TarInfo(path.strip("/"))
    entry.mode, entry.uid, entry.gid, entry.mtime = mode & 0o7777, int(uid), int(gid), int(float(mtime))
    if kind == DIRECTORY:
        entry.type = tarfile.DIRTYPE
    elif kind == LINK:
        entry.type, entry.linkname = tarfile.SYMTYPE, payload
    elif kind == FILE:
        entry.size = int(size)
        attributes = {"metacopy": "", "redirect": "/" + payload.lstrip("/")}
        entry.pax_headers = {f"SCHILY.xattr.trusted.overlay.{name}": value for name, value in attributes.items()}
    else:
        sys.exit(f"mkcomposefs: {path} has the unknown type {kind:o}")
    return entry


def main():
    if len(sys.argv) != 4 or sys.argv[1] != "--from-file":
        sys.exit("usage: mkcomposefs --from-file DUMP IMAGE")
    dump, image = sys.argv[2:]
    with tempfile.NamedTemporaryFile() as archive:
        with open(dump) as lines, tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for entry in map(entry_of, lines):
                if entry.name:
                    tar.addfile(entry, io.BytesIO(bytes(entry.size)))
        archive.flush()
        subprocess.run(["mkfs.erofs", "--quiet", "-U", str(uuid.UUID(int=0)), "--tar=f", image, archive.name], check=True)


main()
