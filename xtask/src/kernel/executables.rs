//! What is run inside: the daemon and the test programs, built here as ever.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::folder;
use crate::step::{self, output};
use crate::workspace;

/// A test program.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TestProgram {
    /// As `cargo test --test` calls it.
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// Builds the test programs that ask something of a kernel, or those of them that are `wanted`, without
/// their debug information; ordered by name.
pub(super) fn build(wanted: &[String]) -> Result<Vec<TestProgram>> {
    let mut programs = compile()?;
    for name in wanted {
        ensure!(
            programs.iter().any(|program| program.name == *name),
            "there is no test program {name}"
        );
    }
    programs.retain(|program| wanted.is_empty() || wanted.contains(&program.name));
    for program in &mut programs {
        program.path = stripped(&program.path, &program.name)?;
    }
    // cargo names them as they get ready.
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

fn compile() -> Result<Vec<TestProgram>> {
    step::step("compiling the tests", || {
        let child = workspace::cargo()
            .args([
                "test",
                crate::test::PACKAGES,
                "--no-run",
                "--tests",
                "--message-format=json-render-diagnostics",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .context("could not start cargo")?;
        let built = child.wait_with_output()?;
        ensure!(built.status.success(), "the tests do not compile");
        String::from_utf8_lossy(&built.stdout)
            .lines()
            .filter_map(|line| test_program(line).transpose())
            .collect()
    })
}

/// A message of cargo's, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
    src_path: PathBuf,
}

/// Folders of the workspace whose test programs ask something of a kernel.
const ASKING: [&str; 2] = ["tests", "proxy-user"];

/// The test program that one of cargo's messages is about. Unit tests ask nothing of a kernel.
fn test_program(message: &str) -> Result<Option<TestProgram>> {
    let message: Message = serde_json::from_str(message).context("a message of cargo's")?;
    Ok(message
        .target
        .zip(message.executable)
        .filter(|(target, _)| {
            let asks = |folder| target.src_path.starts_with(workspace::root().join(folder));
            target.kind == ["test"] && ASKING.into_iter().any(asks)
        })
        .map(|(target, path)| TestProgram {
            name: target.name,
            path,
        }))
}

/// Copies a program without its debug information; returns the copy's path.
///
/// A guest reads a file through 9p, and before Linux 5.12 a page at a time: 7 MB/s. Of the daemon as
/// cargo builds it, nine tenths are debug information.
pub(super) fn stripped(program: &Path, name: &str) -> Result<PathBuf> {
    let folder = folder().join("programs");
    fs::create_dir_all(&folder)?;
    let copy = folder.join(name);
    output(
        Command::new("strip")
            .args([OsStr::new("--strip-debug"), OsStr::new("-o")])
            .args([&copy, program]),
    )?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_told_from_all_else() {
        let of = |source: &str| {
            let source = workspace::root().join(source).display().to_string();
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["test"],"name":"header","src_path":{source:?}}},"executable":"/t/header-1"}}"#
            )
        };
        let program = test_program(&of("tests/tests/header.rs")).unwrap().unwrap();
        assert_eq!(program.name, "header");
        assert_eq!(program.path, Path::new("/t/header-1"));
        for other in [
            &of("proxy-core/tests/header/main.rs"),
            r#"{"target":{"kind":["lib"],"name":"limpid_tests","src_path":"/s"},"executable":"/t/1"}"#,
            r#"{"target":{"kind":["lib"],"name":"anyhow","src_path":"/s"},"executable":null}"#,
            r#"{"reason":"build-finished","success":true}"#,
        ] {
            assert_eq!(test_program(other).unwrap(), None);
        }
    }
}
