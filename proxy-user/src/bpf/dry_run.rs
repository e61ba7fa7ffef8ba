//! The steering programs, attached to nothing and pinned nowhere, run on packets of one's own
//! (`BPF_PROG_TEST_RUN`).
//!
//! `limpid probe` so learns whether this kernel's verifier takes these very programs, and tests what they
//! make of a packet. Nothing is sent, since where a packet is to go is part of what a program returns; only
//! what a guard is shown (`Forward::guard`) would be, so flows are to have none. Only packets with Ethernet
//! headers can be put in.

use aya::programs::{ProgramError, SchedClassifier, TestRun as _};
use aya::{Ebpf, EbpfLoader, TestRunOptions};

use super::forwards::{Events, ForwardTable};
use super::{LoadError, OBJECT};
use crate::netlink::tc::Hook;

/// For interfaces with Ethernet headers.
const ETHERNET: [&str; 2] = ["steer_ingress_l2", "steer_egress_l2"];
/// For those without.
const BARE: [&str; 2] = ["steer_ingress_l3", "steer_egress_l3"];

/// Maps that are allocated whole, and that the steering programs do not use.
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

impl DryRun {
    /// Creates the maps and loads the programs that can be run.
    pub fn load() -> Result<Self, LoadError> {
        Self::with(&ETHERNET)
    }

    /// Loads every steering program once. None stays.
    pub fn verify() -> Result<(), LoadError> {
        Self::with(&[ETHERNET, BARE].concat()).map(drop)
    }

    fn with(programs: &[&'static str]) -> Result<Self, LoadError> {
        let mut loader = EbpfLoader::new();
        for map in UNUSED {
            loader.map_max_entries(map, 1);
        }
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|e| LoadError::Object(Box::new(e)))?;
        for &name in programs {
            let program = ebpf.program_mut(name).ok_or(LoadError::Missing(name))?;
            <&mut SchedClassifier>::try_from(program)
                .and_then(SchedClassifier::load)
                .map_err(|e| failed(name, e))?;
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
