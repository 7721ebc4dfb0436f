//! Plots as SVG: image size against build time, times as bars, and scaling.

use std::fmt::Write;

use crate::contest::Outcome;
use crate::results::{Growth, StoreResults};
use crate::statistics::spread;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;
const BAR_HEIGHT: f64 = 22.0;
const BAR_LABEL_WIDTH: f64 = 420.0;

/// Returns the colour of a tool; ours has the most visible one.
fn colour(name: &str) -> &'static str {
    match name.split([' ', ',']).next() {
        Some("microvm-image") => "#c2410c",
        Some("mksquashfs") => "#1d4ed8",
        Some("gensquashfs") => "#0f766e",
        Some("mkfs.erofs") => "#7e22ce",
        _ => "#525252",
    }
}

/// The mapping of a range of values to pixels on an axis, linear or logarithmic.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    scale: Scale,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scale {
    Linear,
    Logarithmic,
}

impl Axis {
    fn position(&self, value: f64) -> f64 {
        let map = |value: f64| if self.scale == Scale::Logarithmic { value.max(1e-4).log10() } else { value };
        let share = (map(value) - map(self.low)) / (map(self.high) - map(self.low)).max(1e-9);
        self.from + share * (self.to - self.from)
    }

    /// Returns 1, 2, 5, 10, ... within a logarithmic range, or round steps within a linear one.
    fn ticks(&self) -> Vec<f64> {
        let candidates = (-4..8).flat_map(|exponent| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(exponent)));
        if self.scale == Scale::Logarithmic {
            return candidates.filter(|tick| *tick >= self.low && *tick <= self.high).collect();
        }
        let step = candidates.clone().find(|step| (self.high - self.low) / step <= 8.0).unwrap_or(self.high);
        let mut ticks = Vec::new();
        let mut tick = (self.low / step).ceil() * step;
        while tick <= self.high {
            ticks.push(tick);
            tick += step;
        }
        ticks
    }
}

struct Point {
    name: String,
    label: String,
    seconds: f64,
    megabytes: f64,
}

/// Draws every cold build as a point: right is slower, up is larger.
#[must_use]
pub fn size_against_time(store: &StoreResults) -> String {
    let points: Vec<Point> = store
        .contests
        .iter()
        .filter(|contest| contest.title.starts_with("cold"))
        .flat_map(|contest| contest.outcomes.iter().filter_map(|outcome| point(&contest.title, outcome)))
        .collect();
    let bounds = |value: fn(&Point) -> f64| {
        let low = points.iter().map(value).fold(f64::INFINITY, f64::min);
        (low, points.iter().map(value).fold(0.0, f64::max))
    };
    let ((fastest, slowest), (smallest, largest)) = (bounds(|point| point.seconds), bounds(|point| point.megabytes));
    if points.is_empty() {
        return frame("no cold builds were measured", HEIGHT, "");
    }
    let x = Axis { low: fastest * 0.8, high: slowest * 1.6, from: LEFT, to: WIDTH - RIGHT, scale: Scale::Logarithmic };
    let y = Axis { low: smallest * 0.96, high: largest * 1.02, from: HEIGHT - BOTTOM, to: TOP, scale: Scale::Linear };
    let mut body = axes(&x, &y, [" s", " MB"]);
    let dots: Vec<(f64, f64)> =
        points.iter().map(|point| (x.position(point.seconds), y.position(point.megabytes))).collect();
    let mut labels = Vec::new();
    for (point, (left, top)) in points.iter().zip(&dots) {
        let colour = colour(&point.name);
        let label = Label::next_to((*left, *top), &point.label, &labels, &dots);
        let _ = writeln!(body, r#"<circle cx="{left:.1}" cy="{top:.1}" r="5" fill="{colour}"/>"#);
        let _ = writeln!(
            body,
            r#"<path d="M{left:.1} {top:.1}L{:.1} {:.1}" stroke="{colour}" stroke-width="0.7"/>"#,
            label.left, label.middle
        );
        body.push_str(&label.text(&point.label, colour));
        labels.push(label);
    }
    frame(&format!("Store `{}`: image size against build time, nothing cached", store.name), HEIGHT, &body)
}

/// Where the label of a point is drawn.
#[derive(Debug, Clone, Copy)]
struct Label {
    left: f64,
    right: f64,
    middle: f64,
}

impl Label {
    /// The approximate width of a letter, and the distance of two lines.
    const LETTER_WIDTH: f64 = 6.4;
    const LINE_HEIGHT: f64 = 15.0;

    /// Places the label right of its point, as close to its height as other labels and points allow.
    fn next_to((left, top): (f64, f64), text: &str, labels: &[Self], dots: &[(f64, f64)]) -> Self {
        let width = f64::from(u32::try_from(text.chars().count()).unwrap_or(u32::MAX)) * Self::LETTER_WIDTH;
        let left = (left + 7.0).min(WIDTH - width - 4.0);
        let at = |steps: f64| Self { left, right: left + width, middle: top + steps * Self::LINE_HEIGHT };
        let is_free = |label: &Self| {
            let meets_label = |other: &Self| {
                label.left < other.right
                    && other.left < label.right
                    && (label.middle - other.middle).abs() < Self::LINE_HEIGHT - 1.0
            };
            let meets_dot = |(x, y): &(f64, f64)| {
                label.left - 5.0 < *x && *x < label.right + 5.0 && (label.middle - y).abs() < Self::LINE_HEIGHT - 4.0
            };
            label.middle > TOP
                && label.middle < HEIGHT - BOTTOM
                && !labels.iter().any(meets_label)
                && !dots.iter().any(meets_dot)
        };
        let mut candidates = (0..20).flat_map(|steps| [at(-f64::from(steps)), at(f64::from(steps))]);
        candidates.find(is_free).unwrap_or_else(|| at(0.0))
    }

    fn text(&self, text: &str, colour: &str) -> String {
        let (left, baseline) = (self.left + 2.0, self.middle + 4.0);
        format!(
            "<text x=\"{left:.1}\" y=\"{baseline:.1}\" fill=\"{colour}\" font-size=\"11\">{}</text>\n",
            escape(text)
        )
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
fn point(title: &str, outcome: &Outcome) -> Option<Point> {
    let level = title.split_once("level ").map_or("defaults", |(_, rest)| rest.split(',').next().unwrap_or(rest));
    let tool = outcome.name.split(" (").next().unwrap_or(&outcome.name);
    Some(Point {
        name: outcome.name.clone(),
        label: format!("{tool} {level}"),
        seconds: spread(&outcome.seconds())?.median,
        megabytes: outcome.image_bytes as f64 / 1e6,
    })
}

/// Draws grid lines and their labels, with the units of both axes.
fn axes(x: &Axis, y: &Axis, [x_unit, y_unit]: [&str; 2]) -> String {
    let mut text = String::new();
    for tick in x.ticks() {
        let (left, below) = (x.position(tick), y.from + 18.0);
        let _ = writeln!(
            text,
            r##"<line x1="{left:.1}" y1="{:.1}" x2="{left:.1}" y2="{:.1}" stroke="#e5e5e5"/>"##,
            y.from, y.to
        );
        let _ = writeln!(
            text,
            r#"<text x="{left:.1}" y="{below:.1}" text-anchor="middle" font-size="12">{}{x_unit}</text>"#,
            short(tick)
        );
    }
    for tick in y.ticks() {
        let (top, label) = (y.position(tick), x.from - 8.0);
        let baseline = top + 4.0;
        let _ = writeln!(
            text,
            r##"<line x1="{:.1}" y1="{top:.1}" x2="{:.1}" y2="{top:.1}" stroke="#e5e5e5"/>"##,
            x.from, x.to
        );
        let _ = writeln!(
            text,
            r#"<text x="{label:.1}" y="{baseline:.1}" text-anchor="end" font-size="12">{tick}{y_unit}</text>"#
        );
    }
    text
}

/// Formats thousands and millions in a short form that fits under an axis.
fn short(number: f64) -> String {
    match number {
        millions if millions >= 1e6 => format!("{}M", millions / 1e6),
        thousands if thousands >= 1e4 => format!("{}k", thousands / 1e3),
        _ => number.to_string(),
    }
}

/// Draws seconds against the growing quantity, one line per contender, with two logarithmic axes.
#[must_use]
pub fn scaling(stores: &[&StoreResults], growth: Growth) -> String {
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for store in stores {
        for outcome in store.contests.iter().flat_map(|contest| &contest.outcomes) {
            let Some(spread) = spread(&outcome.seconds()) else { continue };
            #[expect(clippy::cast_precision_loss, reason = "counts and sizes are far below 2^53")]
            let size = match growth {
                Growth::Files => store.files as f64,
                Growth::Bytes => store.nar_bytes as f64 / 1e6,
            };
            match lines.iter_mut().find(|(name, _)| *name == outcome.name) {
                Some((_, places)) => places.push((size, spread.median)),
                None => lines.push((outcome.name.clone(), vec![(size, spread.median)])),
            }
        }
    }
    let places = || lines.iter().flat_map(|(_, places)| places.iter());
    let low = |value: fn(&(f64, f64)) -> f64| places().map(value).fold(f64::INFINITY, f64::min);
    let high = |value: fn(&(f64, f64)) -> f64| places().map(value).fold(0.0, f64::max);
    let label_width = 300.0;
    let x = Axis {
        low: low(|place| place.0),
        high: high(|place| place.0),
        from: LEFT,
        to: WIDTH - label_width,
        scale: Scale::Logarithmic,
    };
    let y = Axis {
        low: low(|place| place.1) * 0.7,
        high: high(|place| place.1) * 1.4,
        from: HEIGHT - BOTTOM,
        to: TOP,
        scale: Scale::Logarithmic,
    };
    let (unit, what) = match growth {
        Growth::Files => ("", "the number of small files"),
        Growth::Bytes => (" MB", "the bytes of large files"),
    };
    let mut body = axes(&x, &y, [unit, " s"]);
    let mut labels = Vec::new();
    for (name, places) in &lines {
        let colour = colour(name);
        let points: Vec<String> =
            places.iter().map(|place| format!("{:.1},{:.1}", x.position(place.0), y.position(place.1))).collect();
        let _ = writeln!(
            body,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
            points.join(" ")
        );
        if let Some(last) = places.last() {
            let label = Label::next_to((x.position(last.0), y.position(last.1)), name, &labels, &[]);
            body.push_str(&label.text(name, colour));
            labels.push(label);
        }
    }
    frame(&format!("Seconds to build an image against {what}"), HEIGHT, &body)
}

/// Draws every contender's median time as a bar on a logarithmic scale, contest by contest.
#[must_use]
pub fn times(store: &StoreResults) -> String {
    let medians: Vec<f64> = store
        .contests
        .iter()
        .flat_map(|contest| contest.outcomes.iter().filter_map(|outcome| spread(&outcome.seconds())))
        .map(|spread| spread.median)
        .collect();
    let low = medians.iter().copied().fold(f64::INFINITY, f64::min);
    let high = medians.iter().copied().fold(0.0, f64::max);
    if medians.is_empty() {
        return frame("nothing was measured", HEIGHT, "");
    }
    let x =
        Axis { low: low * 0.5, high: high * 2.0, from: BAR_LABEL_WIDTH, to: WIDTH - 90.0, scale: Scale::Logarithmic };
    let mut body = String::new();
    let mut top = TOP;
    for contest in &store.contests {
        let _ = writeln!(
            body,
            r#"<text x="20" y="{:.1}" font-weight="bold" font-size="13">{}</text>"#,
            top + 15.0,
            escape(&contest.title)
        );
        top += BAR_HEIGHT;
        for outcome in &contest.outcomes {
            let Some(spread) = spread(&outcome.seconds()) else { continue };
            let (end, baseline) = (x.position(spread.median), top + 14.0);
            let colour = colour(&outcome.name);
            let _ = writeln!(
                body,
                r#"<text x="{:.1}" y="{baseline:.1}" text-anchor="end" font-size="12">{}</text>"#,
                x.from - 8.0,
                escape(&outcome.name)
            );
            let _ = writeln!(
                body,
                r#"<rect x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" fill="{colour}"/>"#,
                x.from,
                top + 2.0,
                end - x.from,
                BAR_HEIGHT - 6.0
            );
            let _ = writeln!(
                body,
                r#"<text x="{:.1}" y="{baseline:.1}" font-size="12">{}</text>"#,
                end + 6.0,
                duration(spread.median)
            );
            top += BAR_HEIGHT;
        }
        top += BAR_HEIGHT / 2.0;
    }
    frame(&format!("Store `{}`: seconds (logarithmic)", store.name), top + 20.0, &body)
}

fn duration(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1000.0) } else { format!("{seconds:.1} s") }
}

fn frame(title: &str, height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"20\" y=\"28\" font-size=\"16\" font-weight=\"bold\">{}</text>\n{body}</svg>\n",
        escape(title)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logarithmic_axis_puts_equal_ratios_at_equal_distances() {
        let axis = Axis { low: 1.0, high: 100.0, from: 0.0, to: 200.0, scale: Scale::Logarithmic };
        assert!((axis.position(10.0) - 100.0).abs() < 1e-9);
        assert_eq!(axis.ticks(), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
    }

    #[test]
    fn a_linear_axis_has_round_ticks() {
        let axis = Axis { low: 222.0, high: 263.0, from: 0.0, to: 100.0, scale: Scale::Linear };
        assert_eq!(axis.ticks(), [230.0, 240.0, 250.0, 260.0]);
    }

    #[test]
    fn large_numbers_are_short() {
        assert_eq!([0.05, 4000.0, 50_000.0, 2e6].map(short), ["0.05", "4000", "50k", "2M"]);
    }

    #[test]
    fn markup_in_names_is_escaped() {
        assert_eq!(escape("a<b&c"), "a&lt;b&amp;c");
    }
}
