//! The BPF object: loaded, pinned, attached; its maps behind typed methods. The only module that
//! imports aya.
//!
//! * [`pins`]: where things are pinned, and whether they may be adopted.
//! * [`attach`]: the steering programs on interfaces; [`clsact`] for kernels without TCX.
//! * [`tables`]: the flow table; [`forwards`]: the engine `packet`'s.
//! * [`lookup`]: ranges of ports that are listened on.
//! * [`sockmap`]: the engine `sockmap`'s programs and maps; [`btf`] for where kernel structures have
//!   their members.
//! * [`probe`]: what this kernel offers; [`dry_run`]: the steering programs run on made-up packets.

use std::error::Error;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::maps::{Array, MapData};
use aya::{Btf, Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use proxy_common::flow::{LAYOUT_VERSION, Meta};
use thiserror::Error;

pub mod attach;
pub mod btf;
pub mod clsact;
pub mod dry_run;
pub mod forwards;
pub mod lookup;
pub mod pins;
pub mod probe;
pub mod sockmap;
pub mod tables;

use crate::sys;
use forwards::{Events, ForwardTable};
use pins::Pins;
use sockmap::{Sockmap, SockmapError};
use tables::{Counters, FlowTable};

/// The object that `cargo xtask build` makes of `proxy-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/limpid.bpf.o"));

/// Maps that are pinned: their names in the object and in the instance's folder.
const PINNED: [(&str, &str); 7] = [
    ("FLOWS", "flows"),
    ("FORWARDS", "forwards"),
    ("RECORDS", "records"),
    ("EVENTS", "events"),
    ("CONNECTING", "connecting"),
    ("META", "meta"),
    ("COUNTERS", "counters"),
];

/// Where the engine `sockmap` pins its map of that name.
const SPLICES: &str = "splices";

/// Why the BPF side could not be set up.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The pins are those of another version.
    #[error(
        "the maps pinned in {path} have layout version {found}, this limpid has {expected}: they \
         cannot be adopted. Run `{cleanup}` (flows that still use them end), or the version of limpid \
         that made them"
    )]
    LayoutVersion {
        /// The instance's folder.
        path: String,
        /// The version there.
        found: u32,
        /// [`LAYOUT_VERSION`].
        expected: u32,
        /// The command that removes them.
        cleanup: String,
    },
    /// The folder for the pins could not be made.
    #[error(transparent)]
    Pins(#[from] pins::PinsError),
    /// The object was refused.
    #[error("the kernel refuses limpid's BPF maps: {0}{hint}", hint = hint(.0))]
    Object(#[source] Box<aya::EbpfError>),
    /// A program was refused.
    #[error("the kernel refuses the BPF program {program}: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What the kernel or its verifier said.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// A map could not be used.
    #[error("BPF map {map}: {source}")]
    Map {
        /// Its name in the object.
        map: &'static str,
        /// What went wrong.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// The object lacks something: it was not built from this source.
    #[error("the embedded BPF object has no {0}: rebuild with `cargo xtask build`")]
    Missing(&'static str),
}

/// What limpid needs of the kernel, short of root.
const CAPABILITIES: &str = "the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON";

/// What to do about the usual cause.
fn hint(error: &aya::EbpfError) -> String {
    match errno(error) {
        Some(libc::EPERM) => format!(
            " (limpid needs root, or {CAPABILITIES}, and a locked-memory limit that allows it on \
             kernels before 5.11)"
        ),
        _ => String::new(),
    }
}

/// An error and what caused it, outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| {
        (*error).source()
    })
}

/// What the kernel said, if it was the kernel.
fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    causes(error).find_map(|cause| cause.downcast_ref::<std::io::Error>()?.raw_os_error())
}

/// How the object is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Capacity of the flow table, in flows (each has two entries).
    pub max_flows: u32,
    /// The most verbose level that BPF programs log at.
    pub log_level: tracing::level_filters::LevelFilter,
}

/// The loaded object. Programs and maps that are pinned outlive it.
#[derive(Debug)]
pub struct Bpf {
    ebpf: Ebpf,
    pins: Pins,
    sockmap_globals: Option<sockmap::Globals>,
    clsact: Option<clsact::Claim>,
}

impl Bpf {
    /// Creates the maps in a folder that the caller has made and locked, or adopts those that an earlier daemon of this instance has pinned. No
    /// program is loaded yet.
    pub fn load(pins: Pins, options: &Options) -> Result<Self, LoadError> {
        if let Some(found) = pinned_layout(&pins.map("meta"))?
            && found != LAYOUT_VERSION
        {
            return Err(LoadError::LayoutVersion {
                path: pins.root().display().to_string(),
                found,
                expected: LAYOUT_VERSION,
                cleanup: pins.cleanup_command(),
            });
        }
        // The loader keeps references to what it is told until it loads.
        let log_level = aya_log_level(options.log_level);
        let timestamp_base = timestamp_base();
        let sockmap_globals = sockmap::Globals::from_kernel();
        let kernel_btf = Btf::from_sys_fs().ok();
        let mut loader = EbpfLoader::new();
        loader.btf(kernel_btf.as_ref());
        // Two entries an open flow, and as many for those that linger.
        loader.map_max_entries("FLOWS", options.max_flows.saturating_mul(4));
        loader.map_max_entries("CONNECTING", options.max_flows);
        loader.map_max_entries("FORWARDS", options.max_flows.saturating_mul(4));
        loader.map_max_entries("RECORDS", options.max_flows);
        loader.override_global("AYA_LOG_LEVEL", &log_level, true);
        loader.override_global("TIMESTAMP_BASE", &timestamp_base, true);
        sockmap_globals.apply(&mut loader);
        for (map, file) in PINNED {
            loader.map_pin_path(map, pins.map(file));
        }
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|e| LoadError::Object(Box::new(e)))?;
        let failed = |source| LoadError::Map {
            map: "META",
            source: Box::new(source),
        };
        let mut meta: Array<_, Meta> =
            Array::try_from(ebpf.map_mut("META").ok_or(LoadError::Missing("map META"))?)
                .map_err(failed)?;
        meta.set(
            0,
            Meta {
                layout_version: LAYOUT_VERSION,
                reserved: 0,
            },
            0,
        )
        .map_err(failed)?;
        Ok(Self {
            ebpf,
            pins,
            sockmap_globals: Some(sockmap_globals),
            clsact: None,
        })
    }

    /// Where this instance pins.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The flow table.
    pub fn flow_table(&mut self) -> Result<FlowTable, LoadError> {
        FlowTable::take(&mut self.ebpf)
    }

    /// The engine `packet`'s tables.
    pub fn forwards(&mut self) -> Result<ForwardTable, LoadError> {
        ForwardTable::take(&mut self.ebpf)
    }

    /// What happens to the flows in them. The ring buffer is read from where it is at this call: no
    /// other daemon may read it any more.
    pub fn events(&mut self) -> Result<Events, LoadError> {
        Events::take(&mut self.ebpf)
    }

    /// The claim on the instance's filters in this network namespace, if there are any: for the daemon
    /// that takes over.
    pub fn filters(&self) -> Option<BorrowedFd<'_>> {
        Some(self.clsact.as_ref()?.as_fd())
    }

    /// With the claim of the daemon that is taken over.
    pub fn claim_filters(&mut self, claim: OwnedFd) {
        self.clsact = Some(claim.into());
    }

    /// Another daemon has the claim.
    pub fn release_filters(&mut self) {
        self.clsact = None;
    }

    /// The engine `sockmap`; `SPLICES` is pinned for people to look at. Its sockets leave with this
    /// daemon, so it is never adopted.
    pub fn sockmap(&mut self) -> Result<Sockmap, SockmapError> {
        let globals = self
            .sockmap_globals
            .take()
            .ok_or(SockmapError::Missing("map SPLICES"))?;
        let pin = self.pins.map(SPLICES);
        // ENOENT is the usual case; any other failure shows when pinning.
        let _ = std::fs::remove_file(&pin);
        if let Some(splices) = self.ebpf.map("SPLICES")
            && let Err(e) = splices.pin(&pin)
        {
            tracing::warn!("{} is not pinned: {e}", pin.display());
        }
        Sockmap::load(&mut self.ebpf, globals)
    }

    /// What the steering programs count.
    pub fn counters(&mut self) -> Result<Counters, LoadError> {
        Counters::take(&mut self.ebpf)
    }

    /// Passes the programs' log messages on to `tracing`, from a task of the current runtime.
    ///
    /// Messages are lost, not the daemon, where the log cannot be read: that is only warned of.
    pub fn forward_log(&mut self) {
        let logger = EbpfLogger::init(&mut self.ebpf);
        let mut logger = match logger {
            Ok(logger) => logger,
            Err(e) => return tracing::warn!("BPF programs cannot log: {e}"),
        };
        let ready = logger.as_fd().try_clone_to_owned().and_then(sys::async_fd);
        let ready = match ready {
            Ok(ready) => ready,
            Err(e) => return tracing::warn!("BPF programs cannot log: {e}"),
        };
        tokio::spawn(async move {
            while let Ok(mut readiness) = ready.readable().await {
                logger.flush();
                readiness.clear_ready();
            }
        });
    }
}

/// The layout version of the maps pinned there, if any are.
fn pinned_layout(path: &Path) -> Result<Option<u32>, LoadError> {
    if !path.exists() {
        return Ok(None);
    }
    let failed = |source| LoadError::Map {
        map: "META",
        source: Box::new(source),
    };
    let meta =
        aya::maps::Map::from_map_data(MapData::from_pin(path).map_err(failed)?).map_err(failed)?;
    let meta: Array<_, Meta> = Array::try_from(meta).map_err(failed)?;
    Ok(Some(meta.get(&0, 0).map_err(failed)?.layout_version))
}

/// Where the timestamps of steered connections start: the same for every daemon of this boot, and no
/// measure of how long ago that was.
pub fn timestamp_base() -> u32 {
    // Where there is no boot id, uptime is told, as Linux itself does with tcp_timestamps=2.
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    crc32c::crc32c(&boot)
}

/// The number that `aya_log_common::Level` gives a level; 0 turns logging off.
fn aya_log_level(filter: tracing::level_filters::LevelFilter) -> u8 {
    use tracing::Level;
    match filter.into_level() {
        None => 0,
        Some(Level::ERROR) => 1,
        Some(Level::WARN) => 2,
        Some(Level::INFO) => 3,
        Some(Level::DEBUG) => 4,
        Some(Level::TRACE) => 5,
    }
}
