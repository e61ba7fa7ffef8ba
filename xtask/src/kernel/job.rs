//! What a kernel is asked to do: a shell script.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::executables::TestProgram;
use super::tests::SCALE;
use crate::test::Selection;

/// Runs one command, its words as they are.
pub(super) fn command<'a>(words: impl IntoIterator<Item = &'a OsStr>) -> Result<String> {
    let words: Vec<String> = words.into_iter().map(word).collect::<Result<_>>()?;
    Ok(words.join(" "))
}

/// Runs a shell command in a folder.
pub(super) fn in_folder(folder: &Path, command: &str) -> Result<String> {
    Ok(format!("cd {}\n{command}\n", word(folder.as_os_str())?))
}

/// What is tested, and how.
#[derive(Debug)]
pub(super) struct Tests<'a> {
    /// The daemon.
    pub(super) limpid: &'a Path,
    pub(super) programs: &'a [TestProgram],
    pub(super) selection: &'a Selection,
}

impl Tests<'_> {
    /// Runs each program, once for each round of filters.
    pub(super) fn script(&self, folder: &Path, scale: &OsStr) -> Result<String> {
        let mut script = format!(
            "export LIMPID_BIN={} {SCALE}={}\nfailed=0\n",
            word(self.limpid.as_os_str())?,
            word(scale)?
        );
        for filter in self.selection.rounds() {
            for program in self.programs {
                let filter = filter.iter().map(OsStr::new);
                let harness = self.selection.harness.iter().map(OsString::as_os_str);
                let words = [program.path.as_os_str()];
                let run = command(words.into_iter().chain(filter).chain(harness))?;
                let name = word(OsStr::new(&program.name))?;
                // Programs are told apart by these lines.
                writeln!(script, "echo; echo {name}\n{run} || failed=1")?;
            }
        }
        script += "exit $failed";
        in_folder(folder, &script)
    }
}

fn word(word: &OsStr) -> Result<String> {
    let word = word.to_str().context("a path or argument is not UTF-8")?;
    Ok(shlex::try_quote(word)?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_is_run_once_for_each_filter() {
        let programs = [TestProgram {
            name: "header".into(),
            path: "/t/header".into(),
        }];
        let tests = Tests {
            limpid: Path::new("/t/limpid"),
            programs: &programs,
            selection: &Selection {
                filters: vec!["v1".to_owned(), "v2 and more".to_owned()],
                files: Vec::new(),
                harness: vec!["--nocapture".into()],
            },
        };
        let script = tests.script(Path::new("/src"), OsStr::new("4")).unwrap();
        assert_eq!(
            script,
            "cd /src\nexport LIMPID_BIN=/t/limpid LIMPID_TEST_SCALE=4\nfailed=0\n\
             echo; echo header\n/t/header v1 --nocapture || failed=1\n\
             echo; echo header\n/t/header 'v2 and more' --nocapture || failed=1\n\
             exit $failed\n"
        );
    }
}
