//! The screen as the user writes it.

use crate::path::HostPath;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A screen: a virtio graphics card, and with qemu a keyboard and a pointer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Graphics {
    /// Whether the machine has one.
    #[serde(default)]
    pub enable: bool,
    /// Where qemu shows it.
    #[serde(default)]
    pub backend: GraphicsBackend,
    /// Whether the host's OpenGL draws for the guest; null is where the host has a render node, else with a warning the
    /// guest draws by itself.
    #[serde(default)]
    pub gl: Option<bool>,
    /// qemu: the protocol by which the guest uses the host's Vulkan; null is none.
    #[serde(default)]
    pub vulkan: Option<VulkanProtocol>,
    /// qemu: the window through which the guest sees the host's graphics memory, with `vulkan`: MiB or GiB, as in `256M`.
    #[serde(default = "default_host_memory")]
    pub hostmem: String,
    /// crosvm: the socket of the process that draws; null is `NAME-gpu.sock` in the state directory.
    #[serde(default)]
    pub socket: Option<HostPath>,
    /// crosvm: the program of the process that draws; null is that of the hypervisor.
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

/// Where qemu shows the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GraphicsBackend {
    /// In a window of the desktop.
    #[default]
    Gtk,
    /// In a window of macOS, where this launcher does not run.
    Cocoa,
    /// Nowhere: the guest draws all the same, for VNC or for a picture by the control socket.
    Headless,
}

/// A protocol by which the guest uses the host's Vulkan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VulkanProtocol {
    /// Vulkan's commands, passed on.
    Venus,
    /// The commands of the host's own graphics driver.
    DrmNativeContext,
}

impl VulkanProtocol {
    /// The word in the machine spec, and the property of qemu's graphics card.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Venus => "venus",
            Self::DrmNativeContext => "drm_native_context",
        }
    }
}
