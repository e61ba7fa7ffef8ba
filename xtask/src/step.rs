//! Running commands, and saying what takes long and how long it took.

use std::io::{BufRead as _, BufReader};
use std::iter;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// Announces `what`, does it, and says how long it took. All of that on stderr: stdout belongs to
/// the commands that are run.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {what}");
    let start = Instant::now();
    let result = work();
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(_) => eprintln!("    {what}: {seconds:.1} s"),
        Err(_) => eprintln!("    {what}: failed after {seconds:.1} s"),
    }
    result
}

/// Runs a command that writes to the terminal itself.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("could not start {}", shown(command)))?;
    ensure!(status.success(), "{} ended with {status}", shown(command));
    Ok(())
}

/// Runs a command whose output is worth seeing only when it fails, and returns its stdout.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("could not start {}", shown(command)))?;
    text(command, &output)
}

/// Runs a command and passes its stdout on, line by line.
pub(crate) fn lines(command: &mut Command, mut line: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start {}", shown(command)))?;
    let stdout = child.stdout.take().context("stdout was asked for")?;
    for read in BufReader::new(stdout).split(b'\n') {
        let read = read.with_context(|| format!("could not read what {} says", shown(command)))?;
        line(&String::from_utf8_lossy(&read));
    }
    Ok(child.wait()?)
}

/// Like [`output`], but gives up after `limit`: for commands that wait for a network that may
/// not be there.
pub(crate) fn output_within(limit: Duration, command: &mut Command) -> Result<String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start {}", shown(command)))?;
    let end = Instant::now() + limit;
    while child.try_wait()?.is_none() {
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            bail!(
                "{} did not end within {} s",
                shown(command),
                limit.as_secs()
            );
        }
        thread::sleep(Duration::from_millis(50));
    }
    text(command, &child.wait_with_output()?)
}

fn text(command: &Command, output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return Ok(stdout.into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    bail!(
        "{} ended with {}\n{stdout}{stderr}",
        shown(command),
        output.status
    )
}

/// The command as one would type it, without the environment that `Debug` adds.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    iter::once(program.file_name().unwrap_or(program.as_os_str()))
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
