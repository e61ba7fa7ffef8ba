//! `limpid check`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::config::{self, Config, Diagnostic, LoadError, Loaded, Report, Severity};

/// Arguments of `limpid check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The file.
    #[arg(value_name = "FILE", required_unless_present = "schema")]
    pub file: Option<PathBuf>,

    /// Print JSON: an array of errors and warnings, each with `severity`, `path` (the key), `line`, `column`
    /// and `message`.
    #[arg(long)]
    pub json: bool,

    /// Print the JSON Schema of such a file instead, for editors.
    #[arg(long, conflicts_with_all = ["file", "json"])]
    pub schema: bool,
}

/// What there is to say.
#[derive(Debug, PartialEq, Eq)]
pub struct Checked {
    /// For standard output.
    pub text: String,
    /// For standard error.
    pub warnings: String,
    /// Whether the file can be run.
    pub is_usable: bool,
}

/// Checks a file, as a start with it would. What is wrong is an error, or JSON where that is asked for.
pub fn check(args: &CheckArgs) -> Result<Checked, LoadError> {
    let usable = |text| Checked {
        text,
        warnings: String::new(),
        is_usable: true,
    };
    let Some(file) = &args.file else {
        return Ok(usable(pretty(&config::schema())));
    };
    match config::load(file) {
        Ok(Loaded { warnings, .. }) if args.json => Ok(usable(json(&warnings))),
        Ok(Loaded { config, warnings }) => Ok(Checked {
            warnings: warnings.to_string(),
            ..usable(format!(
                "{}: {}",
                file.display(),
                summary(&config, &warnings)
            ))
        }),
        Err(error) if args.json => Ok(Checked {
            is_usable: false,
            ..usable(match &error {
                LoadError::Wrong { report, .. } => json(report),
                LoadError::Read { .. } => pretty(&[Line::of_file(&error)]),
            })
        }),
        Err(error) => Err(error),
    }
}

fn summary(config: &Config, warnings: &Report) -> String {
    let servers = config.pools.values().map(|pool| pool.upstream.len()).sum();
    let warnings = match warnings.count(Severity::Warning) {
        0 => String::new(),
        count => format!(", {}", counted(count, "warning")),
    };
    format!(
        "valid: {}, {}, {}{warnings}",
        counted(config.listeners.len(), "listener"),
        counted(config.pools.len(), "pool"),
        counted(servers, "server"),
    )
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// An error or a warning, for programs.
#[derive(Serialize)]
struct Line {
    severity: Severity,
    path: String,
    line: Option<usize>,
    column: Option<usize>,
    message: String,
}

impl Line {
    fn of(diagnostic: &Diagnostic) -> Self {
        Self {
            severity: diagnostic.cause.severity(),
            path: diagnostic.place.to_string(),
            line: Some(diagnostic.line),
            column: Some(diagnostic.column),
            message: diagnostic.message(),
        }
    }

    /// About a file of which there are no lines.
    fn of_file(error: &LoadError) -> Self {
        Self {
            severity: Severity::Error,
            path: String::new(),
            line: None,
            column: None,
            message: error.to_string(),
        }
    }
}

fn json(report: &Report) -> String {
    let lines: Vec<Line> = report.diagnostics().iter().map(Line::of).collect();
    pretty(&lines)
}

fn pretty<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string_pretty(value).expect("strings and numbers have a JSON form")
}
