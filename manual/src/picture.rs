//! Renders a picture of a terminal: converts text with escape sequences for colours (as `tmux capture-pane -e` prints
//! it) to an SVG whose text can be selected and searched.

use std::fmt::Write as _;

const CELL_WIDTH: f64 = 8.0;
const LINE_HEIGHT: f64 = 18.0;
const MARGIN: f64 = 14.0;
const BACKGROUND: &str = "#1d2129";
const FOREGROUND: &str = "#d8dee6";
/// The eight colours of terminals, plain and bright, light enough for the background.
const COLOURS: [&str; 16] = [
    "#5c6773", "#f2777a", "#8fce7a", "#e8c76b", "#7fb2f0", "#d49be8", "#6fd0d0", "#d8dee6", "#7d8896", "#ff9b9d",
    "#b2e89f", "#ffe08a", "#a5cbff", "#e8bff5", "#97ecec", "#ffffff",
];

/// The colours and attributes of a run of characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Style {
    colour: Option<String>,
    weight: Weight,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Weight {
    #[default]
    Plain,
    Bold,
    Dim,
}

/// Renders a terminal's lines. `title` is the description for screen readers.
#[must_use]
pub fn svg(text: &str, title: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let runs: Vec<_> = lines.iter().scan(Style::default(), |style, line| Some(runs(line, style))).collect();
    let width =
        |runs: &Vec<(Style, String)>| runs.iter().map(|(_, text)| text.trim_end().chars().count()).sum::<usize>();
    let columns = runs.iter().map(width).max().unwrap_or(0).max(60);
    let width = cells(columns) + 2.0 * MARGIN;
    let height = lines_down(lines.len()) + 2.0 * MARGIN;
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n\
         <title>{}</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n\
         <g font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" font-size=\"13\" fill=\"{FOREGROUND}\" xml:space=\"preserve\">\n",
        escaped(title)
    );
    for (row, runs) in runs.iter().enumerate() {
        let mut column = 0;
        for (style, text) in runs {
            let length = text.chars().count();
            if !text.trim().is_empty() {
                write_run(&mut picture, style, text, (row, column));
            }
            column += length;
        }
    }
    picture.push_str("</g>\n</svg>\n");
    picture
}

fn write_run(picture: &mut String, style: &Style, text: &str, (row, column): (usize, usize)) {
    let shown = text.trim();
    let indent = text.chars().count() - text.trim_start().chars().count();
    let x = MARGIN + cells(column + indent);
    let y = MARGIN + lines_down(row) + 13.0;
    let mut attributes = String::new();
    if let Some(colour) = &style.colour {
        let _ = write!(attributes, " fill=\"{colour}\"");
    }
    attributes.push_str(match style.weight {
        Weight::Plain => "",
        Weight::Bold => " font-weight=\"bold\"",
        Weight::Dim => " opacity=\"0.65\"",
    });
    // The length is explicit, so that the columns are aligned with any font.
    let length = cells(shown.chars().count());
    let _ =
        writeln!(picture, "<text x=\"{x}\" y=\"{y}\" textLength=\"{length}\"{attributes}>{}</text>", escaped(shown));
}

#[expect(clippy::cast_precision_loss, reason = "a terminal has far fewer than 2^52 cells")]
fn cells(count: usize) -> f64 {
    count as f64 * CELL_WIDTH
}

#[expect(clippy::cast_precision_loss, reason = "a terminal has far fewer than 2^52 lines")]
fn lines_down(count: usize) -> f64 {
    count as f64 * LINE_HEIGHT
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Splits a line into runs with the same style. The style at its end continues in the next line.
fn runs(line: &str, style: &mut Style) -> Vec<(Style, String)> {
    let mut runs = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (plain, behind) = rest.split_once('\u{1b}').unwrap_or((rest, ""));
        if !plain.is_empty() {
            runs.push((style.clone(), plain.to_owned()));
        }
        rest = match behind
            .strip_prefix('[')
            .and_then(|behind| behind.split_once(|end: char| end.is_ascii_alphabetic()))
        {
            Some((numbers, after)) => {
                let end = behind.len() - after.len() - 1;
                if behind.as_bytes().get(end) == Some(&b'm') {
                    change(style, numbers);
                }
                after
            }
            None => behind,
        };
    }
    runs
}

fn change(style: &mut Style, numbers: &str) {
    let mut numbers = numbers.split(';').map(|number| number.parse::<usize>().unwrap_or(0));
    while let Some(number) = numbers.next() {
        match number {
            0 => *style = Style::default(),
            1 => style.weight = Weight::Bold,
            2 => style.weight = Weight::Dim,
            22 => style.weight = Weight::Plain,
            30..=37 => style.colour = Some(COLOURS[number - 30].to_owned()),
            90..=97 => style.colour = Some(COLOURS[number - 82].to_owned()),
            38 => style.colour = many_colours(&mut numbers),
            39 => style.colour = None,
            _ => {}
        }
    }
}

/// Returns the colour of `38;5;N`, if it is one of the first 16, or of `38;2;R;G;B`.
fn many_colours(numbers: &mut impl Iterator<Item = usize>) -> Option<String> {
    match numbers.next()? {
        5 => COLOURS.get(numbers.next()?).map(|colour| (*colour).to_owned()),
        2 => Some(format!("#{:02x}{:02x}{:02x}", numbers.next()?, numbers.next()?, numbers.next()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_become_runs() {
        let mut style = Style::default();
        let found = runs("a \u{1b}[1;31mred\u{1b}[0m \u{1b}[38;2;1;2;3mx", &mut style);
        let texts: Vec<_> = found.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["a ", "red", " ", "x"]);
        assert_eq!(found[1].0, Style { colour: Some(COLOURS[1].to_owned()), weight: Weight::Bold });
        assert_eq!(found[3].0.colour.as_deref(), Some("#010203"));
    }

    #[test]
    fn text_is_escaped_and_in_its_column() {
        let picture = svg("  $ a <b> & c\n\n\u{1b}[2mdim", "a \"title\"");
        assert!(
            picture.contains("<text x=\"30\" y=\"27\" textLength=\"88\">$ a &lt;b&gt; &amp; c</text>"),
            "{picture}"
        );
        assert!(picture.contains("y=\"63\" textLength=\"24\" opacity=\"0.65\">dim</text>"), "{picture}");
        assert!(picture.contains("<title>a &quot;title&quot;</title>"));
    }
}
