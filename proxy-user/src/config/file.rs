//! A configuration from a file: all that is wrong with it at once, each with its place.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, ValueDeserializer};

use super::place::{Place, Step};
use super::problem::Severity;
use super::report::{Cause, Diagnostic, Report};
use super::schema::keys;
use super::{Config, Name};

/// Why a file is no configuration.
#[derive(Debug, Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is wrong.
    #[error("{} has {}\n\n{report}", path.display(), Errors(.report.count(Severity::Error)))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// In what way.
        report: Report,
    },
}

struct Errors(usize);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("an error"),
            count => write!(f, "{count} errors"),
        }
    }
}

/// A configuration that can be run.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration, checked.
    pub config: Config,
    /// What is hardly meant.
    pub warnings: Report,
}

/// Reads and checks a file.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(path, &text)
}

/// The same for the text of a file; messages call it `path`.
pub fn parse(path: &Path, text: &str) -> Result<Loaded, LoadError> {
    let wrong = |report: Report| LoadError::Wrong {
        path: path.to_owned(),
        report,
    };
    let mut reader = Reader::new(text);
    let mut config = Config::default();
    // What is left of a text that is no TOML is not what was meant.
    if reader.faults.is_empty() {
        config = reader.config();
    }
    if !reader.faults.is_empty() {
        return Err(wrong(Report::new(path, text, reader.faults)));
    }
    let findings = config.check();
    let found = findings.into_iter().map(|finding| {
        let span = reader.locate(&finding.place);
        Diagnostic::new(text, span, finding.place, Cause::Check(finding.problem))
    });
    let report = Report::new(path, text, found.collect());
    if report.count(Severity::Error) > 0 {
        return Err(wrong(report));
    }
    Ok(Loaded {
        config,
        warnings: report,
    })
}

type Value<'a> = Spanned<DeValue<'a>>;

/// Reads a text, and goes on after an error.
struct Reader<'a> {
    text: &'a str,
    table: DeTable<'a>,
    faults: Vec<Diagnostic>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut reader = Self {
            text,
            table: table.into_inner(),
            faults: Vec::new(),
        };
        for e in errors {
            let span = e.span().unwrap_or_default();
            let cause = Cause::Syntax(e.message().to_owned());
            reader.fault(span, Place::default(), cause);
        }
        reader
    }

    fn fault(&mut self, span: Range<usize>, place: Place, cause: Cause) {
        let fault = Diagnostic::new(self.text, span, place, cause);
        self.faults.push(fault);
    }

    /// What the text says; of use only where there are no faults.
    fn config(&mut self) -> Config {
        let mut config = Config::default();
        let top = Place::default();
        let table = self.table.clone();
        self.unknown_keys::<Config>(&top, &table);
        for (key, value) in &table {
            let place = top.key(key.get_ref());
            match key.get_ref().as_ref() {
                "daemon" => config.daemon = self.table(&place, value),
                "listeners" => config.listeners = self.tables(&place, value).into_iter().collect(),
                "pools" => config.pools = self.tables(&place, value).into_iter().collect(),
                _ => {}
            }
        }
        config
    }

    /// A table of tables, by name.
    fn tables<T>(&mut self, place: &Place, value: &Value<'a>) -> Vec<(Name, T)>
    where
        T: DeserializeOwned + JsonSchema + Default,
    {
        let DeValue::Table(tables) = value.get_ref() else {
            let kind = value.get_ref().type_str();
            let cause = Cause::Value(format!(
                "invalid type: {kind}, expected tables `[{place}.NAME]`"
            ));
            self.fault(value.span(), place.clone(), cause);
            return Vec::new();
        };
        let mut read = Vec::new();
        for (key, value) in tables {
            let place = place.key(key.get_ref());
            match key.get_ref().parse() {
                Ok(name) => read.push((name, self.table(&place, value))),
                Err(e) => self.fault(key.span(), place, Cause::Value(format!("{e}"))),
            }
        }
        read
    }

    /// One of the tables that hold options. None of these is required, so each is read by itself, and one
    /// error does not hide the next.
    fn table<T>(&mut self, place: &Place, value: &Value<'a>) -> T
    where
        T: DeserializeOwned + JsonSchema + Default,
    {
        let before = self.faults.len();
        if let DeValue::Table(table) = value.get_ref() {
            let known = self.unknown_keys::<T>(place, table);
            for (key, value) in table
                .iter()
                .filter(|(key, _)| known.contains(&key.get_ref().to_string()))
            {
                let place = place.key(key.get_ref());
                for (place, part) in parts(&place, value) {
                    let mut alone = DeTable::new();
                    alone.insert(key.clone(), part);
                    let alone = Spanned::new(value.span(), DeValue::Table(alone));
                    self.value::<T>(place, alone);
                }
            }
        }
        if self.faults.len() > before {
            return T::default();
        }
        self.value(place.clone(), value.clone()).unwrap_or_default()
    }

    fn value<T: DeserializeOwned>(&mut self, place: Place, value: Value<'a>) -> Option<T> {
        let whole = value.span();
        match T::deserialize(ValueDeserializer::from(value)) {
            Ok(value) => Some(value),
            Err(e) => {
                let cause = Cause::Value(e.message().to_owned());
                self.fault(e.span().unwrap_or(whole), place, cause);
                None
            }
        }
    }

    /// Complains of keys that `T` does not have, and returns those that it has.
    fn unknown_keys<T: JsonSchema>(&mut self, place: &Place, table: &DeTable<'a>) -> Vec<String> {
        let known = keys::<T>();
        for key in table.keys() {
            let name = key.get_ref().to_string();
            if !known.contains(&name) {
                let cause = Cause::UnknownKey {
                    key: name.clone(),
                    known: known.clone(),
                };
                self.fault(key.span(), place.key(&name), cause);
            }
        }
        known
    }

    /// The bytes at a place, or those nearest to it.
    fn locate(&self, place: &Place) -> Range<usize> {
        let mut found = 0..0;
        let mut table = Some(&self.table);
        let mut list: Option<&DeArray<'_>> = None;
        for step in place.steps() {
            let value = match step {
                Step::Key(name) => {
                    let Some((key, value)) =
                        table.and_then(|table| table.get_key_value(name.as_str()))
                    else {
                        break;
                    };
                    found = match value.get_ref() {
                        DeValue::Table(_) => key.span(),
                        _ => key.span().start..value.span().end,
                    };
                    value
                }
                Step::Index(index) => {
                    let Some(value) = list.and_then(|list| list.get(*index)) else {
                        break;
                    };
                    found = value.span();
                    value
                }
            };
            table = value.get_ref().as_table();
            list = value.get_ref().as_array();
        }
        found
    }
}

/// The elements of a list, each as a list of its own; any other value as it is.
fn parts<'a>(place: &Place, value: &Value<'a>) -> Vec<(Place, Value<'a>)> {
    match value.get_ref() {
        DeValue::Array(list) if !list.is_empty() => list
            .iter()
            .enumerate()
            .map(|(index, element)| {
                let alone = DeValue::Array([element.clone()].into_iter().collect());
                (place.at(index), Spanned::new(value.span(), alone))
            })
            .collect(),
        _ => vec![(place.clone(), value.clone())],
    }
}
