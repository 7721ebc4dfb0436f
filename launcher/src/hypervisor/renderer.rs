//! Choosing the renderer of the guest's screen: the host's OpenGL, or the guest's own software renderer.

use super::launch_builder::LaunchBuilder;
use crate::facts::RenderNode;
use crate::path::HostPath;
use crate::validate::CheckedGraphics;

/// What draws the guest's screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Renderer {
    /// The host renders, through the node of a graphics card if there is one.
    Host(Option<HostPath>),
    /// The guest renders in software.
    Guest,
}

/// Whether the host's OpenGL works without a graphics card.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SoftwareOpenGl {
    /// It works, through the OpenGL of the desktop.
    Works,
    /// It does not work.
    Fails,
}

/// Returns the renderer that the spec asks for, or by default the host if it can render. Refuses an impossible choice.
pub(super) fn renderer(
    builder: &mut LaunchBuilder<'_>,
    graphics: &CheckedGraphics,
    software_opengl: SoftwareOpenGl,
) -> Renderer {
    let (option, requested) = match (&graphics.vulkan, graphics.gl) {
        (Some(_), _) => ("graphics.vulkan", Some(true)),
        (None, requested) => ("graphics.gl", requested),
    };
    match (requested, &builder.facts.desktop.render_node) {
        (Some(false), _) => Renderer::Guest,
        (_, RenderNode::Usable(node)) => {
            let node = node.clone();
            builder.need_device(option, node.as_str(), "modprobe -a amdgpu i915 nouveau virtio_gpu");
            Renderer::Host(Some(node))
        }
        (Some(true), RenderNode::Unusable(_)) if software_opengl == SoftwareOpenGl::Works => Renderer::Host(None),
        (Some(true), RenderNode::Unusable(why)) => {
            builder.refuse(
                option,
                format!("requires the host's OpenGL, but {why}; without {option} the guest renders in software"),
            );
            Renderer::Guest
        }
        (None, RenderNode::Unusable(why)) => {
            builder.warn(option, &format!("{why}; the guest renders in software, without the host's OpenGL"));
            Renderer::Guest
        }
    }
}
