//! Adding up the results that test harnesses print.

use std::fmt;

/// The results of any number of test binaries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
    pub(crate) ignored_tests: Vec<Ignored>,
    /// The names of those that failed.
    pub(crate) failed_tests: Vec<String>,
}

/// A test that was not run.
#[derive(Clone, Debug)]
pub(crate) struct Ignored {
    pub(crate) name: String,
    /// Empty where none was given.
    pub(crate) reason: String,
}

impl Tally {
    /// Takes in one line of output.
    pub(crate) fn read(&mut self, line: &str) {
        // test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; …
        if let Some((_, counts)) = line
            .strip_prefix("test result: ")
            .and_then(|l| l.split_once(". "))
        {
            for count in counts.split("; ") {
                match count.split_once(' ') {
                    Some((number, "passed")) => self.passed += number.parse().unwrap_or(0),
                    Some((number, "failed")) => self.failed += number.parse().unwrap_or(0),
                    Some((number, "ignored")) => self.ignored += number.parse().unwrap_or(0),
                    Some(_) | None => {}
                }
            }
        } else if let Some(test) = line.strip_prefix("test ")
            && let Some((name, result)) = test.split_once(" ... ")
        {
            let name = name.trim_end();
            if let Some(reason) = result.strip_prefix("ignored") {
                self.ignored_tests.push(Ignored {
                    name: name.to_owned(),
                    reason: told(reason).to_owned(),
                });
            } else if result.starts_with("FAILED") {
                self.failed_tests.push(name.to_owned());
            }
        }
    }

    /// Adds the results of others.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.ignored_tests.extend(other.ignored_tests);
        self.failed_tests.extend(other.failed_tests);
    }

    /// The numbers alone.
    pub(crate) fn counts(&self) -> String {
        let (passed, failed, ignored) = (self.passed, self.failed, self.ignored);
        format!("{passed} passed, {failed} failed, {ignored} ignored")
    }

    /// Whether a test was found at all.
    pub(crate) fn any(&self) -> bool {
        self.passed + self.failed + self.ignored > 0
    }

    /// Whether one has failed.
    pub(crate) fn any_failed(&self) -> bool {
        self.failed > 0
    }
}

/// Rust's own harness says `, reason`; libtest-mimic, ` (reason)`.
fn told(reason: &str) -> &str {
    let bare = reason.strip_prefix(", ");
    let bracketed = || reason.strip_prefix(" (")?.strip_suffix(')');
    bare.or_else(bracketed).unwrap_or(reason)
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for test in &self.ignored_tests {
            writeln!(f, "ignored: {}, {}", test.name, test.reason)?;
        }
        for test in &self.failed_tests {
            writeln!(f, "failed: {test}")?;
        }
        f.write_str(&self.counts())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_binaries_add_up() {
        let mut tally = Tally::default();
        assert!(!tally.any());
        for line in [
            "running 3 tests",
            "test header::v1 ... ok",
            "test splice::sockmap ... ignored, needs root",
            "test vlan   ... ignored (no VLAN devices)",
            "test survival::of_restart   ... FAILED",
            "test result: ok. 2 passed; 0 failed; 2 ignored; 0 measured; 4 filtered out; finished in 0.10s",
            "test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 2s",
        ] {
            tally.read(line);
        }
        assert!(tally.any());
        assert_eq!(
            tally.to_string(),
            "ignored: splice::sockmap, needs root\nignored: vlan, no VLAN devices\nfailed: survival::of_restart\n\
             7 passed, 1 failed, 2 ignored"
        );
    }
}
