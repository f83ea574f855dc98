//! The grid as a picture: for a terminal, and as SVG.

use std::fmt::Write;

use super::{Cell, TtftReport};

/// Characters of the longest bar.
const BAR: usize = 48;

struct Series {
    name: &'static str,
    colour: &'static str,
    of: fn(&Cell) -> Option<f64>,
}

const SERIES: [Series; 6] = [
    Series { name: "direct", colour: "#9aa0a6", of: |cell| Some(cell.ttft_direct_s) },
    Series { name: "object store", colour: "#8ab4f8", of: |cell| Some(cell.ttft_object_s) },
    Series { name: "disk", colour: "#4285f4", of: |cell| Some(cell.ttft_disk_s) },
    Series { name: "RAM", colour: "#0b57d0", of: |cell| Some(cell.ttft_ram_s) },
    Series { name: "llama.cpp direct", colour: "#f6c28b", of: |cell| cell.peer_direct_s },
    Series { name: "llama.cpp restored", colour: "#e8710a", of: |cell| cell.peer_restored_s },
];

/// Bars of characters, on a logarithmic scale.
#[must_use]
pub fn text_plot(report: &TtftReport) -> String {
    let scale = Scale::of(report);
    let mut out = String::new();
    for cell in &report.cells {
        let _ = writeln!(out, "{} + {} tokens", cell.context_tokens, cell.query_tokens);
        for series in &SERIES {
            let Some(seconds) = (series.of)(cell) else { continue };
            let bar = "#".repeat((scale.share(seconds) * BAR as f64).round() as usize);
            let _ = writeln!(out, "  {:<18} {seconds:>8.3} s  {bar}", series.name);
        }
    }
    let _ = writeln!(out, "bars are logarithmic: each step of {} is tenfold", scale.decade());
    out
}

/// A logarithmic scale over everything that is shown.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(report: &TtftReport) -> Self {
        let shown =
            || report.cells.iter().flat_map(|cell| SERIES.iter().filter_map(|s| (s.of)(cell)));
        let positive = || shown().filter(|seconds| *seconds > 0.0);
        let low = positive().fold(1.0, f64::min).log10().floor();
        let high = positive().fold(0.1, f64::max).log10().ceil();
        Self { low, high: high.max(low + 1.0) }
    }

    /// From 0 to 1.
    fn share(&self, seconds: f64) -> f64 {
        ((seconds.max(1e-6).log10() - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn decade(&self) -> usize {
        (BAR as f64 / (self.high - self.low)).round() as usize
    }
}

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 52.0;

/// An SVG picture of the same.
#[must_use]
pub fn svg(report: &TtftReport) -> String {
    let scale = Scale::of(report);
    let (plot_width, plot_height) = (WIDTH - LEFT - 16.0, HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">Time to the first token (s, logarithmic), \
         {} threads</text>\n",
        report.threads
    );
    let mut x = LEFT;
    for series in used(report) {
        let (name, colour) = (series.name, series.colour);
        let text = x + 14.0;
        let _ = writeln!(
            out,
            "<rect x=\"{x:.0}\" y=\"34\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{text:.0}\" y=\"43\">{name}</text>"
        );
        x += 40.0 + 6.6 * name.len() as f64;
    }
    grid(&mut out, &scale, plot_width, plot_height);
    let group = plot_width / report.cells.len().max(1) as f64;
    for (at, cell) in report.cells.iter().enumerate() {
        let begin = LEFT + group * at as f64;
        let shown: Vec<(&Series, f64)> =
            SERIES.iter().filter_map(|series| Some((series, (series.of)(cell)?))).collect();
        let width = group * 0.8 / shown.len().max(1) as f64;
        for (place, (series, seconds)) in shown.iter().enumerate() {
            let height = scale.share(*seconds) * plot_height;
            let (x, y) = (begin + group * 0.1 + width * place as f64, TOP + plot_height - height);
            let _ = writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
                 fill=\"{}\"><title>{}: {seconds:.3} s</title></rect>",
                series.colour, series.name
            );
        }
        let (middle, below) = (begin + group / 2.0, TOP + plot_height + 18.0);
        let _ = writeln!(
            out,
            "<text x=\"{middle:.0}\" y=\"{below:.0}\" text-anchor=\"middle\">{} + {}</text>",
            cell.context_tokens, cell.query_tokens
        );
    }
    let (middle, below) = (LEFT + plot_width / 2.0, HEIGHT - 12.0);
    let _ = writeln!(
        out,
        "<text x=\"{middle:.0}\" y=\"{below:.0}\" text-anchor=\"middle\">tokens of the context + \
         tokens of the new turn</text>\n</svg>"
    );
    out
}

fn used(report: &TtftReport) -> impl Iterator<Item = &'static Series> {
    SERIES.iter().filter(|series| report.cells.iter().any(|cell| (series.of)(cell).is_some()))
}

fn grid(out: &mut String, scale: &Scale, width: f64, height: f64) {
    let mut power = scale.low;
    while power <= scale.high {
        let seconds = 10.0_f64.powf(power);
        let y = TOP + height - scale.share(seconds) * height;
        let (right, text, label) = (LEFT + width, LEFT - 6.0, y + 4.0);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\" \
             stroke=\"#dddddd\"/><text x=\"{text:.0}\" y=\"{label:.1}\" \
             text-anchor=\"end\">{seconds}</text>"
        );
        power += 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(cells: Vec<Cell>) -> TtftReport {
        TtftReport {
            cells,
            speed: Vec::new(),
            memory: Vec::new(),
            quantised: Vec::new(),
            model: String::new(),
            threads: 2,
            rounds: 1,
            object_store: String::new(),
            peer: None,
        }
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let cell = Cell {
            context_tokens: 583,
            query_tokens: 167,
            ttft_direct_s: 10.0,
            ttft_object_s: 1.0,
            ttft_disk_s: 0.1,
            ttft_ram_s: 0.01,
            ..Cell::default()
        };
        let report = report(vec![cell]);
        let bars: Vec<usize> = text_plot(&report)
            .lines()
            .filter(|line| line.contains(" s  "))
            .map(|line| line.matches('#').count())
            .collect();
        assert_eq!(bars, [BAR, 2 * BAR / 3, BAR / 3, 0]);
        let svg = svg(&report);
        assert_eq!(svg.matches("<title>").count(), 4, "{svg}");
        assert!(!svg.contains("llama.cpp") && svg.contains("583 + 167"), "{svg}");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn nothing_measured_is_an_empty_picture() {
        let empty = report(Vec::new());
        assert!(svg(&empty).contains("</svg>") && text_plot(&empty).lines().count() == 1);
    }
}
