//! The graphics device, as written in the spec.

use crate::path::HostPath;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A virtio graphics device; qemu adds a keyboard and a tablet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Graphics {
    /// Whether the machine has a graphics device.
    #[serde(default)]
    pub enable: bool,
    /// Where qemu displays the screen.
    #[serde(default)]
    pub backend: GraphicsBackend,
    /// Whether the host renders for the guest with OpenGL. Null means yes if the host has a render node; otherwise the
    /// guest renders in software, with a warning.
    #[serde(default)]
    pub gl: Option<bool>,
    /// qemu only: the protocol with which the guest uses the host's Vulkan; null means no Vulkan.
    #[serde(default)]
    pub vulkan: Option<VulkanProtocol>,
    /// qemu only, with `vulkan`: size of the window on the host's graphics memory, in MiB or GiB, such as `256M`.
    #[serde(default = "default_host_memory")]
    pub hostmem: String,
    /// crosvm only: the socket of the graphics process; null means `NAME-gpu.sock` in the state directory.
    #[serde(default)]
    pub socket: Option<HostPath>,
    /// crosvm only: the program of the graphics process; null means the hypervisor's program.
    #[serde(default)]
    pub program: Option<HostPath>,
}

impl Default for Graphics {
    fn default() -> Self {
        Self {
            enable: false,
            backend: GraphicsBackend::default(),
            gl: None,
            vulkan: None,
            hostmem: default_host_memory(),
            socket: None,
            program: None,
        }
    }
}

fn default_host_memory() -> String {
    "256M".to_owned()
}

/// Where qemu displays the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GraphicsBackend {
    /// In a desktop window.
    #[default]
    Gtk,
    /// In a macOS window; refused, because the launcher runs on Linux only.
    Cocoa,
    /// Nowhere. The guest still renders, for VNC or for screenshots through the control socket.
    Headless,
}

/// The protocol with which the guest uses the host's Vulkan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VulkanProtocol {
    /// Forwards Vulkan commands.
    Venus,
    /// Forwards the commands of the host's graphics driver.
    DrmNativeContext,
}

impl VulkanProtocol {
    /// Returns the value as written in the machine spec, which is also the property of qemu's graphics device.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Venus => "venus",
            Self::DrmNativeContext => "drm_native_context",
        }
    }
}
