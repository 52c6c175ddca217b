//! The picture of a run: reward and held-out accuracy above, KL, loss and response length below.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::page::Chart;
use super::report::{EvalLine, StepLine};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;
type Points = Vec<(f64, f64)>;

const SIZE: (u32, u32) = (960, 620);
/// The size of one quantity's picture.
pub(super) const CHART: (u32, u32) = (420, 240);
const REWARD: RGBColor = RGBColor(49, 104, 166);
const HELD_OUT: RGBColor = RGBColor(214, 96, 32);
const MINOR: RGBColor = RGBColor(84, 120, 90);
const INK: RGBColor = RGBColor(60, 60, 60);
const GRID: RGBColor = RGBColor(228, 228, 228);
const FONT: &str = "Helvetica, Arial, sans-serif";

/// The curves as SVG text.
///
/// # Errors
/// What the drawing library reports.
pub fn svg(title: &str, steps: &[StepLine], evaluations: &[EvalLine]) -> Result<String, String> {
    let mut picture = String::new();
    draw(&mut picture, title, steps, evaluations).map_err(|error| error.to_string())?;
    Ok(picture)
}

/// One quantity as SVG text.
///
/// # Errors
/// What the drawing library reports.
pub fn chart(chart: &Chart) -> Result<String, String> {
    let mut picture = String::new();
    draw_chart(&mut picture, chart).map_err(|error| error.to_string())?;
    Ok(picture)
}

fn draw_chart(picture: &mut String, chart: &Chart) -> Drawn {
    let root = SVGBackend::with_string(picture, CHART).into_drawing_area();
    root.fill(&WHITE)?;
    let finite = |points: &[(f64, f64)]| -> Points {
        points.iter().copied().filter(|point| point.1.is_finite()).collect()
    };
    let points = finite(&chart.points);
    let beside = chart.beside.as_ref().map(|(name, points)| (name.as_str(), finite(points)));
    let last = points.iter().chain(beside.iter().flat_map(|(_, points)| points)).map(|point| point.0);
    small(&root, &chart.title, 0.0..last.fold(1.0, f64::max), &points, beside)?;
    root.present()?;
    Ok(())
}

fn draw(picture: &mut String, title: &str, steps: &[StepLine], evaluations: &[EvalLine]) -> Drawn {
    let root = SVGBackend::with_string(picture, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, (FONT, 19).into_font().color(&INK))?;
    let last = steps.iter().map(|line| line.step).chain(evaluations.iter().map(|line| line.step)).max();
    let x = 0.0..last.unwrap_or(0).max(1) as f64;

    let (top, bottom) = root.split_vertically(370);
    accuracy(&top, x.clone(), steps, evaluations)?;
    let panels = bottom.split_evenly((1, 3));
    let of = |value: fn(&StepLine) -> Option<f64>| -> Points {
        let points = steps.iter().filter_map(|line| value(line).map(|value| (line.step as f64, value)));
        points.filter(|point| point.1.is_finite()).collect()
    };
    small(&panels[0], "KL to the start model (nats per token)", x.clone(), &of(|line| line.update.kl), None)?;
    small(&panels[1], "loss", x.clone(), &of(|line| Some(line.update.loss)), None)?;
    small(&panels[2], "response length (tokens)", x, &of(|line| Some(line.response_length_mean)), None)?;
    root.present()?;
    Ok(())
}

fn accuracy(area: &Area, x: Range<f64>, steps: &[StepLine], evaluations: &[EvalLine]) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .margin_right(24)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(x.clone(), 0.0..1.0)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .x_labels(whole_labels(&x, 11))
        .y_labels(6)
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|share| format!("{:.0} %", 100.0 * share))
        .label_style((FONT, 14).into_font().color(&INK))
        .x_desc("training step")
        .y_desc("solved")
        .draw()?;

    let reward: Points = steps.iter().map(|line| (line.step as f64, line.reward_mean)).collect();
    chart.draw_series(reward.iter().map(|&point| Circle::new(point, 3, REWARD.mix(0.45).filled())))?;
    chart
        .draw_series(LineSeries::new(smoothed(&reward), REWARD.stroke_width(2)))?
        .label("reward of sampled responses (dots: each step; line: mean of 3)")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], REWARD.stroke_width(2)));

    let held_out: Points = evaluations.iter().map(|line| (line.step as f64, line.eval_accuracy)).collect();
    chart
        .draw_series(LineSeries::new(held_out.iter().copied(), HELD_OUT.stroke_width(3)))?
        .label("held-out problems solved, greedy")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], HELD_OUT.stroke_width(3)));
    chart.draw_series(held_out.iter().map(|&point| Circle::new(point, 5, HELD_OUT.filled())))?;

    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(GRID)
        .label_font((FONT, 14).into_font().color(&INK))
        .margin(10)
        .draw()?;
    Ok(())
}

/// One quantity, and perhaps another of the same unit.
fn small(
    area: &Area,
    title: &str,
    x: Range<f64>,
    points: &[(f64, f64)],
    beside: Option<(&str, Points)>,
) -> Drawn {
    let others = beside.iter().flat_map(|(_, points)| points.iter().copied());
    let y = around(&points.iter().copied().chain(others).collect::<Points>());
    let decimals = decimals(y.end - y.start);
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 14).into_font().color(&INK))
        .margin(8)
        .margin_right(24)
        .x_label_area_size(24)
        .y_label_area_size(56)
        .build_cartesian_2d(x.clone(), y)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .x_labels(whole_labels(&x, 6))
        .y_labels(5)
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|value| format!("{value:.decimals$}"))
        .label_style((FONT, 12).into_font().color(&INK))
        .draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), MINOR.stroke_width(2)))?;
    if points.len() == 1 {
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, MINOR.filled())))?;
    }
    if let Some((name, points)) = beside {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), HELD_OUT.stroke_width(2)))?
            .label(name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], HELD_OUT.stroke_width(2)));
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, HELD_OUT.filled())))?;
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.85))
            .border_style(GRID)
            .label_font((FONT, 12).into_font().color(&INK))
            .draw()?;
    }
    Ok(())
}

/// Few enough labels that each stands at a whole step.
fn whole_labels(x: &Range<f64>, most: usize) -> usize {
    most.min(x.end as usize + 1)
}

/// Each point's mean with its neighbours.
fn smoothed(points: &[(f64, f64)]) -> Points {
    (0..points.len())
        .map(|here| {
            let window = &points[here.saturating_sub(1)..points.len().min(here + 2)];
            (points[here].0, window.iter().map(|point| point.1).sum::<f64>() / window.len() as f64)
        })
        .collect()
}

/// A range that holds all values with some air.
fn around(points: &[(f64, f64)]) -> Range<f64> {
    let low = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    match low < high {
        true => low - 0.08 * (high - low)..high + 0.08 * (high - low),
        false if points.is_empty() => 0.0..1.0,
        false => low - 0.5..low + 0.5,
    }
}

/// As many decimals as it takes to tell the labels of an axis of this length apart.
fn decimals(length: f64) -> usize {
    (1.0 - length.log10().floor()).clamp(0.0, 6.0) as usize
}
