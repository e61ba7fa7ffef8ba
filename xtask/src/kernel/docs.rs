//! docs/kernels.md: what each kernel offers, and how the tests went there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result};

use super::executables::TestProgram;
use super::probe::{Answer, Report, State};
use crate::tally::Tally;
use crate::workspace;

/// The page as it grows.
#[derive(Debug)]
pub(super) struct Page {
    /// The names of the test programs.
    programs: Vec<String>,
    kernels: Vec<Tested>,
}

/// What is known of one kernel.
#[derive(Debug)]
pub(super) struct Tested {
    pub(super) report: Report,
    pub(super) tally: Tally,
    /// What went wrong.
    pub(super) problem: Option<String>,
}

impl Page {
    /// One about runs of some test programs.
    pub(super) fn new(programs: &[TestProgram]) -> Self {
        Self {
            programs: programs.iter().map(|p| p.name.clone()).collect(),
            kernels: Vec::new(),
        }
    }

    /// Adds a kernel.
    pub(super) fn add(&mut self, kernel: Tested) {
        self.kernels.push(kernel);
    }

    /// The results on all kernels.
    pub(super) fn results(&self) -> Tally {
        let mut results = Tally::default();
        for kernel in &self.kernels {
            results.add(kernel.tally.clone());
        }
        results
    }

    /// A line for each kernel.
    pub(super) fn summary(&self) -> String {
        let mut lines = String::new();
        for kernel in &self.kernels {
            let end = match kernel.problem {
                Some(_) => ", NOT WELL (see above)",
                None => "",
            };
            let counts = kernel.tally.counts();
            lines += &format!("kernel {}: {counts}{end}\n", kernel.report.kernel);
        }
        lines
    }

    /// Writes it to target/kernels, and to docs if it is to be `kept`.
    pub(super) fn write(&self, kept: bool) -> Result<()> {
        let text = self.text();
        let docs = kept.then(|| workspace::root().join("docs"));
        for folder in [workspace::kernels()].into_iter().chain(docs) {
            let page = folder.join("kernels.md");
            fs::write(&page, &text).with_context(|| page.display().to_string())?;
            println!("{}", page.display());
        }
        Ok(())
    }

    fn text(&self) -> String {
        let kernels = &self.kernels[..];
        let mut page = HEAD.to_owned();
        let mut section = |title: &str, table: String, below: String| {
            page += &format!("\n## {title}\n\n{table}");
            if !below.is_empty() {
                page += &format!("\n{below}");
            }
        };
        section(
            "Engines",
            table(kernels, |report| &report.engines, state),
            reasons(kernels, |report| &report.engines),
        );
        section(
            "Features",
            table(kernels, |report| &report.features, state),
            reasons(kernels, |report| &report.features),
        );
        section(
            "Programs",
            table(kernels, |report| &report.programs, instructions),
            PROGRAMS.to_owned() + &reasons(kernels, |report| &report.programs),
        );
        let programs = self.programs.join("`, `");
        section(
            "Tests",
            format!("Of `{programs}`.\n\n{}", results(kernels)),
            remarks(kernels),
        );
        page
    }
}

const HEAD: &str = "\
# Kernels

What `limpid probe` says on each kernel, and how tests went there. All of it is from one run of
`cargo xtask test --kernel … --docs`, which writes this page. Debian's kernels (5.10, 6.1, 6.12) were booted under QEMU;
where that emulates a processor, tests move a quarter of the bytes.
";

const PROGRAMS: &str = "\
The numbers are instructions that the verifier has walked through (`verified_insns` of `bpftool prog`), of
the million that it may. A test (`program_leaves_room`) fails where they grow over the limit stated in
[verifier.rs](../proxy-user/tests/kernel/program/verifier.rs). \"yes\" is a program that was taken by a
kernel that does not tell the number (before 5.16).
";

/// A row a kernel, a column for each thing that `part` of a report is about.
fn table(
    kernels: &[Tested],
    part: impl Fn(&Report) -> &Vec<Answer>,
    cell: impl Fn(&Answer) -> String,
) -> String {
    let Some(first) = kernels.first() else {
        return String::new();
    };
    let names = part(&first.report).iter().map(|answer| &*answer.name);
    let mut table = row(["kernel"].into_iter().chain(names).map(str::to_owned));
    table += &"|---".repeat(part(&first.report).len() + 1);
    table += "|\n";
    for Tested { report, .. } in kernels {
        let cells = part(report).iter().map(&cell);
        table += &row([report.kernel.clone()].into_iter().chain(cells));
    }
    table
}

fn row(cells: impl Iterator<Item = String>) -> String {
    let mut row = String::from("|");
    for cell in cells {
        row += &format!(" {cell} |");
    }
    row + "\n"
}

fn state(answer: &Answer) -> String {
    let state = match answer.state {
        State::Yes => "yes",
        State::No => "no",
        State::OnRequest => "on request",
        State::Forbidden => "not told",
    };
    state.to_owned()
}

fn instructions(program: &Answer) -> String {
    match (program.state, program.verified_instructions) {
        (State::Yes, Some(instructions)) => instructions.to_string(),
        (_, _) => state(program),
    }
}

/// A line for each answer that is not simply "yes".
fn reasons(kernels: &[Tested], part: impl Fn(&Report) -> &Vec<Answer>) -> String {
    let mut lines = String::new();
    for Tested { report, .. } in kernels {
        for answer in part(report) {
            if let Some(reason) = &answer.reason {
                lines += &format!("* {}, {}: {reason}\n", report.kernel, answer.name);
            }
        }
    }
    lines
}

fn results(kernels: &[Tested]) -> String {
    let mut table = String::from("| kernel | passed | failed | ignored |\n|---|---|---|---|\n");
    for Tested { report, tally, .. } in kernels {
        let (passed, failed, ignored) = (tally.passed, tally.failed, tally.ignored);
        let _ = writeln!(
            table,
            "| {} | {passed} | {failed} | {ignored} |",
            report.kernel
        );
    }
    table
}

/// Why tests were ignored, which have failed, and what else went wrong.
fn remarks(kernels: &[Tested]) -> String {
    let mut lines = String::new();
    for Tested {
        report,
        tally,
        problem,
    } in kernels
    {
        let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for test in &tally.ignored_tests {
            by_reason.entry(&test.reason).or_default().push(&test.name);
        }
        for (reason, tests) in by_reason {
            let tests = tests.join("`, `");
            lines += &format!("* {}, ignored: {reason}: `{tests}`\n", report.kernel);
        }
        for test in &tally.failed_tests {
            lines += &format!("* {}, failed: `{test}`\n", report.kernel);
        }
        if let Some(first) = problem.as_ref().and_then(|problem| problem.lines().next()) {
            lines += &format!("* {}: {first}\n", report.kernel);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tested(kernel: &str, sockmap: State, reason: Option<&str>, verified: Option<u32>) -> Tested {
        let answer = |name: &str| Answer {
            name: name.to_owned(),
            state: State::Yes,
            reason: None,
            verified_instructions: verified,
        };
        let sockmap = Answer {
            state: sockmap,
            reason: reason.map(str::to_owned),
            ..answer("sockmap")
        };
        let mut tally = Tally::default();
        tally.read("test vlan_ipv4 ... ignored, no VLAN devices");
        tally.read("test vlan_ipv6 ... ignored, no VLAN devices");
        tally.read("test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured");
        Tested {
            report: Report {
                kernel: kernel.to_owned(),
                features: vec![answer("ring buffer")],
                programs: vec![answer("splice_filter")],
                engines: vec![answer("packet"), sockmap],
            },
            tally,
            problem: None,
        }
    }

    #[test]
    fn each_kernel_has_a_row_and_each_no_a_reason() {
        let page = Page {
            programs: vec!["packet".into(), "sockmap".into()],
            kernels: vec![
                tested("6.18.44", State::Yes, None, Some(130)),
                tested("5.10.262", State::OnRequest, Some("only by name"), None),
            ],
        };
        let page = page.text();
        for line in [
            "| kernel | packet | sockmap |\n|---|---|---|\n| 6.18.44 | yes | yes |\n\
             | 5.10.262 | yes | on request |\n\n* 5.10.262, sockmap: only by name\n",
            "| kernel | splice_filter |\n|---|---|\n| 6.18.44 | 130 |\n| 5.10.262 | yes |\n",
            "Of `packet`, `sockmap`.\n",
            "| 6.18.44 | 5 | 0 | 2 |\n",
            "* 5.10.262, ignored: no VLAN devices: `vlan_ipv4`, `vlan_ipv6`\n",
        ] {
            assert!(page.contains(line), "{line:?} is not in\n{page}");
        }
    }
}
