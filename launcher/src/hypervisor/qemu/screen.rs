//! qemu's screen: where it is shown, and the graphics card.

use super::super::launch_builder::LaunchBuilder;
use super::super::renderer::{Renderer, SoftwareOpenGl, renderer};
use crate::facts::Version;
use crate::keyval::{Dialect, Options};
use crate::spec::{Hypervisor, VulkanProtocol};
use crate::validate::{CheckedGraphics, View};

/// The number of devices of a screen: the card, the keyboard and the pointer.
pub(super) const DEVICES: usize = 3;
/// The first version whose graphics card supports Vulkan, according to its release notes.
const FIRST_WITH_VULKAN: Version = Version(9, 2, 0);

/// The screen of a machine.
#[derive(Debug)]
pub(super) struct Screen {
    /// The value of `-display`.
    pub(super) display: String,
    /// The graphics card, if there is one.
    pub(super) card: Option<Card>,
}

/// A graphics card.
#[derive(Debug)]
pub(super) struct Card {
    /// The device name without the suffix of its bus.
    pub(super) name: &'static str,
    vulkan: Option<(VulkanProtocol, String)>,
}

pub(super) fn choose(builder: &mut LaunchBuilder<'_>) -> Screen {
    let named = |name: &str| Options::new(Dialect::Qemu).word(name);
    let Some(graphics) = &builder.spec.graphics else { return Screen { display: "none".to_owned(), card: None } };
    check(builder, graphics);
    let (display, name) = match (graphics.view, renderer(builder, graphics, without_card(graphics.view))) {
        (View::Window, Renderer::Host(_)) => (named("gtk").pair("gl", "on"), "virtio-gpu-gl"),
        (View::Window, Renderer::Guest) => (named("gtk").pair("gl", "off"), "virtio-gpu"),
        (View::Headless, Renderer::Host(node)) => (named("egl-headless").pair_if("rendernode", node), "virtio-gpu-gl"),
        (View::Headless, Renderer::Guest) => (named("none"), "virtio-gpu"),
    };
    let display = builder.written("graphics.backend", display.finish());
    Screen { display, card: Some(Card { name, vulkan: graphics.vulkan.clone() }) }
}

fn check(builder: &mut LaunchBuilder<'_>, graphics: &CheckedGraphics) {
    if graphics.view == View::Window && !builder.facts.desktop.has_desktop() {
        let reason = "opens a window, but neither $WAYLAND_DISPLAY nor $DISPLAY is set; \
                      start it from a graphical session, or set graphics.backend to \"headless\"";
        builder.refuse("graphics.backend", reason);
    }
    if graphics.vulkan.is_some() && !builder.facts.at_least(Hypervisor::Qemu, FIRST_WITH_VULKAN) {
        builder.refuse("graphics.vulkan", format!("supports Vulkan in the guest from version {FIRST_WITH_VULKAN} on"));
    }
}

/// A window uses the desktop's OpenGL, which may be a software renderer; without a window, a graphics card is required.
fn without_card(view: View) -> SoftwareOpenGl {
    match view {
        View::Window => SoftwareOpenGl::Works,
        View::Headless => SoftwareOpenGl::Fails,
    }
}

impl Card {
    /// Adds the card's properties to its device.
    pub(super) fn with_properties(&self, device: Options) -> Options {
        match &self.vulkan {
            Some((protocol, memory)) => device.pair("blob", "on").pair("hostmem", memory).pair(protocol.as_str(), "on"),
            None => device,
        }
    }
}
