//! `benches guest-read`: the same readings as `benches read`, with Debian's kernel in a guest that qemu emulates.
//!
//! The guest has the kernel and initrd of the fixture, with this program, linked statically, added; the images are its
//! disks. Emulated seconds are not real ones: only the ratios are meaningful.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::error::{Error, file};
use crate::initrd::with_files;
use crate::read::{Extent, ImageReadings};
use crate::store_ways::server_bytes;
use crate::workspace;

const GUEST_MEMORY_MIB: u32 = 1024;
const GUEST_CPUS: u32 = 2;

/// Reads the images in a guest, and the disk without an image that is served from a plan.
///
/// # Errors
/// When the guest can't be made or started, or what it prints is not a complete result.
pub fn run(images: &[PathBuf], plan: Option<&Path>, extent: Extent) -> Result<Vec<ImageReadings>, Error> {
    let fixture = workspace::fixture("small")?;
    let directory = tempfile::tempdir().map_err(file("create a directory in", std::env::temp_dir()))?;
    let initrd = directory.path().join("initrd");
    let program = workspace::static_program("benches")?;
    let program = fs::read(&program).map_err(file("read", &program))?;
    let added: [(&str, &[u8]); 2] = [("benches", &program), ("guest-read", include_bytes!("guest-read.sh"))];
    with_files(&fixture.join("initrd"), &added, &initrd)?;
    let server = plan.map(|plan| Server::start(plan, &directory.path().join("live.sock"))).transpose()?;
    crate::message("guest-read: booting");
    let mut command = qemu(&fixture.join("vmlinux"), &initrd, images, extent, server.as_ref())?;
    let (console, server_bytes) = boot(&mut command, server.as_ref())?;
    let mut results: Vec<ImageReadings> = serde_json::from_str(between_markers(&console)?)
        .map_err(|error| Error::Unexpected(format!("the guest's result is not JSON: {error}")))?;
    if let (true, Some(result)) = (server.is_some(), results.get_mut(images.len())) {
        result.image = format!("live; the server has {:.1} MiB", server_bytes as f64 / 1_048_576.0);
    }
    for (result, image) in results.iter_mut().zip(images) {
        result.bytes = fs::metadata(image).map_err(file("read", image))?.len();
        result.image = image.display().to_string();
    }
    Ok(results)
}

/// The server of a disk without an image, which is killed on drop.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    fn start(plan: &Path, socket: &Path) -> Result<Self, Error> {
        let program = workspace::release_program("imagebuilder", "microvm-image")?;
        let mut command = Command::new(program);
        command.args(["serve", "--queues", &GUEST_CPUS.to_string(), "--plan"]).arg(plan).arg("--socket").arg(socket);
        let child = command.spawn().map_err(|source| Error::Start { program: "microvm-image".into(), source })?;
        let mut server = Self { child, socket: socket.to_owned() };
        while !server.socket.exists() {
            if server.child.try_wait().map_err(file("wait for", socket))?.is_some() {
                return Err(Error::Unexpected("`microvm-image serve` ended before it made its socket".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Returns 0 if the server has ended.
    fn resident_bytes(&self) -> u64 {
        server_bytes(self.child.id()).unwrap_or(0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the qemu that reads these disks.
fn qemu(
    kernel: &Path,
    initrd: &Path,
    images: &[PathBuf],
    extent: Extent,
    server: Option<&Server>,
) -> Result<Command, Error> {
    let disks: Vec<String> = (b'a'..=b'z')
        .take(images.len() + usize::from(server.is_some()))
        .map(|letter| format!("/dev/vd{}", char::from(letter)))
        .collect();
    let parameters = format!(
        "console=ttyS0 quiet panic=-1 no_timer_check rdinit=/guest-read tsc_early_khz={} read.rounds={} read.every={} read.disks={}",
        workspace::tsc_khz()?,
        extent.rounds,
        extent.every,
        disks.join(",")
    );
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-machine",
        "q35",
        "-accel",
        "tcg,thread=multi",
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-no-reboot",
    ])
    .args(["-m", &GUEST_MEMORY_MIB.to_string(), "-smp", &GUEST_CPUS.to_string(), "-serial", "stdio"])
    .arg("-kernel")
    .arg(kernel)
    .arg("-initrd")
    .arg(initrd)
    .args(["-append", &parameters]);
    for (index, image) in images.iter().enumerate() {
        let path = image.display().to_string().replace(',', ",,");
        qemu.args(["-drive", &format!("id=d{index},if=none,format=raw,read-only=on,file={path}")]);
        qemu.args(["-device", &format!("virtio-blk-pci,drive=d{index}")]);
    }
    if let Some(server) = server {
        let memory = format!("memory-backend-memfd,id=memory,size={GUEST_MEMORY_MIB}M,share=on");
        qemu.args(["-object", &memory, "-machine", "memory-backend=memory"]);
        qemu.args(["-chardev", &format!("socket,id=live,path={}", server.socket.display())]);
        qemu.args(["-device", "vhost-user-blk-pci,chardev=live"]);
    }
    Ok(qemu)
}

/// Runs qemu to its end. Returns the guest's console, and the most resident memory that the server had when the guest
/// wrote a line, in bytes: the server ends together with the guest, so it cannot be measured afterwards.
fn boot(qemu: &mut Command, server: Option<&Server>) -> Result<(String, u64), Error> {
    let start = |source| Error::Start { program: "qemu-system-x86_64".into(), source };
    let mut child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(start)?;
    let mut console = Vec::new();
    let mut server_bytes = 0;
    if let Some(output) = child.stdout.take() {
        let mut lines = BufReader::new(output);
        while lines.read_until(b'\n', &mut console).map_err(start)? > 0 {
            server_bytes = server_bytes.max(server.map_or(0, Server::resident_bytes));
        }
    }
    let status = child.wait().map_err(start)?;
    let console = String::from_utf8_lossy(&console).into_owned();
    if status.success() {
        return Ok((console, server_bytes));
    }
    Err(Error::Program { program: format!("{qemu:?}"), status, stderr: console })
}

fn between_markers(console: &str) -> Result<&str, Error> {
    console
        .split_once("guest-read-begin")
        .and_then(|(_, rest)| rest.split_once("guest-read-end"))
        .map(|(result, _)| result.trim())
        .ok_or_else(|| Error::Unexpected(format!("the guest printed no result; its console:\n{console}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_read_from_between_the_markers() {
        assert_eq!(between_markers("boot\nguest-read-begin\r\n[]\r\nguest-read-end\r\n").unwrap(), "[]");
    }

    #[test]
    fn a_console_without_result_is_shown() {
        let error = between_markers("guest-read-begin\nKernel panic").unwrap_err();
        assert!(error.to_string().contains("Kernel panic"), "{error}");
    }
}
