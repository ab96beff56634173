//! Pictures: horizontal bars with whiskers from the least to the most.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::figures::{Figures, Spread};
use super::pages::{Page, round, words};

const WIDTH: u32 = 900;
/// Height of a bar, and of what is around the bars, in pixels.
const BAR: u32 = 22;
const AROUND: u32 = 110;
/// Room for the rows' names.
const NAMES: u32 = 260;
/// When the largest figure is so many times the smallest, the axis is logarithmic.
const WIDE: f64 = 50.0;

/// Distinguishable for the colour-blind, and in grey.
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 90, 150), RGBColor(230, 159, 0), RGBColor(178, 24, 43), RGBColor(127, 179, 213)];

/// One bar.
struct Bar {
    name: String,
    series: usize,
    spread: Spread,
}

/// The picture of a page, as one SVG document.
///
/// # Errors
/// The plotting library's.
pub fn bars(page: &Page, figures: &Figures) -> Result<String> {
    let bars = collect(page, figures);
    let medians = || bars.iter().map(|bar| bar.spread.median);
    let most = bars.iter().map(|bar| bar.spread.max).fold(0.0, f64::max);
    let least = medians().filter(|value| *value > 0.0).fold(most, f64::min);
    let mut svg = String::new();
    let height = AROUND + BAR * u32::try_from(bars.len()).unwrap_or(0);
    let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
    let rows = 0.0..bars.len().max(1) as f64;
    let error = |error: DrawingAreaErrorKind<std::io::Error>| anyhow!("drawing {}: {error}", page.title);
    root.fill(&WHITE).map_err(error)?;
    let mut chart = ChartBuilder::on(&root);
    chart.caption(page.title, ("sans-serif", 18)).margin(12).x_label_area_size(34).y_label_area_size(NAMES);
    let drawn = if most / least > WIDE {
        let axis = (least / 2.0..most * 10.0).log_scale();
        draw(&mut chart.build_cartesian_2d(axis, rows).map_err(error)?, page, &bars, least / 2.0)
    } else {
        let lowest = medians().fold(0.0, f64::min);
        draw(&mut chart.build_cartesian_2d(lowest..most * 1.1, rows).map_err(error)?, page, &bars, 0.0)
    };
    drawn.and_then(|()| root.present()).map_err(error)?;
    drop(chart);
    drop(root);
    Ok(svg)
}

fn collect(page: &Page, figures: &Figures) -> Vec<Bar> {
    let columns = || page.columns.iter().filter(|column| column.drawn).enumerate();
    let several = columns().count() > 1;
    let mut bars = Vec::new();
    for row in page.rows(figures) {
        for (series, column) in columns() {
            let Some(spread) = column.figure(figures, row) else { continue };
            let what = if several { format!(": {}", column.heading) } else { String::new() };
            bars.push(Bar { name: format!("{}{what}", words(row)), series, spread });
        }
    }
    bars
}

fn draw<X>(
    chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<X, plotters::coord::types::RangedCoordf64>>,
    page: &Page,
    bars: &[Bar],
    base: f64,
) -> Result<(), DrawingAreaErrorKind<std::io::Error>>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_desc(page.unit)
        .x_label_formatter(&|value| round(*value))
        .light_line_style(WHITE)
        .draw()?;
    for (row, bar) in bars.iter().rev().enumerate() {
        let (low, middle, high) = (row as f64 + 0.15, row as f64 + 0.5, row as f64 + 0.85);
        let Spread { median, min, max } = bar.spread;
        let colour = COLOURS[bar.series % COLOURS.len()];
        let body = Rectangle::new([(base, low), (median.max(base), high)], colour.filled());
        chart.draw_series([body])?;
        let whisker = PathElement::new([(min.max(base), middle), (max, middle)], BLACK.stroke_width(1));
        chart.draw_series([whisker])?;
        let beside = |text: String, x: f64, shift: i32, side: HPos| {
            let style = ("sans-serif", 12).into_text_style(chart.plotting_area());
            EmptyElement::at((x, middle))
                + Text::new(text, (shift, 0), style.pos(Pos::new(side, VPos::Center)))
        };
        let labels = [
            beside(bar.name.clone(), base, -6, HPos::Right),
            beside(round(median), max.max(base), 6, HPos::Left),
        ];
        chart.draw_series(labels)?;
    }
    Ok(())
}
