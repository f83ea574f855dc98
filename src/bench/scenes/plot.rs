//! The modes as a picture.

use std::fmt::Write;

use super::ScenesReport;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 200.0;
const TOP: f64 = 56.0;
const ROW: f64 = 52.0;
const BAR: f64 = 18.0;
const MARKS: usize = 5;

/// An SVG picture: for each mode, the median and the 95th percentile of the time to the first
/// token.
#[must_use]
pub fn svg(report: &ScenesReport) -> String {
    let height = TOP + ROW * report.modes.len() as f64 + 40.0;
    let most = report.modes.iter().map(|mode| mode.ttft_ms.p95).fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - 70.0) / most;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"15\">Time to the first token after a pause, \
         milliseconds</text>\n\
         <text x=\"16\" y=\"42\" fill=\"#5f6368\">dark: median, light: 95th percentile; {} turns \
         each</text>\n",
        report.turns
    );
    let bottom = height - 32.0;
    for mark in 0..=MARKS {
        let value = most * mark as f64 / MARKS as f64;
        let x = LEFT + value * scale;
        let _ = write!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#e8eaed\"/>\n\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#5f6368\">{value:.0}\
             </text>\n",
            bottom + 16.0
        );
    }
    for (row, mode) in report.modes.iter().enumerate() {
        let y = TOP + ROW * row as f64 + 6.0;
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 10.0,
            y + BAR,
            mode.mode.as_str()
        );
        let bars = [(mode.ttft_ms.p95, "#aecbfa", BAR), (mode.ttft_ms.p50, "#0b57d0", 0.0)];
        for (value, colour, offset) in bars {
            let _ = write!(
                out,
                "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BAR}\" \
                 fill=\"{colour}\"/>\n<text x=\"{:.1}\" y=\"{:.1}\">{value:.0}</text>\n",
                y + offset,
                value * scale,
                LEFT + value * scale + 6.0,
                y + offset + 14.0
            );
        }
    }
    out.push_str("</svg>\n");
    out
}
