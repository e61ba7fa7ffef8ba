//! The binary `limpid`: arguments, logging, exit codes.
//!
//! Exit codes: 0, done; 1, it could not be done, with the reason on standard error; 2, the command
//! line is wrong (clap's own code).

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use clap::error::ErrorKind;
use proxy_user::bpf::probe;
use proxy_user::cli::run::{LogFormat, RunArgs};
use proxy_user::cli::{Cli, Command, cleanup, flows};
use proxy_user::daemon::{self, RunError};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match command(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => match e.downcast_ref::<RunError>() {
            // A wrong command line, though clap cannot tell: its form and its exit code.
            Some(usage @ RunError::NoTrust) => {
                clap::Error::raw(ErrorKind::MissingRequiredArgument, format!("{usage}\n")).exit()
            }
            _ => {
                // Every error says what it was caused by.
                eprintln!("error: {e}");
                ExitCode::FAILURE
            }
        },
    }
}

fn command(command: Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        match command {
            Command::Run(args) => run(*args).await?,
            Command::Flows(args) => println!("{}", flows::flows(&args).await?),
            Command::Cleanup(args) => {
                log(LogFormat::Text);
                for line in cleanup::cleanup(&args).await? {
                    println!("removed {line}");
                }
            }
            Command::Probe => print!("{}", probe::probe()),
        }
        Ok(())
    })
}

async fn run(args: RunArgs) -> Result<(), RunError> {
    log(args.log_format);
    daemon::run(args).await
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
