//! Tables of medians and of ratios.

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};

use super::Report;
use crate::contender::Kind;
use crate::metric::Metric;

const NOTHING: &str = "-";

/// A row for each metric, a column for each contender.
pub(super) fn medians(report: &Report) -> String {
    let names = report.names();
    let mut table = grid(&names);
    for metric in Metric::ALL {
        let cells = names.iter().map(|name| {
            report
                .results
                .summary(metric, name)
                .map_or(NOTHING.to_owned(), |summary| {
                    let spread = 100.0 * summary.spread();
                    format!("{} ±{spread:.0}%", metric.show(summary.median))
                })
        });
        table.add_row(row(metric, cells));
    }
    right(table)
}

/// A row for each metric; for each limpid a column of multiples of `direct`, of `dnat` and of the
/// best peer.
pub(super) fn ratios(report: &Report) -> String {
    let limpids = report.contenders.iter().filter(|kind| kind.is_limpid());
    let limpids: Vec<String> = limpids.map(Kind::name).collect();
    let (direct, dnat) = (Kind::Direct.name(), Kind::Dnat.name());
    let peers = report.peers();
    let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
    let header = limpids
        .iter()
        .flat_map(|name| ["direct", "dnat", "best peer"].map(|other| format!("{name} / {other}")));
    let mut table = grid(&header.collect::<Vec<_>>());
    for metric in Metric::ALL {
        let best = report.results.best(metric, &peers);
        let cells = limpids.iter().flat_map(|name| {
            [Some(direct.as_str()), Some(dnat.as_str()), best].map(|other| {
                other
                    .and_then(|other| report.results.ratio(metric, name, other))
                    .map_or(NOTHING.to_owned(), |ratio| format!("{ratio:.2}"))
            })
        });
        let cells = cells.collect::<Vec<_>>();
        table.add_row(row(metric, cells.into_iter()));
    }
    right(table)
}

fn grid(columns: &[String]) -> Table {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN);
    table.set_header(std::iter::once("").chain(columns.iter().map(String::as_str)));
    table
}

fn row(metric: Metric, cells: impl Iterator<Item = String>) -> Vec<String> {
    let title = format!("{}, {}", metric.title(), metric.unit());
    std::iter::once(title).chain(cells).collect()
}

fn right(mut table: Table) -> String {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}
