//! A screen without a window: the guest's kernel uses the card, the keyboard and the pointer, and qemu's screenshot
//! shows what the guest has painted.

use crate::linux::{assert_output, build_image, linux_machine, stop_gracefully};
use crate::machine::{TIMEOUT, TestMachine};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

#[test]
fn a_screenshot_shows_what_the_guest_has_painted() {
    let spec = json!({
        "storeDisk": {"image": "store.squashfs"},
        "graphics": {"enable": true, "backend": "headless", "gl": false},
    });
    let Some((machine, closure)) = linux_machine("screen", &["guest.actions=screen,wait"], spec) else { return };
    build_image(&machine, closure);
    let mut running = machine.start(&[]);
    running.wait_for("guest: waiting");
    let console = running.console();
    assert_output(&console, "frame_buffer=virtio_gpudrmfb\r");
    assert_output(&console, "connector=card0-Virtual-1 status=connected ");
    assert_output(&console, "input=QEMU Virtio Keyboard\r");
    assert_output(&console, "input=QEMU Virtio Tablet\r");
    assert_output(&console, "painted=1280x800\r");
    let end = Instant::now() + TIMEOUT;
    loop {
        let picture = Picture::of(&machine);
        assert_eq!((picture.width, picture.height), (1280, 800));
        // The kernel transfers painted areas to the card a moment later, in pieces that can miss a line at their edges.
        let white = picture.samples.iter().filter(|sample| **sample == 255).count();
        if white * 100 > picture.samples.len() * 99 {
            break;
        }
        assert!(Instant::now() < end, "the screen does not become white");
        std::thread::sleep(Duration::from_millis(50));
    }
    stop_gracefully(&machine, &mut running);
}

/// A screenshot.
struct Picture {
    width: usize,
    height: usize,
    /// Three samples per pixel.
    samples: Vec<u8>,
}

impl Picture {
    fn of(machine: &TestMachine) -> Self {
        let path = machine.path("screen.ppm");
        let mut stream = BufReader::new(UnixStream::connect(machine.path("screen.sock")).unwrap());
        command(&mut stream, &json!({"execute": "qmp_capabilities"}));
        command(&mut stream, &json!({"execute": "screendump", "arguments": {"filename": path}}));
        let bytes = fs::read(&path).unwrap();
        let mut lines = bytes.splitn(4, |byte| *byte == b'\n');
        let mut line = || lines.next().unwrap();
        assert_eq!(line(), b"P6");
        let size = String::from_utf8(line().to_vec()).unwrap();
        let (width, height) = size.split_once(' ').unwrap();
        assert_eq!(line(), b"255");
        let samples = line().to_vec();
        let picture = Self { width: width.parse().unwrap(), height: height.parse().unwrap(), samples };
        assert_eq!(picture.samples.len(), picture.width * picture.height * 3);
        picture
    }
}

/// Sends a command to qemu and waits until it is done.
fn command(stream: &mut BufReader<UnixStream>, request: &Value) {
    stream.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert!(answer.get("error").is_none(), "{request}: {answer}");
        if answer.get("return").is_some() {
            return;
        }
    }
}
