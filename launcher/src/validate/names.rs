//! Rules for single names and values, with their sources. Each function returns the reason why a value is invalid.

use crate::path::HostPath;
use std::net::Ipv4Addr;

/// The path of a Unix socket, with its final NUL, has at most 108 bytes: `sun_path` in unix(7).
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// The name of an interface, with its final NUL, has at most 16 bytes: `IFNAMSIZ` in linux/if.h.
const MAX_INTERFACE_NAME_BYTES: usize = 15;
/// The size of a virtio disk's serial number: `VIRTIO_BLK_ID_BYTES` in linux/virtio_blk.h.
const MAX_SERIAL_BYTES: usize = 20;

/// Checks a path: it must not be empty, look like an option, or contain control characters.
pub(super) fn path(path: &HostPath) -> Result<(), String> {
    let text = path.as_str();
    if text.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if text.starts_with('-') {
        return Err(format!("`{text}` would be taken for an option; write `./{text}`"));
    }
    no_control_characters(text)
}

/// Checks the path of a file, which cannot be that of a directory.
pub(super) fn file_path(file: &HostPath) -> Result<(), String> {
    path(file)?;
    match file.as_str().rsplit('/').next() {
        Some("" | "." | "..") => Err(format!("`{file}` is the path of a directory; write the path of a file in it")),
        _ => Ok(()),
    }
}

/// Checks the path of a Unix socket.
pub(super) fn socket_path(socket: &HostPath) -> Result<(), String> {
    path(socket)?;
    let bytes = socket.as_str().len();
    if bytes > MAX_SOCKET_PATH_BYTES {
        return Err(format!(
            "`{socket}` has {bytes} bytes, but the path of a unix socket has at most {MAX_SOCKET_PATH_BYTES}"
        ));
    }
    Ok(())
}

/// Checks the name of a network interface of the host: `dev_valid_name` in net/core/dev.c, but without `%`, which tun
/// replaces with a number. The kernel has the other names in sysctl for all interfaces: net/ipv4/devinet.c.
pub(super) fn interface_name(name: &str) -> Result<(), String> {
    if matches!(name, "" | "." | ".." | "lo" | "all" | "default") || name.starts_with('-') {
        return Err(format!("`{name}` cannot be the name of a network interface"));
    }
    if name.len() > MAX_INTERFACE_NAME_BYTES {
        return Err(format!(
            "`{name}` has {} bytes, but the name of a network interface has at most {MAX_INTERFACE_NAME_BYTES}",
            name.len()
        ));
    }
    let forbidden = |character: char| !character.is_ascii_graphic() || "/:%,=".contains(character);
    match name.chars().find(|character| forbidden(*character)) {
        Some(character) => {
            Err(format!("`{name}` contains {character:?}, which is not allowed in the name of a network interface"))
        }
        None => Ok(()),
    }
}

/// Checks a MAC address, which must be a unicast address.
pub(super) fn mac(mac: &str) -> Result<(), String> {
    let bytes: Option<Vec<u8>> =
        mac.split(':').map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten()).collect();
    let Some(bytes) = bytes.filter(|bytes| bytes.len() == 6 && !mac.contains('+')) else {
        return Err(format!("`{mac}` is not a MAC address; write six bytes as in `02:00:00:00:00:01`"));
    };
    if bytes[0] & 1 == 1 {
        return Err(format!("`{mac}` is a multicast address; clear the lowest bit of its first byte"));
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(format!("`{mac}` is not the address of an interface"));
    }
    Ok(())
}

/// Checks an IPv4 address. An empty one stands for any address.
pub(super) fn ipv4_address(address: &str) -> Result<(), String> {
    if address.is_empty() || address.parse::<Ipv4Addr>().is_ok() {
        return Ok(());
    }
    Err(format!("`{address}` is not an IPv4 address"))
}

/// Checks the tag by which the guest mounts a share. It becomes part of a file name and of a line in /etc/fstab.
pub(super) fn share_tag(tag: &str, max_bytes: usize) -> Result<(), String> {
    if tag.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if tag.len() > max_bytes {
        return Err(format!("`{tag}` has {} bytes, but the tag of such a share has at most {max_bytes}", tag.len()));
    }
    if tag.starts_with(['.', '-']) {
        return Err(format!("`{tag}` must not start with `.` or `-`"));
    }
    match tag.chars().find(|character| !character.is_ascii_graphic() || *character == '/') {
        Some(character) => Err(format!("`{tag}` contains {character:?}, which is not allowed in a tag")),
        None => Ok(()),
    }
}

/// Checks the serial number of a virtio disk.
pub(super) fn serial(serial: &str) -> Result<(), String> {
    if serial.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if serial.len() > MAX_SERIAL_BYTES {
        return Err(format!(
            "`{serial}` has {} bytes, but the serial number of a virtio disk has at most {MAX_SERIAL_BYTES}",
            serial.len()
        ));
    }
    match serial.chars().find(|character| !character.is_ascii_graphic() || *character == '/') {
        Some(character) => {
            Err(format!("`{serial}` contains {character:?}, which is not allowed in a name below /dev/disk/by-id"))
        }
        None => Ok(()),
    }
}

/// Checks a mount point in the guest.
pub(super) fn guest_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(format!("`{path}` must be an absolute path"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("`{path}` must not contain `..`"));
    }
    match path.chars().find(|character| character.is_control() || character.is_whitespace()) {
        Some(character) => Err(format!(
            "`{}` contains {character:?}, which is not allowed in a line of /etc/fstab",
            path.escape_debug()
        )),
        None => Ok(()),
    }
}

/// Checks the name or number of a user of the host.
pub(super) fn user(user: &str) -> Result<(), String> {
    let forbidden = |character: char| !character.is_ascii_graphic() || "/:,".contains(character);
    if user.is_empty() || user.starts_with('-') || user.chars().any(forbidden) {
        return Err(format!("`{}` cannot be the name of a user", user.escape_debug()));
    }
    Ok(())
}

/// Checks the name of a credential: `credential_name_valid` in systemd, but without `:`, which separates the name from
/// the value.
pub(super) fn credential(name: &str) -> Result<(), String> {
    let forbidden = |character: char| !character.is_ascii_graphic() || "/:".contains(character);
    if name.is_empty() || name == "." || name == ".." || name.len() > 255 || name.chars().any(forbidden) {
        return Err(format!("`{}` cannot be the name of a credential", name.escape_debug()));
    }
    Ok(())
}

/// Returns the canonical form of a UUID, which may be written without dashes, as in /etc/machine-id.
pub(super) fn canonical_uuid(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|character| *character != '-').collect::<String>().to_ascii_lowercase();
    let well_formed = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let dashed = text.len() == 36 && [8, 13, 18, 23].into_iter().all(|at| text.as_bytes()[at] == b'-');
    if !well_formed || !(dashed || text.len() == 32) || digits.bytes().all(|byte| byte == b'0') {
        return None;
    }
    let part = |from: usize, to: usize| &digits[from..to];
    Some(format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)))
}

/// Checks text that becomes one argument and part of one line.
pub(super) fn no_control_characters(text: &str) -> Result<(), String> {
    match text.chars().find(|character| character.is_control()) {
        Some(character) => Err(format!("`{}` contains the control character {character:?}", text.escape_debug())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_those_of_the_kernel() {
        for name in [
            "",
            ".",
            "..",
            "lo",
            "all",
            "default",
            "a/b",
            "tap%d",
            "a b",
            "a:1",
            "-a",
            "sixteen-bytes-xx",
            "t\u{e4}p",
            "a,b",
        ] {
            assert!(interface_name(name).is_err(), "{name:?}");
        }
        for name in ["vm-web", "fifteen-bytes-x", "tap0.1"] {
            assert_eq!(interface_name(name), Ok(()), "{name:?}");
        }
    }

    #[test]
    fn mac_addresses_are_those_of_one_station() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "02-00-00-00-00-01",
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
            "0g:00:00:00:00:01",
            "+2:00:00:00:00:01",
            "2:0:0:0:0:1",
        ] {
            assert!(mac(text).is_err(), "{text:?}");
        }
        assert_eq!(mac("02:00:00:00:00:01"), Ok(()));
        assert_eq!(mac("5A:B2:00:0f:00:01"), Ok(()));
    }

    #[test]
    fn a_socket_path_has_107_bytes() {
        assert_eq!(socket_path(&HostPath::new("s".repeat(107))), Ok(()));
        assert!(socket_path(&HostPath::new("s".repeat(108))).is_err());
        assert!(socket_path(&HostPath::new("")).is_err());
        assert!(socket_path(&HostPath::new("-s")).is_err());
    }

    #[test]
    fn uuids_are_written_in_one_form() {
        let canonical = "a67472e5-570e-5c8a-b18c-ae3c77701050";
        assert_eq!(canonical_uuid("A67472E5-570E-5C8A-B18C-AE3C77701050").as_deref(), Some(canonical));
        assert_eq!(canonical_uuid("a67472e5570e5c8ab18cae3c77701050").as_deref(), Some(canonical));
        for text in [
            "",
            "a67472e5",
            "a67472e5-570e-5c8a-b18cae3c-77701050",
            "00000000000000000000000000000000",
            "g67472e5570e5c8ab18cae3c77701050",
        ] {
            assert_eq!(canonical_uuid(text), None, "{text:?}");
        }
    }

    #[test]
    fn serials_tags_and_guest_paths_keep_to_their_limits() {
        assert_eq!(serial(&"s".repeat(20)), Ok(()));
        assert!(serial(&"s".repeat(21)).is_err());
        assert!(serial("a b").is_err());
        assert_eq!(share_tag("ro-store", 36), Ok(()));
        assert!(share_tag(&"t".repeat(37), 36).is_err());
        assert!(share_tag("../x", 36).is_err());
        assert_eq!(guest_path("/var/lib"), Ok(()));
        for path in ["var", "/a/../b", "/a b", "/a\n"] {
            assert!(guest_path(path).is_err(), "{path:?}");
        }
    }
}
