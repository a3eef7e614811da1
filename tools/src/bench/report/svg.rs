//! Line charts as SVG, written by hand: few shapes, no script, readable on light and dark pages.
//!
//! Called by `chart` only.

use std::fmt::Write;

/// Size of a chart in pixels.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 380.0;
/// Room for labels on the left, at the bottom, and at the top and right.
const LEFT: f64 = 78.0;
const BOTTOM: f64 = 52.0;
const TOP: f64 = 68.0;
const RIGHT: f64 = 24.0;

/// Where names of series stand: below the title, side by side.
const LEGEND_HEIGHT: f64 = 40.0;
const LEGEND_STEP: f64 = 150.0;

/// One line of a chart.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    /// One of etcd's (grey) or ours (coloured).
    pub(super) ours: bool,
    /// Dashes tell series of one server apart.
    pub(super) dashed: bool,
    /// One value per tick of the horizontal axis; `None` leaves a gap.
    pub(super) values: Vec<Option<f64>>,
}

/// A chart with named ticks below and a logarithmic scale on the left.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) below: String,
    pub(super) left: String,
    pub(super) ticks: Vec<String>,
    pub(super) series: Vec<Series>,
}

impl Chart {
    /// The chart as a document; `None` if it has nothing to show.
    pub(super) fn svg(&self) -> Option<String> {
        let values = self.series.iter().flat_map(|one| one.values.iter().flatten().copied());
        let values: Vec<f64> = values.filter(|value| 0.0 < *value).collect();
        let low = values.iter().copied().reduce(f64::min)?.log10().floor();
        let high = values.iter().copied().reduce(f64::max)?.log10().ceil().max(low + 1.0);
        let mut out = String::new();
        self.frame(low, high, &mut out);
        for (at, series) in self.series.iter().enumerate() {
            self.line(series, at, low, high, &mut out);
        }
        out.push_str("</svg>\n");
        Some(out)
    }

    #[expect(clippy::cast_precision_loss, reason = "a chart has a handful of ticks")]
    fn x(&self, tick: usize) -> f64 {
        let steps = self.ticks.len().saturating_sub(1).max(1) as f64;
        LEFT + (WIDTH - LEFT - RIGHT) * tick as f64 / steps
    }

    fn frame(&self, low: f64, high: f64, out: &mut String) {
        add(
            out,
            format_args!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
                 font-family=\"sans-serif\" font-size=\"12\" fill=\"#666\">\n"
            ),
        );
        text(out, LEFT, 18.0, "start", &self.title);
        text(out, WIDTH / 2.0, HEIGHT - 8.0, "middle", &self.below);
        text(out, LEFT - 66.0, TOP - 8.0, "start", &self.left);
        let mut power = low;
        while power <= high {
            let y = y(power, low, high);
            line(out, LEFT, y, WIDTH - RIGHT, y);
            text(out, LEFT - 8.0, y + 4.0, "end", &plain(10_f64.powf(power)));
            power += 1.0;
        }
        for (at, tick) in self.ticks.iter().enumerate() {
            text(out, self.x(at), HEIGHT - BOTTOM + 18.0, "middle", tick);
        }
    }

    fn line(&self, series: &Series, at: usize, low: f64, high: f64, out: &mut String) {
        let points: Vec<_> = series
            .values
            .iter()
            .enumerate()
            .filter_map(|(tick, value)| Some((self.x(tick), (*value)?)))
            .filter(|(_, value)| 0.0 < *value)
            .map(|(x, value)| (x, y(value.log10(), low, high)))
            .collect();
        let colour = if series.ours { "#d9480f" } else { "#868e96" };
        let dashes = if series.dashed { " stroke-dasharray=\"6 4\"" } else { "" };
        let path: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        add(
            out,
            format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" \
                 stroke-width=\"2.5\"{dashes}/>\n",
                path.join(" ")
            ),
        );
        for (x, y) in &points {
            add(
                out,
                format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>\n"),
            );
        }
        let place = u32::try_from(at).expect("a chart has a handful of series");
        let (x, y) = (LEFT + LEGEND_STEP * f64::from(place), LEGEND_HEIGHT);
        add(
            out,
            format_args!(
                "<line x1=\"{x:.1}\" y1=\"{0:.1}\" x2=\"{1:.1}\" y2=\"{0:.1}\" \
                 stroke=\"{colour}\" stroke-width=\"2.5\"{dashes}/>\n",
                y - 4.0,
                x + 22.0
            ),
        );
        text(out, x + 28.0, y, "start", &series.name);
    }
}

/// The height of a power of ten.
fn y(power: f64, low: f64, high: f64) -> f64 {
    HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (power - low) / (high - low)
}

fn add(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a string grows as needed");
}

fn line(out: &mut String, x1: f64, y1: f64, x2: f64, y2: f64) {
    add(
        out,
        format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" \
             stroke=\"#999\" stroke-opacity=\"0.4\"/>\n"
        ),
    );
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    add(
        out,
        format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>\n"),
    );
}

/// A power of ten as people write it.
fn plain(value: f64) -> String {
    if 1_000_000.0 <= value {
        format!("{:.0} M", value / 1e6)
    } else if 1000.0 <= value {
        format!("{:.0} k", value / 1e3)
    } else {
        format!("{value}")
    }
}

#[cfg(test)]
mod tests {
    use super::{Chart, Series};

    fn chart(values: Vec<Option<f64>>) -> Chart {
        Chart {
            title: "a < b".to_owned(),
            below: "in flight".to_owned(),
            left: "op/s".to_owned(),
            ticks: vec!["1".to_owned(), "64".to_owned(), "256".to_owned()],
            series: vec![Series { name: "etcd".to_owned(), ours: false, dashed: true, values }],
        }
    }

    #[test]
    fn points_rise_with_their_values_and_gaps_are_left_out() {
        let svg = chart(vec![Some(10.0), None, Some(1000.0)]).svg().unwrap();
        assert!(svg.contains("points=\"78.0,328.0 696.0,68.0\""), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 2, "{svg}");
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"), "{svg}");
    }

    #[test]
    fn chart_without_values_is_none() {
        assert_eq!(chart(vec![None, None, None]).svg(), None);
    }
}
