//! What was found: for people, and for programs (`--json`).

use std::fmt;

use serde::Serialize;

use crate::bpf::CAPABILITIES;
use crate::splice::{Doubt, Trust};

/// What a kernel offers.
///
/// As JSON: `kernel` (its release), `features`, `programs` and `engines`. Each of these has a `name` and a
/// `state` (`yes`, `no`, `on-request`, `forbidden`: this process may not ask), with a `reason` where there is
/// one to give.
#[derive(Debug, Serialize)]
pub struct Report {
    kernel: String,
    features: Vec<Feature>,
    programs: Vec<Program>,
    engines: Vec<Engine>,
}

/// One thing that an engine needs.
#[derive(Debug, Serialize)]
pub(super) struct Feature {
    name: &'static str,
    /// A list of engines, and of what else is lost without it.
    needed_for: &'static str,
    #[serde(flatten)]
    found: Found,
    #[serde(skip)]
    essential: bool,
}

/// One of limpid's own programs.
#[derive(Debug, Serialize)]
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) needed_for: &'static str,
    #[serde(flatten)]
    pub(super) found: Found,
    /// How many instructions the verifier has walked through, of the million that it may
    /// (`BPF_COMPLEXITY_LIMIT_INSNS`). Linux tells since 5.16.
    #[serde(rename = "verified_instructions")]
    pub(super) instructions: Option<u32>,
}

/// What the kernel says about a feature.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "reason")]
pub(super) enum Found {
    /// It is there.
    Yes,
    /// It is not, or cannot be told: why.
    No(String),
    /// Only where the operator asks for it by name: why.
    OnRequest(String),
    /// This process may not ask.
    Forbidden,
}

/// An engine, or steering, which two of them need.
#[derive(Debug, Serialize)]
struct Engine {
    name: &'static str,
    #[serde(flatten)]
    found: Found,
}

impl Feature {
    /// Without it, what it is needed for cannot be had.
    pub(super) fn essential(name: &'static str, needed_for: &'static str, found: Found) -> Self {
        Self {
            name,
            needed_for,
            found,
            essential: true,
        }
    }

    /// Without it, there is another way.
    pub(super) fn welcome(name: &'static str, needed_for: &'static str, found: Found) -> Self {
        Self {
            essential: false,
            ..Self::essential(name, needed_for, found)
        }
    }
}

impl Report {
    pub(super) fn new(
        kernel: String,
        features: Vec<Feature>,
        programs: Vec<Program>,
        trust: Trust,
    ) -> Self {
        let needs = |part: &str| {
            let features = features.iter().filter(|f| f.essential);
            let features = features.map(|f| (f.name, f.needed_for, &f.found));
            let programs = programs.iter().map(|p| (p.name, p.needed_for, &p.found));
            let all = features.chain(programs);
            all_there(all.filter(|(_, parts, _)| parts.split(", ").any(|other| other == part)))
        };
        let steering = needs("steering");
        let packet = match &steering {
            Found::Yes => needs("packet"),
            lacking => lacking.clone(),
        };
        let sockmap = relied_on(trust, needs("sockmap"));
        let engines = [
            ("steering", steering),
            ("packet", packet),
            ("sockmap", sockmap),
            ("copy", Found::Yes),
        ];
        let engines = engines.map(|(name, found)| Engine { name, found });
        Self {
            engines: engines.into(),
            kernel,
            features,
            programs,
        }
    }
}

/// Is all that is needed there?
fn all_there<'a>(needs: impl Iterator<Item = (&'static str, &'static str, &'a Found)>) -> Found {
    let mut missing = Vec::new();
    for (name, _, found) in needs {
        match found {
            Found::Yes => {}
            Found::Forbidden => return Found::Forbidden,
            Found::No(_) | Found::OnRequest(_) => missing.push(name),
        }
    }
    match missing[..] {
        [] => Found::Yes,
        _ => Found::No(format!("no: {} missing", missing.join(", "))),
    }
}

/// What is there, and what may be made of it.
fn relied_on(trust: Trust, there: Found) -> Found {
    let why = |doubt: Doubt| format!("{} ({})", doubt.reason(), doubt.label());
    match (trust, there) {
        (Trust::Refused(doubt), _) => Found::No(format!("no: {}", why(doubt))),
        (Trust::OptIn(doubt), Found::Yes) => {
            Found::OnRequest(format!("only by --splice sockmap: {}", why(doubt)))
        }
        (Trust::Trusted | Trust::OptIn(_), there) => there,
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("yes"),
            Self::No(why) | Self::OnRequest(why) => f.write_str(why),
            Self::Forbidden => write!(f, "cannot tell: needs root, or {CAPABILITIES}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {}\n", self.kernel)?;
        for feature in &self.features {
            let (name, needed_for, found) = (feature.name, feature.needed_for, &feature.found);
            writeln!(f, "  {name:<17} {needed_for:<36} {found}")?;
        }
        writeln!(f)?;
        for program in &self.programs {
            let (name, needed_for, found) = (program.name, program.needed_for, &program.found);
            write!(f, "  {name:<17} {needed_for:<36} {found}")?;
            match program.instructions {
                Some(instructions) => writeln!(f, ", {instructions} instructions verified")?,
                None => writeln!(f)?,
            }
        }
        writeln!(f)?;
        for engine in &self.engines {
            let name = match engine.name {
                "steering" => "steering (--source client)".to_owned(),
                name => format!("engine {name}"),
            };
            writeln!(f, "{name:<26}  {}", engine.found)?;
        }
        Ok(())
    }
}
