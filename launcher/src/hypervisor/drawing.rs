//! Who draws the guest's screen: the host's OpenGL, or the guest by itself into memory.

use super::frame::Frame;
use crate::facts::RenderNode;
use crate::path::HostPath;
use crate::validate::CheckedGraphics;

/// Who draws.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Drawing {
    /// The host, by the node of a graphics card if there is one.
    Host(Option<HostPath>),
    /// The guest.
    Guest,
}

/// Whether the host's OpenGL works without a graphics card.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WithoutCard {
    /// It does: the desktop's own draws.
    Works,
    /// It does not.
    Fails,
}

/// Who draws: as it is wished, else the host if it can. Refuses what cannot be.
pub(super) fn drawing(frame: &mut Frame<'_>, graphics: &CheckedGraphics, without_card: WithoutCard) -> Drawing {
    let (option, wish) = match (&graphics.vulkan, graphics.gl) {
        (Some(_), _) => ("graphics.vulkan", Some(true)),
        (None, wish) => ("graphics.gl", wish),
    };
    match (wish, &frame.facts.desktop.render_node) {
        (Some(false), _) => Drawing::Guest,
        (_, RenderNode::Usable(node)) => Drawing::Host(Some(node.clone())),
        (Some(true), RenderNode::Unusable(_)) if without_card == WithoutCard::Works => Drawing::Host(None),
        (Some(true), RenderNode::Unusable(why)) => {
            frame.refuse(
                option,
                format!("requires the host's OpenGL, but {why}; without {option} the guest renders in software"),
            );
            Drawing::Guest
        }
        (None, RenderNode::Unusable(why)) => {
            frame.warn(option, &format!("{why}; the guest renders in software, without the host's OpenGL"));
            Drawing::Guest
        }
    }
}
