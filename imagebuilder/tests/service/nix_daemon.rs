//! A fake daemon that supports the queries of the cache service with the protocol of Nix 2.8.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

/// The NAR hash and size of each valid store path.
type Valid = Arc<Mutex<HashMap<String, ([u8; 32], u64)>>>;

/// The fake daemon. Its threads end with the test.
pub struct FakeNixDaemon {
    valid: Valid,
    roots: Arc<Mutex<Vec<String>>>,
}

impl FakeNixDaemon {
    pub fn start(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let daemon = Self { valid: Valid::default(), roots: Arc::default() };
        let (valid, roots) = (Arc::clone(&daemon.valid), Arc::clone(&daemon.roots));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (valid, roots) = (Arc::clone(&valid), Arc::clone(&roots));
                thread::spawn(move || serve(&mut stream.unwrap(), &valid, &roots));
            }
        });
        daemon
    }

    /// Makes a path valid.
    pub fn add(&self, base_name: &str, nar_hash: [u8; 32], nar_size_bytes: u64) {
        self.valid.lock().unwrap().insert(base_name.to_owned(), (nar_hash, nar_size_bytes));
    }

    /// Makes a path invalid.
    pub fn remove(&self, base_name: &str) {
        self.valid.lock().unwrap().remove(base_name);
    }

    /// Returns the paths that clients registered as temporary roots.
    pub fn roots(&self) -> Vec<String> {
        self.roots.lock().unwrap().clone()
    }
}

fn serve(stream: &mut UnixStream, valid: &Valid, roots: &Mutex<Vec<String>>) -> io::Result<()> {
    number(stream)?;
    numbers(stream, &[0x6478_696f, 0x122])?;
    (0..3).try_for_each(|_| number(stream).map(drop))?;
    text(stream, "2.8.0")?;
    numbers(stream, &[LAST])?;
    loop {
        let operation = number(stream)?;
        let path = read_text(stream)?;
        let base_name = path.strip_prefix("/nix/store/").expect("a path of the store");
        match operation {
            11 => {
                roots.lock().unwrap().push(base_name.to_owned());
                numbers(stream, &[LAST, 1])?;
            }
            26 => {
                let found = valid.lock().unwrap().get(base_name).copied();
                let Some((nar_hash, nar_size_bytes)) = found else {
                    numbers(stream, &[LAST, 0])?;
                    continue;
                };
                numbers(stream, &[LAST, 1])?;
                text(stream, "")?;
                text(stream, &nar_hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())?;
                numbers(stream, &[0, 1, nar_size_bytes, 0, 0])?;
                text(stream, "")?;
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

const LAST: u64 = 0x616c_7473;

fn number(stream: &mut UnixStream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn numbers(stream: &mut UnixStream, numbers: &[u64]) -> io::Result<()> {
    stream.write_all(&numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>())
}

fn read_text(stream: &mut UnixStream) -> io::Result<String> {
    let length = usize::try_from(number(stream)?).unwrap();
    let mut bytes = vec![0; length.next_multiple_of(8)];
    stream.read_exact(&mut bytes)?;
    bytes.truncate(length);
    Ok(String::from_utf8(bytes).unwrap())
}

fn text(stream: &mut UnixStream, text: &str) -> io::Result<()> {
    numbers(stream, &[text.len() as u64])?;
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    stream.write_all(&bytes)
}
