//! The programs, attached to nothing and pinned nowhere: does the verifier take them, and what do those for
//! steering make of a packet of one's own (`BPF_PROG_TEST_RUN`)?
//!
//! Nothing is sent, since where a packet is to go is part of what a program returns; only
//! what a guard is shown (`Forward::guard`) would be, so flows are to have none. Only packets with Ethernet
//! headers can be put in.

use aya::programs::{Program as Loadable, ProgramError, SchedClassifier, TestRun as _};
use aya::{Ebpf, EbpfLoader, TestRunOptions};

use super::forwards::{Events, ForwardTable};
use super::sockmap::Globals;
use super::{LoadError, OBJECT};
use crate::netlink::tc::Hook;

/// One of limpid's programs.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Its name in the object.
    pub name: &'static str,
    /// Which part of limpid it is: `steering`, or an engine.
    pub needed_for: &'static str,
}

/// Every program there is.
pub const PROGRAMS: [Program; 7] = [
    steering("steer_ingress_l2"),
    steering("steer_egress_l2"),
    steering("steer_ingress_l3"),
    steering("steer_egress_l3"),
    sockmap("splice_verdict"),
    sockmap("splice_filter"),
    Program {
        name: "listen_range",
        needed_for: "ranges of ports",
    },
];

const fn steering(name: &'static str) -> Program {
    Program {
        name,
        needed_for: "steering",
    }
}

const fn sockmap(name: &'static str) -> Program {
    Program {
        name,
        needed_for: "sockmap",
    }
}

/// Maps that are allocated whole, and that no packet here uses.
const UNUSED: [&str; 3] = ["GATES", "SOURCES", "TARGETS"];

/// The programs, with maps of their own that nobody else knows.
#[derive(Debug)]
pub struct DryRun {
    ebpf: Ebpf,
}

/// What becomes of a packet (`TC_ACT_*` in `linux/pkt_cls.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as if the program were not there (`TC_ACT_UNSPEC`).
    Next,
    /// It goes nowhere (`TC_ACT_SHOT`).
    Drop,
    /// It leaves by another interface (`TC_ACT_REDIRECT`).
    Redirect,
    /// Something that limpid's programs never return.
    Unknown(u32),
}

impl From<u32> for Verdict {
    fn from(action: u32) -> Self {
        match action {
            u32::MAX => Self::Next,
            2 => Self::Drop,
            7 => Self::Redirect,
            other => Self::Unknown(other),
        }
    }
}

/// Loads each of limpid's programs. None stays.
///
/// How many instructions the verifier has walked through is told, where the kernel tells it (since 5.16).
#[must_use]
pub fn verify() -> Vec<(Program, Result<Option<u32>, LoadError>)> {
    PROGRAMS
        .into_iter()
        // Each with maps of its own: a program that is refused takes no other along.
        .map(|program| {
            let verified = object().and_then(|mut ebpf| load(&mut ebpf, program.name));
            (program, verified)
        })
        .collect()
}

/// The maps, and the programs before they are loaded.
fn object() -> Result<Ebpf, LoadError> {
    let globals = Globals::from_kernel();
    let mut loader = EbpfLoader::new();
    for map in UNUSED {
        loader.map_max_entries(map, 1);
    }
    globals.apply(&mut loader);
    loader
        .load(OBJECT)
        .map_err(|e| LoadError::Object(Box::new(e)))
}

fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<Option<u32>, LoadError> {
    let program = ebpf.program_mut(name).ok_or(LoadError::Missing(name))?;
    let loaded = match program {
        Loadable::SchedClassifier(program) => program.load(),
        Loadable::SkSkb(program) => program.load(),
        Loadable::SocketFilter(program) => program.load(),
        Loadable::SkLookup(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    loaded
        .and_then(|()| program.info())
        .map(|info| info.verified_instruction_count())
        .map_err(|e| failed(name, e))
}

impl DryRun {
    /// Creates the maps and loads the programs that can be run.
    pub fn load() -> Result<Self, LoadError> {
        let mut ebpf = object()?;
        for name in ["steer_ingress_l2", "steer_egress_l2"] {
            load(&mut ebpf, name)?;
        }
        Ok(Self { ebpf })
    }

    /// The engine `packet`'s tables. They can be had once.
    pub fn forwards(&mut self) -> Result<ForwardTable, LoadError> {
        ForwardTable::take(&mut self.ebpf)
    }

    /// What happens to the flows in them. They can be had once.
    pub fn events(&mut self) -> Result<Events, LoadError> {
        Events::take(&mut self.ebpf)
    }

    /// Runs a program on a packet with an Ethernet header, which becomes what the program makes of it. To
    /// the program it is one of the loopback device, without checksum offload.
    pub fn run(&self, hook: Hook, packet: &mut [u8]) -> Result<Verdict, LoadError> {
        let name = match hook {
            Hook::Ingress => "steer_ingress_l2",
            Hook::Egress => "steer_egress_l2",
        };
        let program = self.ebpf.program(name).ok_or(LoadError::Missing(name))?;
        let program: &SchedClassifier = program.try_into().map_err(|e| failed(name, e))?;
        let before = packet.to_vec();
        let done = program
            .test_run(TestRunOptions {
                data_in: Some(&before),
                data_out: Some(packet),
                ..TestRunOptions::default()
            })
            .map_err(|e| failed(name, e))?;
        Ok(done.return_value.into())
    }
}

fn failed(program: &'static str, source: ProgramError) -> LoadError {
    LoadError::Program {
        program,
        source: Box::new(source),
    }
}
