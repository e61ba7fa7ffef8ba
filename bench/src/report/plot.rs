//! The plot: a panel for each of the metrics that matter most, a bar for each contender.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Report;
use crate::contender::Kind;
use crate::metric::{Better, Metric};

const PANELS: [Metric; 6] = [
    Metric::KeepAlive256,
    Metric::Close,
    Metric::Down,
    Metric::PacedP99,
    Metric::DownMachineCpu,
    Metric::Idle,
];
const COLUMNS: usize = 2;

const WIDTH: u32 = 960;
/// Of a panel's title, of a bar with the space below it.
const TITLE: i32 = 44;
const STEP: i32 = 20;
const BAR: i32 = 14;
/// Where names end, where bars start, and how long the longest may be.
const NAMES: i32 = 150;
const START: i32 = 158;
const LONGEST: f64 = 210.0;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The whole plot as an SVG file.
pub(super) fn svg(report: &Report) -> Result<String> {
    let mut text = String::new();
    let rows = PANELS.len().div_ceil(COLUMNS);
    let panel = TITLE + STEP * i32::try_from(report.contenders.len())? + STEP;
    let height = u32::try_from(panel)? * u32::try_from(rows)?;
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE).map_err(unplotted)?;
        for (area, metric) in root.split_evenly((rows, COLUMNS)).iter().zip(PANELS) {
            draw(area, report, metric)?;
        }
        root.present().map_err(unplotted)?;
    }
    Ok(text)
}

fn draw(area: &Area<'_>, report: &Report, metric: Metric) -> Result<()> {
    let direction = match metric.better() {
        Better::Higher => "more is better",
        Better::Lower => "less is better",
    };
    let title = format!("{}, {} ({direction})", metric.title(), metric.unit());
    area.draw(&Text::new(title, (12, 18), ("sans-serif", 17).into_font()))
        .map_err(unplotted)?;
    let bars: Vec<_> = report
        .contenders
        .iter()
        .map(|kind| (kind, report.results.summary(metric, &kind.name())))
        .collect();
    let largest = bars
        .iter()
        .filter_map(|(_, summary)| summary.map(|summary| summary.max))
        .fold(f64::MIN_POSITIVE, f64::max);
    #[expect(clippy::cast_possible_truncation, reason = "at most LONGEST")]
    let length = |value: f64| START + (value.max(0.0) / largest * LONGEST) as i32;
    let small = ("sans-serif", 15).into_font();
    for (n, (kind, summary)) in (0..).zip(bars) {
        let top = TITLE + STEP * n;
        let middle = top + BAR / 2;
        let name = small
            .clone()
            .into_text_style(area)
            .pos(Pos::new(HPos::Right, VPos::Center));
        area.draw(&Text::new(kind.name(), (NAMES, middle), name))
            .map_err(unplotted)?;
        let Some(summary) = summary else { continue };
        let corners = [(START, top), (length(summary.median), top + BAR)];
        area.draw(&Rectangle::new(corners, colour(kind).filled()))
            .map_err(unplotted)?;
        // From the worst round to the best.
        let range = vec![(length(summary.min), middle), (length(summary.max), middle)];
        area.draw(&PathElement::new(range, BLACK.stroke_width(1)))
            .map_err(unplotted)?;
        let value = small
            .clone()
            .into_text_style(area)
            .pos(Pos::new(HPos::Left, VPos::Center));
        let at = (length(summary.max.max(summary.median)) + 6, middle);
        area.draw(&Text::new(metric.show(summary.median), at, value))
            .map_err(unplotted)?;
    }
    Ok(())
}

fn colour(kind: &Kind) -> RGBColor {
    match kind {
        Kind::Direct | Kind::Dnat => RGBColor(158, 158, 158),
        Kind::Haproxy { .. } | Kind::Nginx => RGBColor(222, 143, 5),
        Kind::Limpid { .. } => RGBColor(1, 115, 178),
    }
}

/// plotters' errors borrow from the drawing area.
fn unplotted(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("plotting: {error}")
}
