//! One page of HTML: a table and two plots of each measurement, nothing that is fetched from elsewhere.

use crate::limits::Limits;
use crate::load::{Row, SLOT};
use crate::report::{QUANTILES, cpu_of_gib, machine, megabytes, share};
use plotters::coord::ranged1d::{KeyPointHint, Ranged};
use plotters::prelude::*;
use std::fmt::Write;
use std::ops::Range;

/// Size of a plot, in pixels.
const PLOT: (u32, u32) = (560, 300);
const STYLE: &str = "body{font:15px/1.4 sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:.5em 0}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}\
td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}";
/// Up to which percentile latencies are drawn: 99.999.
const NINES: f64 = 5.0;

/// The page.
pub(crate) fn render(rows: &[Row], limits: &Limits) -> anyhow::Result<String> {
    let mut page = String::new();
    write!(page, "<!doctype html><html lang=en><meta charset=utf-8><title>cairn bench</title>")?;
    write!(page, "<style>{STYLE}</style><h1>cairn bench</h1><h2>This machine, in the same run</h2><table>")?;
    for (name, value) in machine(limits) {
        write!(page, "<tr><td>{name}<td>{value:.0}")?;
    }
    write!(page, "</table>")?;
    for group in rows.chunk_by(|a, b| a.group == b.group) {
        write!(page, "<h2>{}</h2>", escape(&group[0].group))?;
        table(&mut page, group, limits)?;
        page.push_str(&latencies(group)?);
        page.push_str(&progress(group)?);
    }
    page.push_str("</html>\n");
    Ok(page)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn table(page: &mut String, rows: &[Row], limits: &Limits) -> std::fmt::Result {
    write!(page, "<table><tr><th><th>MB/s<th>op/s")?;
    for (title, _) in QUANTILES {
        write!(page, "<th>{title}")?;
    }
    write!(page, "<th>CPU s/GiB<th>CPU us/op<th>of the limit")?;
    for r in rows {
        write!(page, "<tr><td>{}<td>{}<td>{:.0}", escape(&r.name), megabytes(r), r.ops())?;
        for (_, quantile) in QUANTILES {
            write!(page, "<td>{:.0}", r.at(quantile))?;
        }
        write!(page, "<td>{}<td>{:.1}<td>", cpu_of_gib(r), r.cpu_per_op())?;
        if let Some((share, of)) = share(r, limits) {
            write!(page, "{share:.2} x {of}")?;
        }
    }
    write!(page, "</table>")
}

/// An axis of percentiles on which each further nine takes as much room: 0, 90, 99, 99.9.
struct Nines;

impl Ranged for Nines {
    type FormatOption = plotters::coord::ranged1d::NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        from + ((to - from) as f64 * value / NINES) as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..=NINES as u32).map(f64::from).collect()
    }

    fn range(&self) -> Range<f64> {
        0.0..NINES
    }
}

impl plotters::coord::ranged1d::ValueFormatter<f64> for Nines {
    fn format_ext(&self, value: &f64) -> String {
        let digits = (*value as usize).saturating_sub(2);
        format!("{:.digits$}", 100.0 - 100.0 / 10f64.powf(*value))
    }
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("draw a plot: {error}")
}

/// Latency against percentile.
fn latencies(rows: &[Row]) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, PLOT).into_drawing_area();
        let highest = rows.iter().map(|r| r.at(1.0)).fold(10.0, f64::max);
        let mut chart = ChartBuilder::on(&area)
            .caption("latency, us, by percentile", ("sans-serif", 15))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(65)
            .build_cartesian_2d(Nines, (1.0..highest * 1.2).log_scale())
            .map_err(failed)?;
        chart.configure_mesh().light_line_style(TRANSPARENT).draw().map_err(failed)?;
        for (n, row) in rows.iter().enumerate() {
            let color = Palette99::pick(n).to_rgba();
            let steps = (0..=100).map(|i| f64::from(i) * NINES / 100.0);
            let points = steps.map(|nines| (nines, row.at(1.0 - 10f64.powf(-nines)).max(1.0)));
            let line = chart.draw_series(LineSeries::new(points, color.stroke_width(2))).map_err(failed)?;
            line.label(&row.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 15, y)], color));
        }
        let mut labels = chart.configure_series_labels();
        labels.position(SeriesLabelPosition::UpperLeft).border_style(BLACK).draw().map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Operations a second over time: a stall is a hole.
fn progress(rows: &[Row]) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, PLOT).into_drawing_area();
        let rate = |n: u32| f64::from(n) / SLOT.as_secs_f64();
        let time = |slot: usize| slot as f64 * SLOT.as_secs_f64();
        let most = rows.iter().flat_map(|r| &r.slots).copied().max().unwrap_or(1);
        let last = rows.iter().map(|r| r.slots.len()).max().unwrap_or(1);
        let mut chart = ChartBuilder::on(&area)
            .caption("operations a second, by seconds", ("sans-serif", 15))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(65)
            .build_cartesian_2d(0.0..time(last.max(1)), 0.0..rate(most) * 1.1)
            .map_err(failed)?;
        chart.configure_mesh().light_line_style(TRANSPARENT).draw().map_err(failed)?;
        for (n, row) in rows.iter().enumerate() {
            let color = Palette99::pick(n).to_rgba();
            let points = row.slots.iter().enumerate().map(|(slot, n)| (time(slot), rate(*n)));
            chart.draw_series(LineSeries::new(points, color.stroke_width(2))).map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}
