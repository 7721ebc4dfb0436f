//! `microvm ssh`: opens a shell in the guest over vsock, without a network.

use super::{ImperativeError, Layout, MachineName};
use crate::sockets::{connect_to, forward};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;

/// The maximum length of a hypervisor's answer to a request to connect to its guest: `OK` and a port.
const MAX_ANSWER_BYTES: u64 = 64;

/// The options of ssh that take a value: ssh(1).
const OPTIONS_WITH_VALUE: &str = "BbcDEeFIiJLlmOoPpQRSWw";

/// The port of sshd.
const SSH_PORT: u32 = 22;

/// Returns the command that connects to the machine's sshd, with this program (`vsock-connect`) as the proxy.
///
/// The guest's host key is not checked: a guest without a disk has a new key after each boot, and only the guest itself
/// can answer on its vsock address, which belongs to the kernel or is a socket of the hypervisor.
///
/// # Errors
/// Returns [`ImperativeError::Missing`], [`ImperativeError::NoVsock`], or [`ImperativeError::File`] for a link that
/// root does not follow.
pub fn ssh_command(
    layout: &Layout,
    name: &MachineName,
    this_program: &Path,
    arguments: &[String],
) -> Result<Command, ImperativeError> {
    let machine = layout.existing(name)?;
    let runner = match machine.booted_runner()? {
        Some(booted) if booted.exists() => Some(booted),
        _ => machine.current().symlink_metadata().is_ok().then(|| machine.runner()).transpose()?,
    };
    let fact = |file: &str| {
        let path = runner.as_ref()?.join("share/microvm").join(file);
        std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    };
    let cid = fact("vsock-cid").ok_or_else(|| ImperativeError::NoVsock(name.to_string()))?;
    // These two hypervisors have a Unix socket instead of the kernel's vsock.
    let has_socket =
        fact("hypervisor").is_some_and(|hypervisor| ["cloud-hypervisor", "firecracker"].contains(&hypervisor.as_str()));
    let place = if has_socket { machine.directory.join(format!("{name}.vsock")).display().to_string() } else { cid };
    let quoted = |word: &str| format!("'{}'", word.replace('\'', r"'\''"));
    let proxy = format!("{} vsock-connect {} {SSH_PORT}", quoted(&this_program.display().to_string()), quoted(&place));
    let mut command = Command::new("ssh");
    for option in [
        format!("ProxyCommand={proxy}"),
        "StrictHostKeyChecking=no".to_owned(),
        "UserKnownHostsFile=/dev/null".to_owned(),
        "LogLevel=ERROR".to_owned(),
    ] {
        command.args(["-o", &option]);
    }
    // The user's options come first, because ssh uses the first of several user names.
    let (options, guest_command) = arguments.split_at(options_of(arguments));
    command.args(options).args(["-l", "root", name.as_str()]).args(guest_command);
    Ok(command)
}

/// Returns the number of leading words that are options of ssh with their values. The rest is a command for the guest.
fn options_of(words: &[String]) -> usize {
    let mut count = 0;
    while let Some(letters) = words.get(count).and_then(|word| word.strip_prefix('-')).filter(|rest| !rest.is_empty()) {
        count += 1;
        // The value is the rest of the word, or the next word.
        if letters.find(|letter| OPTIONS_WITH_VALUE.contains(letter)).is_some_and(|at| at + 1 == letters.len()) {
            count += 1;
        }
    }
    count.min(words.len())
}

/// Copies data between stdin, stdout and a port of the guest, as a ProxyCommand of ssh.
///
/// # Errors
/// Fails if the guest does not accept the connection.
pub fn connect_vsock(place: &str, port: u32) -> io::Result<()> {
    let (mut from_guest, mut to_guest): (Box<dyn Read + Send>, File) = match place.parse::<u32>() {
        Ok(cid) => {
            let guest = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            connect(guest.as_raw_fd(), &VsockAddr::new(cid, port))?;
            (Box::new(File::from(guest.try_clone()?)), File::from(guest))
        }
        Err(_) => {
            let mut guest = connect_to(Path::new(place))?;
            // The protocol is described in firecracker's docs/vsock.md; cloud-hypervisor uses the same one.
            guest.write_all(format!("CONNECT {port}\n").as_bytes())?;
            let mut reader = BufReader::new(guest.try_clone()?);
            let mut answer = String::new();
            (&mut reader).take(MAX_ANSWER_BYTES).read_line(&mut answer)?;
            if !answer.starts_with("OK ") {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    "nothing listens on that port of the guest",
                ));
            }
            (Box::new(reader), File::from(OwnedFd::from(guest)))
        }
    };
    std::thread::spawn(move || {
        // ssh closes the connection by ending this process.
        let _ = forward(&mut io::stdin().lock(), &mut to_guest);
    });
    forward(&mut from_guest, &mut io::stdout().lock())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_ssh_keep_their_values() {
        for (line, expected) in [
            ("", 0),
            ("uname -a", 0),
            ("-v uname -a", 1),
            ("-l admin uname", 2),
            ("-vl admin -p22 -o User=a id", 5),
            ("-i", 1),
        ] {
            let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
            assert_eq!(options_of(&words), expected, "{line}");
        }
    }
}
