//! `limpid flows`.

use clap::Args;
use comfy_table::{Table, presets};

use super::{ControlArgs, InstanceArgs};
use crate::control::FlowView;
use crate::control::client::{self, AskError};

/// Arguments of `limpid flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Print JSON: an array with one object a flow.
    #[arg(long)]
    pub json: bool,

    /// Which limpid.
    #[command(flatten)]
    pub instance: InstanceArgs,

    /// Where it listens.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// What the command prints.
pub async fn flows(args: &FlowsArgs) -> Result<String, AskError> {
    let path = args.control.path(&args.instance);
    let flows = client::flows(&path).await?;
    if args.json {
        return serde_json::to_string_pretty(&flows).map_err(|e| AskError::Answer(path, e));
    }
    Ok(table(&flows).trim_fmt())
}

fn table(flows: &[FlowView]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "ID",
        "CLIENT",
        "DOWNSTREAM",
        "UPSTREAM",
        "ENGINE",
        "STATE",
        "UP",
        "DOWN",
        "AGE",
        "FALLBACK",
    ]);
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    for flow in flows {
        let age = std::time::Duration::from_secs(flow.age_ms / 1000);
        table.add_row([
            flow.id.to_string(),
            text(&flow.client),
            flow.downstream.clone(),
            text(&flow.upstream),
            text(&flow.engine),
            flow.state.clone(),
            flow.bytes_up.to_string(),
            flow.bytes_down.to_string(),
            humantime::format_duration(age).to_string(),
            text(&flow.fallback),
        ]);
    }
    table
}
