//! The binary `limpid`: arguments, logging, exit codes.
//!
//! Exit codes: 0, done; 1, it could not be done, with the reason on standard error; 2, the command
//! line is wrong (clap's own code).

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use clap::error::ErrorKind;
use proxy_user::bpf::probe;
use proxy_user::cli::{Cli, Command, check, cleanup, flows, servers, status};
use proxy_user::config::LogFormat;
use proxy_user::daemon::{self, RunError};
use proxy_user::listener::inherit::Inherited;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let error = match command(cli.command) {
        Ok(code) => return code,
        Err(error) => error,
    };
    match error.downcast_ref::<RunError>() {
        // A wrong command line, though clap cannot tell: its form and its exit code.
        Some(usage @ (RunError::Options(_) | RunError::LocalUpstream(_))) => {
            clap::Error::raw(ErrorKind::ArgumentConflict, format!("{usage}\n")).exit()
        }
        // Not `eprintln`, which panics where nobody reads it; and in one piece, for a log that
        // others write to as well.
        _ => {
            let line = format!("error: {}\n", with_causes(&error));
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }
    ExitCode::FAILURE
}

/// The error and its causes, less those that it has told already: most of ours do.
fn with_causes(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| {
        let cause = cause.to_string();
        match told.as_str() {
            "" => cause,
            said if said.contains(&cause) => told,
            _ => format!("{told}: {cause}"),
        }
    })
}

fn command(command: Command) -> anyhow::Result<ExitCode> {
    // Before there are other threads: it takes them from the environment.
    let sockets = match &command {
        Command::Run(_) => Inherited::from_environment(),
        _ => Inherited::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        match command {
            Command::Run(args) => {
                let (config, warnings) = daemon::configuration(&args)?;
                log(config.daemon.log_format);
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                daemon::run(*args, config, sockets).await?;
            }
            Command::Status(args) => _ = print(&status::status(&args).await?)?,
            Command::Flows(args) => watch(&args).await?,
            Command::Flow(args) => _ = print(&flows::flow(&args).await?)?,
            Command::Servers(args) => _ = print(&servers::servers(&args).await?)?,
            Command::Server(args) => _ = print(&servers::server(&args).await?)?,
            Command::Reload(args) => {
                let reloaded = status::reload(&args).await?;
                if !reloaded.warnings.is_empty() {
                    let warnings = format!("{}\n", reloaded.warnings);
                    let _ = std::io::stderr().write_all(warnings.as_bytes());
                }
                let _ = print(&reloaded.text)?;
            }
            Command::Check(args) => {
                let checked = check::check(&args)?;
                if !checked.warnings.is_empty() {
                    let warnings = format!("{}\n\n", checked.warnings);
                    let _ = std::io::stderr().write_all(warnings.as_bytes());
                }
                let _ = print(&checked.text)?;
                if !checked.is_usable {
                    return Ok(ExitCode::FAILURE);
                }
            }
            Command::Cleanup(args) => {
                log(LogFormat::Text);
                for line in cleanup::cleanup(&args).await? {
                    let _ = print(&format!("removed {line}"))?;
                }
            }
            Command::Probe(args) if args.json => {
                let _ = print(&serde_json::to_string_pretty(&probe::probe())?)?;
            }
            Command::Probe(_) => _ = print(probe::probe().to_string().trim_end())?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Prints the flows, once or again and again.
async fn watch(args: &flows::FlowsArgs) -> anyhow::Result<()> {
    /// Cursor to the first place, all behind it cleared (ECMA-48: CUP, ED).
    const AFRESH: &str = "\x1b[H\x1b[2J";
    let afresh = !args.json && std::io::stdout().is_terminal();
    loop {
        let list = flows::flows(args).await?;
        let before = if afresh && args.watch.is_some() {
            AFRESH
        } else {
            ""
        };
        let read = print(&format!("{before}{list}"))?;
        match args.every() {
            Some(time) if read => tokio::time::sleep(time).await,
            Some(_) | None => return Ok(()),
        }
    }
}

/// A line on standard output. False: its reader has had enough, which is no failure.
fn print(line: &str) -> anyhow::Result<bool> {
    match writeln!(std::io::stdout().lock(), "{line}") {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e).context("standard output"),
    }
}

fn log(format: LogFormat) {
    let filter = EnvFilter::builder().try_from_env();
    let bad = std::env::var_os(EnvFilter::DEFAULT_ENV).and(filter.as_ref().err());
    let bad = bad.map(ToString::to_string);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A log that nobody reads any more must not end the daemon.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    if let Some(e) = bad {
        tracing::warn!("RUST_LOG is not understood, `info` is used: {e}");
    }
}
