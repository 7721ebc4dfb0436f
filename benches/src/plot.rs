//! Plots as SVG: image size against build time, times as bars, and scaling.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::comparison::Outcome;
use crate::error::Error;
use crate::results::{Growth, StoreResults};
use crate::statistics::spread;

const WIDTH: u32 = 860;
const HEIGHT: u32 = 480;
const BAR_HEIGHT: i32 = 22;
/// Pixels between the left edge and the bars.
const BAR_LEFT: i32 = 420;
const FONT: &str = "sans-serif";

type Area<'text> = DrawingArea<SVGBackend<'text>, Shift>;
/// What drawing returns.
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Returns the colour of a tool; ours has the most visible one.
fn colour(name: &str) -> RGBColor {
    match name.split([' ', ',']).next() {
        Some("microvm-image") => RGBColor(0xc2, 0x41, 0x0c),
        Some("mksquashfs") => RGBColor(0x1d, 0x4e, 0xd8),
        Some("gensquashfs") => RGBColor(0x0f, 0x76, 0x6e),
        Some("mkfs.erofs") => RGBColor(0x7e, 0x22, 0xce),
        _ => RGBColor(0x52, 0x52, 0x52),
    }
}

struct Point {
    name: String,
    label: String,
    seconds: f64,
    megabytes: f64,
}

/// Draws every cold build as a point: right is slower, up is larger.
///
/// # Errors
/// Fails if the plot cannot be drawn.
pub fn size_against_time(store: &StoreResults) -> Result<String, Error> {
    let points: Vec<Point> = store
        .comparisons
        .iter()
        .filter(|comparison| comparison.title.starts_with("cold"))
        .flat_map(|comparison| comparison.outcomes.iter().filter_map(|outcome| point(&comparison.title, outcome)))
        .collect();
    if points.is_empty() {
        return plot("no cold builds were measured", HEIGHT, |_| Ok(()));
    }
    let [seconds, megabytes] =
        [|point: &Point| point.seconds, |point: &Point| point.megabytes].map(|value| range(points.iter().map(value)));
    let title = format!("Store `{}`: image size against build time, nothing cached", store.name);
    plot(&title, HEIGHT, |area| {
        let mut chart =
            chart(area, 40).build_cartesian_2d(0.0..seconds.1 * 1.25, megabytes.0 * 0.96..megabytes.1 * 1.02)?;
        let (x_label, y_label) = (|seconds: &f64| format!("{} s", short(*seconds)), |size: &f64| format!("{size} MB"));
        chart.configure_mesh().x_label_formatter(&x_label).y_label_formatter(&y_label).max_light_lines(0).draw()?;
        let dots: Vec<_> = points.iter().map(|point| chart.backend_coord(&(point.seconds, point.megabytes))).collect();
        let mut labels = Labels { area, others: Vec::new(), dots: &dots };
        for (point, dot) in points.iter().zip(&dots) {
            area.draw(&Circle::new(*dot, 5, colour(&point.name).filled()))?;
            labels.draw(*dot, &point.label, colour(&point.name))?;
        }
        Ok(())
    })
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

/// Labels next to points, which cover neither each other nor points.
struct Labels<'area, 'text> {
    area: &'area Area<'text>,
    /// Left end, right end and middle of the labels that are drawn.
    others: Vec<(i32, i32, i32)>,
    dots: &'area [(i32, i32)],
}

impl Labels<'_, '_> {
    const LINE_HEIGHT: i32 = 15;

    /// Draws a label right of its point, as close to its height as other labels and points allow.
    fn draw(&mut self, dot: (i32, i32), text: &str, colour: RGBColor) -> Drawn {
        let style = (FONT, 12).into_font().color(&colour).pos(Pos::new(HPos::Left, VPos::Center));
        let (width, _) = self.area.estimate_text_size(text, &style)?;
        let width = i32::try_from(width).unwrap_or(i32::MAX);
        let left = (dot.0 + 7).min(WIDTH.cast_signed() - width - 4);
        let at = |steps: i32| (left, left + width, dot.1 + steps * Self::LINE_HEIGHT);
        let place = (0..20).flat_map(|steps| [at(-steps), at(steps)]).find(|place| self.is_free(*place));
        let place = place.unwrap_or_else(|| at(0));
        self.area.draw(&PathElement::new([dot, (place.0, place.2)], colour))?;
        self.area.draw_text(text, &style, (place.0 + 2, place.2))?;
        self.others.push(place);
        Ok(())
    }

    fn is_free(&self, (left, right, middle): (i32, i32, i32)) -> bool {
        let meets_label = |other: &(i32, i32, i32)| {
            left < other.1 && other.0 < right && (middle - other.2).abs() < Self::LINE_HEIGHT - 1
        };
        let meets_dot =
            |(x, y): &(i32, i32)| left - 5 < *x && *x < right + 5 && (middle - y).abs() < Self::LINE_HEIGHT - 4;
        (40..HEIGHT.cast_signed() - 50).contains(&middle)
            && !self.others.iter().any(meets_label)
            && !self.dots.iter().any(meets_dot)
    }
}

/// Draws seconds against the growing quantity, one line per candidate, with two logarithmic axes.
///
/// # Errors
/// Fails if the plot cannot be drawn.
pub fn scaling(stores: &[&StoreResults], growth: Growth) -> Result<String, Error> {
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for store in stores {
        for outcome in store.comparisons.iter().flat_map(|comparison| &comparison.outcomes) {
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
    let places = || lines.iter().flat_map(|(_, places)| places.iter().copied());
    let (sizes, seconds) = (range(places().map(|place| place.0)), range(places().map(|place| place.1)));
    let (unit, what) = match growth {
        Growth::Files => ("", "the number of small files"),
        Growth::Bytes => (" MB", "the bytes of large files"),
    };
    plot(&format!("Seconds to build an image against {what}"), HEIGHT, |area| {
        let mut chart = chart(area, 300)
            .build_cartesian_2d((sizes.0..sizes.1).log_scale(), (seconds.0 * 0.7..seconds.1 * 1.4).log_scale())?;
        let x_label = |size: &f64| format!("{}{unit}", short(*size));
        let y_label = |seconds: &f64| format!("{} s", short(*seconds));
        chart.configure_mesh().x_label_formatter(&x_label).y_label_formatter(&y_label).draw()?;
        let mut labels = Labels { area, others: Vec::new(), dots: &[] };
        for (name, places) in &lines {
            chart.draw_series(LineSeries::new(places.iter().copied(), colour(name).stroke_width(2)))?;
            if let Some(last) = places.last() {
                labels.draw(chart.backend_coord(last), name, colour(name))?;
            }
        }
        Ok(())
    })
}

/// Draws every candidate's median time as a bar on a logarithmic scale, comparison by comparison.
///
/// # Errors
/// Fails if the plot cannot be drawn.
pub fn times(store: &StoreResults) -> Result<String, Error> {
    let outcomes = || store.comparisons.iter().flat_map(|comparison| &comparison.outcomes);
    let medians: Vec<f64> = outcomes().filter_map(|outcome| Some(spread(&outcome.seconds())?.median)).collect();
    if medians.is_empty() {
        return plot("nothing was measured", HEIGHT, |_| Ok(()));
    }
    let (low, high) = range(medians.iter().copied());
    let axis: LogCoord<f64> = (low * 0.5..high * 2.0).log_scale().into();
    let rows = i32::try_from(store.comparisons.len() * 3 / 2 + medians.len()).unwrap_or(i32::MAX / 100);
    let height = (70 + rows * BAR_HEIGHT).cast_unsigned();
    plot(&format!("Store `{}`: seconds (logarithmic)", store.name), height, |area| {
        let left = (FONT, 12).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
        let right = left.pos(Pos::new(HPos::Right, VPos::Center));
        let heading = (FONT, 13).into_font().style(FontStyle::Bold).color(&BLACK);
        let mut top = 50;
        for comparison in &store.comparisons {
            area.draw_text(&comparison.title, &heading, (20, top + 3))?;
            top += BAR_HEIGHT;
            for outcome in &comparison.outcomes {
                let Some(spread) = spread(&outcome.seconds()) else { continue };
                let end = axis.map(&spread.median, (BAR_LEFT, WIDTH.cast_signed() - 90));
                let (middle, bar) = (top + BAR_HEIGHT / 2, [(BAR_LEFT, top + 2), (end, top + BAR_HEIGHT - 4)]);
                area.draw_text(&outcome.name, &right, (BAR_LEFT - 8, middle))?;
                area.draw(&Rectangle::new(bar, colour(&outcome.name).filled()))?;
                area.draw_text(&duration(spread.median), &left, (end + 6, middle))?;
                top += BAR_HEIGHT;
            }
            top += BAR_HEIGHT / 2;
        }
        Ok(())
    })
}

/// Returns a plot with a title.
fn plot(title: &str, height: u32, draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String, Error> {
    let mut text = String::new();
    let draw_all = |area: &Area<'_>| {
        area.fill(&WHITE)?;
        let heading = (FONT, 16).into_font().style(FontStyle::Bold).color(&BLACK);
        area.draw_text(title, &heading, (20, 14))?;
        draw(area)?;
        area.present()
    };
    let drawn = draw_all(&SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area());
    match drawn {
        Ok(()) => Ok(text),
        Err(error) => Err(Error::Unexpected(format!("cannot draw the plot `{title}`: {error}"))),
    }
}

/// Returns a builder of a chart below the title, with this many pixels right of it.
fn chart<'area, 'text>(area: &'area Area<'text>, right: i32) -> ChartBuilder<'area, 'text, SVGBackend<'text>> {
    let mut chart = ChartBuilder::on(area);
    chart.margin_top(45).margin_right(right).x_label_area_size(30).y_label_area_size(75);
    chart
}

/// Returns the smallest and the largest value.
fn range(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    (values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max))
}

/// Formats thousands and millions in a short form that fits under an axis.
fn short(number: f64) -> String {
    match number {
        millions if millions >= 1e6 => format!("{}M", millions / 1e6),
        thousands if thousands >= 1e4 => format!("{}k", thousands / 1e3),
        _ => number.to_string(),
    }
}

fn duration(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1000.0) } else { format!("{seconds:.1} s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_short() {
        assert_eq!([0.05, 4000.0, 50_000.0, 2e6].map(short), ["0.05", "4000", "50k", "2M"]);
    }

    #[test]
    fn markup_in_titles_is_escaped() {
        let drawn = plot("a<b&c", 100, |_| Ok(())).unwrap();
        assert!(drawn.contains("a&lt;b&amp;c") && drawn.ends_with("</svg>\n"), "{drawn}");
    }
}
