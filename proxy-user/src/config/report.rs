//! What is wrong with a file, shown with the lines that it is about.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use thiserror::Error;

use super::place::Place;
use super::problem::{Form, Problem, Severity};

/// How much alike two keys are, at least, of which one may be meant by the other; of 1.
const ALIKE: f64 = 0.85;

/// Why a place in a file is shown.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Cause {
    /// It is no TOML.
    #[error("{0}")]
    Syntax(String),
    /// It is not a value that the key takes.
    #[error("{0}")]
    Value(String),
    /// There is no such key.
    #[error("unknown key `{key}`")]
    UnknownKey {
        /// The key.
        key: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// It does not go with something else.
    #[error("{}", .0.message(Form::File))]
    Check(Problem),
}

impl Cause {
    /// How bad it is.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        match self {
            Self::Syntax(_) | Self::Value(_) | Self::UnknownKey { .. } => Severity::Error,
            Self::Check(problem) => problem.severity(),
        }
    }

    /// What is allowed, or what to do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Syntax(_) | Self::Value(_) => None,
            Self::UnknownKey { key, known } => {
                let likeness = |known: &String| strsim::jaro_winkler(key, known);
                let alike = |known: &&String| likeness(known) > ALIKE;
                let meant = known
                    .iter()
                    .filter(alike)
                    .max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
                let meant = meant.map(|known| format!("did you mean `{known}`? "));
                let known = known.join(", ");
                Some(format!(
                    "{}allowed here: {known}",
                    meant.unwrap_or_default()
                ))
            }
            Self::Check(problem) => problem.help(Form::File),
        }
    }
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The key's place among the tables; empty for the file as a whole.
    pub place: Place,
    /// Its bytes in the file.
    pub span: Range<usize>,
    /// Its line, from 1.
    pub line: usize,
    /// Its column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub cause: Cause,
}

impl Diagnostic {
    /// About `span` of `text`; of several lines only the first is shown.
    pub(super) fn new(text: &str, span: Range<usize>, place: Place, cause: Cause) -> Self {
        let start = boundary(text, span.start);
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[start..].lines().next().unwrap_or_default();
        let end = boundary(text, span.end).clamp(start, start + line.len());
        Self {
            place,
            span: start..end,
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            cause,
        }
    }

    /// What is wrong, and what is allowed, in one line.
    #[must_use]
    pub fn message(&self) -> String {
        match self.cause.help() {
            Some(help) => format!("{}: {help}", self.cause),
            None => self.cause.to_string(),
        }
    }
}

/// `index`, or the nearest before it that no character and no end is in the way of.
fn boundary(text: &str, index: usize) -> usize {
    let mut candidates = (0..=index.min(text.len())).rev();
    let found = candidates.find(|&index| text.is_char_boundary(index));
    found.unwrap_or_default()
}

/// All that is wrong with a file, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    file: PathBuf,
    text: String,
    diagnostics: Vec<Diagnostic>,
}

impl Report {
    pub(super) fn new(file: &Path, text: &str, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by_key(|diagnostic| diagnostic.span.start);
        Self {
            file: file.to_owned(),
            text: text.to_owned(),
            diagnostics,
        }
    }

    /// Each of them.
    #[must_use]
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// How many there are of that severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        let of = |diagnostic: &&Diagnostic| diagnostic.cause.severity() == severity;
        self.diagnostics.iter().filter(of).count()
    }

    /// One line for each, for a log: `FILE:LINE:COLUMN: SEVERITY: MESSAGE`.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let file = self.file.display();
        self.diagnostics.iter().map(move |diagnostic| {
            format!(
                "{file}:{}:{}: {}: {}",
                diagnostic.line,
                diagnostic.column,
                diagnostic.cause.severity(),
                diagnostic.message()
            )
        })
    }

    fn shown(&self, diagnostic: &Diagnostic) -> String {
        let level = match diagnostic.cause.severity() {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let path = self.file.display().to_string();
        let title = diagnostic.cause.to_string();
        let help = diagnostic.cause.help();
        let annotation = AnnotationKind::Primary.span(diagnostic.span.clone());
        let snippet = Snippet::source(&self.text)
            .path(&path)
            .annotation(annotation);
        let group = level.primary_title(&title).element(snippet);
        let help = help.as_deref().map(|help| Level::HELP.message(help));
        Renderer::plain().render(&[group.elements(help)])
    }
}

/// As rustc shows it: each with its line, and what is allowed.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.diagnostics.iter().map(|one| self.shown(one));
        f.write_str(&shown.collect::<Vec<_>>().join("\n\n"))
    }
}
