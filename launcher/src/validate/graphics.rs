//! Validation of the screen.

use super::checked::{CheckedGraphics, View};
use super::findings::Findings;
use super::names;
use crate::path::HostPath;
use crate::spec::{GraphicsBackend, MachineSpec};

pub(super) fn graphics(spec: &MachineSpec, findings: &mut Findings) -> Option<CheckedGraphics> {
    let graphics = &spec.graphics;
    if !graphics.enable {
        return None;
    }
    let view = match graphics.backend {
        GraphicsBackend::Gtk => View::Window,
        GraphicsBackend::Headless => View::Headless,
        GraphicsBackend::Cocoa => {
            findings.problem("graphics.backend", "\"cocoa\" is supported on macOS only; set \"gtk\" or \"headless\"");
            return None;
        }
    };
    if graphics.vulkan.is_some() {
        if graphics.gl == Some(false) {
            findings.problem("graphics.vulkan", "requires the host's OpenGL; do not set graphics.gl to false");
        }
        findings.require("graphics.hostmem", host_memory(&graphics.hostmem));
    }
    if let Some(program) = &graphics.program {
        findings.require("graphics.program", names::path(program));
    }
    let socket = graphics.socket.clone().unwrap_or_else(|| HostPath::new(format!("{}-gpu.sock", spec.name)));
    Some(CheckedGraphics {
        view,
        gl: graphics.gl,
        vulkan: graphics.vulkan.map(|protocol| (protocol, graphics.hostmem.clone())),
        socket,
        program: graphics.program.clone(),
    })
}

/// Checks the size: a power of two, as required for a PCI window, in MiB or GiB.
fn host_memory(text: &str) -> Result<(), String> {
    let number = text.strip_suffix(['M', 'G']).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    match number.and_then(|digits| digits.parse::<u32>().ok()) {
        Some(size) if size.is_power_of_two() => Ok(()),
        _ => Err(format!("`{text}` is not a size; write a power of two followed by M or G, as in `256M`")),
    }
}
