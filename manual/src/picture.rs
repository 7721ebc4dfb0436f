//! Renders a picture of a terminal: converts text with escape sequences for colours (as `tmux capture-pane -e` prints
//! it) to an SVG whose text can be selected and searched.

use anstyle_svg::{Term, WIN10_CONSOLE};

/// Width of 60 columns in pixels, so that pictures of short lines look like those of a terminal.
const MIN_WIDTH: usize = 504;

/// Renders a terminal's lines.
#[must_use]
pub fn svg(text: &str) -> String {
    Term::new().palette(WIN10_CONSOLE).min_width_px(MIN_WIDTH).render_svg(text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_kept_and_text_is_escaped() {
        let picture = svg("  $ a <b> & c\n\n\u{1b}[1;31mred\u{1b}[0m \u{1b}[2mdim\n");
        assert!(picture.contains("  $ a &lt;b&gt; &amp; c"), "{picture}");
        assert!(picture.contains("class=\"fg-red bold\">red</tspan>"), "{picture}");
        assert!(picture.contains("class=\"dimmed\">dim</tspan>"), "{picture}");
    }
}
