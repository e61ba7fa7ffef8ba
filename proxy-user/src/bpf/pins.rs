//! Where an instance pins what must outlive the daemon: `BPFFS/limpid/NAME/`.
//!
//! ```text
//! flows connecting forwards records events meta counters splices      maps
//! links/IFINDEX-ingress links/IFINDEX-egress              TCX links
//! ```
//!
//! The daemon of the instance has a lock on the folder. One that was taken over, and still has flows, has
//! its share of a lock on `links`: whoever comes next can tell that their entries are in use.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use thiserror::Error;

use crate::netlink::tc::Hook;
use crate::sys::{self, Sharing};

/// Why the folder for the pins is not usable.
#[derive(Debug, Error)]
pub enum PinsError {
    /// The file system could not be mounted.
    #[error(
        "cannot mount a BPF file system on {path}: {source}{}",
        mount_hint(source)
    )]
    Mount {
        /// Where.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The folder is of another kind of file system: nothing of limpid's is there.
    #[error("{path} is not in a BPF file system (is --bpffs right?)")]
    NotBpffs {
        /// The folder.
        path: String,
    },
    /// A daemon of that name runs.
    #[error(
        "instance {instance} is in use by a running limpid (its pins are in {path}): stop it, or name \
         another --instance"
    )]
    InUse {
        /// The instance.
        instance: String,
        /// Its folder.
        path: String,
    },
    /// The running daemon pins elsewhere.
    #[error(
        "the running limpid's pins are not in {path}: name its --bpffs, and start this one in the same \
         mount namespace"
    )]
    Elsewhere {
        /// Where they were expected.
        path: String,
    },
    /// A folder or file could not be made or removed.
    #[error("cannot {verb} {path}: {source}")]
    File {
        /// "create", "open", "lock", "list" or "remove".
        verb: &'static str,
        /// What.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl PinsError {
    fn file(verb: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            verb,
            path: path.display().to_string(),
            source,
        }
    }
}

fn mount_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            " (this needs root or CAP_SYS_ADMIN; where a BPF file system is mounted that limpid may \
             write to, CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON do: name it with --bpffs)"
        }
        _ => "",
    }
}

/// Where the BPF file system is on most hosts.
pub const BPFFS: &str = "/sys/fs/bpf";

/// In a file system that limpid has mounted: a symbolic link of this name, to [`OURS`]. The mount's source
/// would be the natural mark, but before Linux 5.14 this file system forgets it.
const MOUNTED_BY: &str = "mounted-by";
const OURS: &str = "limpid";

/// What a BPF file system may have from the start: the kernel's own, and our mark.
const FROM_THE_START: [&str; 3] = ["maps.debug", "progs.debug", MOUNTED_BY];

/// The folder of one instance.
#[derive(Clone, Debug)]
pub struct Pins {
    bpffs: PathBuf,
    root: PathBuf,
    instance: String,
}

impl Pins {
    /// The folder of `instance` in the BPF file system at `bpffs`. Touches nothing.
    #[must_use]
    pub fn new(bpffs: &Path, instance: &str) -> Self {
        Self {
            bpffs: bpffs.to_owned(),
            root: bpffs.join("limpid").join(instance),
            instance: instance.to_owned(),
        }
    }

    /// The instance.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The command line that removes it.
    #[must_use]
    pub fn cleanup_command(&self) -> String {
        let bpffs = match self.bpffs.to_str() {
            Some(BPFFS) => String::new(),
            _ => format!(" --bpffs {}", self.bpffs.display()),
        };
        format!("limpid cleanup --instance {}{bpffs}", self.instance)
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a map is pinned.
    #[must_use]
    pub fn map(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    /// Where TCX links are pinned.
    fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Where the TCX link of an interface is pinned.
    #[must_use]
    pub fn link(&self, ifindex: u32, direction: &str) -> PathBuf {
        self.links().join(format!("{ifindex}-{direction}"))
    }

    /// Makes the folder, and mounts the file system first where it is missing, as under
    /// `ip netns exec`, which hides the host's `/sys`.
    pub fn create(&self) -> Result<(), PinsError> {
        if !is_bpffs(&self.bpffs) {
            fs::create_dir_all(&self.bpffs)
                .map_err(|e| PinsError::file("create", &self.bpffs, e))?;
            mount(
                Some(OURS),
                &self.bpffs,
                Some("bpf"),
                MsFlags::empty(),
                Some("mode=0700"),
            )
            .map_err(|e| PinsError::Mount {
                path: self.bpffs.display().to_string(),
                source: e.into(),
            })?;
            let mark = self.bpffs.join(MOUNTED_BY);
            symlink(OURS, &mark).map_err(|e| PinsError::file("create", &mark, e))?;
            tracing::info!(path = %self.bpffs.display(), "mounted a BPF file system");
        }
        let links = self.links();
        fs::create_dir_all(&links).map_err(|e| PinsError::file("create", &links, e))
    }

    /// Claims the folder for this process, until the guard is dropped.
    pub fn lock(&self) -> Result<Lock, PinsError> {
        self.ensure_bpffs()?;
        let in_use = || PinsError::InUse {
            instance: self.instance.clone(),
            path: self.root.display().to_string(),
        };
        let file = |e| PinsError::file("lock", &self.root, e);
        let folder =
            fs::File::open(&self.root).map_err(|e| PinsError::file("open", &self.root, e))?;
        if !sys::try_lock(&folder, Sharing::Alone).map_err(file)? {
            return Err(in_use());
        }
        // A limpid that was just ending may have removed it under us.
        let locked = folder.metadata().map_err(file)?.ino();
        if fs::metadata(&self.root).map_err(file)?.ino() != locked {
            return Err(in_use());
        }
        Ok(Lock {
            folder: Some(folder.into()),
            pins: self.clone(),
            ours: true,
            share: None,
        })
    }

    /// The claim that another daemon still has, and hands over in `folder`.
    pub fn lock_with(&self, folder: OwnedFd) -> Result<Lock, PinsError> {
        let file = |e| PinsError::file("open", &self.root, e);
        let folder = fs::File::from(folder);
        let theirs = folder.metadata().map_err(file)?;
        let here = fs::metadata(&self.root);
        if here.is_ok_and(|here| (here.dev(), here.ino()) == (theirs.dev(), theirs.ino())) {
            Ok(Lock {
                folder: Some(folder.into()),
                pins: self.clone(),
                ours: false,
                share: None,
            })
        } else {
            Err(PinsError::Elsewhere {
                path: self.root.display().to_string(),
            })
        }
    }

    /// Removes the links of an interface. None there is not an error.
    pub fn remove_links(&self, ifindex: u32) -> Result<(), PinsError> {
        for hook in Hook::ALL {
            unpin(&self.link(ifindex, hook.label()))?;
        }
        Ok(())
    }

    /// Removes every pin and the folder; what is removed is listed. Nothing there is not an error.
    ///
    /// Whatever limpid does not pin stays, and the folder with it.
    pub fn remove(&self) -> Result<Vec<PathBuf>, PinsError> {
        if !self.root.exists() {
            return Ok(Vec::new());
        }
        self.ensure_bpffs()?;
        let links = self.links();
        let (mut removed, mut failed) = (Vec::new(), None);
        let links_found = list(&links)?.into_iter().map(|pin| (is_link(&pin), pin));
        let maps_found = list(&self.root)?.into_iter().map(|pin| (is_map(&pin), pin));
        for (known, pin) in links_found.chain(maps_found) {
            if pin == links {
                continue;
            }
            if !known {
                tracing::warn!("{} is not limpid's: it stays", pin.display());
                continue;
            }
            match unpin(&pin) {
                Ok(()) => removed.push(pin),
                Err(e) => failed = Some(e),
            }
        }
        if let Some(e) = failed {
            return Err(e);
        }
        self.remove_folders()?;
        Ok(removed)
    }

    /// Removes the folders as far as they are empty; that of all instances goes with the last of them.
    fn remove_folders(&self) -> Result<(), PinsError> {
        let links = self.links();
        let all = self.root.parent().unwrap_or(&self.root);
        for folder in [&links, self.root.as_path(), all] {
            match fs::remove_dir(folder).map_err(|e| (e.kind(), e)) {
                Ok(()) | Err((io::ErrorKind::NotFound, _)) => {}
                Err((io::ErrorKind::DirectoryNotEmpty, _)) => break,
                Err((_, e)) => return Err(PinsError::file("remove", folder, e)),
            }
        }
        Ok(())
    }

    fn ensure_bpffs(&self) -> Result<(), PinsError> {
        match statfs(&self.root) {
            Ok(fs) if fs.filesystem_type() == BPF_FS_MAGIC => Ok(()),
            Ok(_) => Err(PinsError::NotBpffs {
                path: self.root.display().to_string(),
            }),
            Err(e) => Err(PinsError::file("open", &self.root, e.into())),
        }
    }
}

/// The claim on an instance's folder. Two processes have it while one takes over from the other; it is
/// one of them that removes the folder.
///
/// The last one to leave a BPF file system that limpid mounted unmounts it.
#[derive(Debug)]
pub struct Lock {
    folder: Option<OwnedFd>,
    pins: Pins,
    ours: bool,
    /// That of an elder.
    share: Option<fs::File>,
}

/// Daemons that were taken over and may still have flows.
#[derive(Debug)]
pub struct Elders {
    links: PathBuf,
}

impl Elders {
    /// Have all of them ended?
    #[must_use]
    pub fn are_gone(&self) -> bool {
        // Opened each time: closing it gives the lock back.
        let alone = fs::File::open(&self.links).and_then(|l| sys::try_lock(&l, Sharing::Alone));
        alone.unwrap_or(true)
    }
}

impl Lock {
    /// May this process remove what is in the folder?
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.ours
    }

    /// It may from now on: the other process has let go.
    pub fn make_ours(&mut self) {
        self.ours = true;
    }

    /// It may not any more: another process has the claim. This one is an elder until its end.
    pub fn release(&mut self) {
        self.ours = false;
        self.folder = None;
        let share = fs::File::open(self.pins.links()).and_then(|links| {
            // Nobody has it alone for longer than it takes to look ([`Elders::are_gone`]).
            while !sys::try_lock(&links, Sharing::Shared)? {
                std::thread::yield_now();
            }
            Ok(links)
        });
        match share {
            Ok(links) => self.share = Some(links),
            Err(e) => tracing::warn!("nobody will know that this limpid still has flows: {e}"),
        }
    }

    /// The daemons that were taken over and may still have flows.
    #[must_use]
    pub fn elders(&self) -> Elders {
        Elders {
            links: self.pins.links(),
        }
    }

    /// What another process needs to have the claim; `None` after [`Self::release`].
    #[must_use]
    pub fn folder(&self) -> Option<BorrowedFd<'_>> {
        Some(self.folder.as_ref()?.as_fd())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        // Empty, where nothing was pinned.
        if let Err(e) = self.pins.remove_folders() {
            tracing::warn!("{e}");
        }
        // An open folder keeps its file system busy.
        drop(self.folder.take());
        let bpffs = &self.pins.bpffs;
        if is_our_mount(bpffs) && is_empty(bpffs) {
            // EBUSY: somebody has just come in.
            let _ = umount2(bpffs, MntFlags::empty());
        }
    }
}

fn is_link(pin: &Path) -> bool {
    let name = pin.file_name().and_then(|name| name.to_str());
    let parts = name.and_then(|name| name.split_once('-'));
    parts.is_some_and(|(ifindex, hook)| {
        ifindex.parse::<u32>().is_ok() && Hook::ALL.iter().any(|h| h.label() == hook)
    })
}

fn is_map(pin: &Path) -> bool {
    let name = pin.file_name().and_then(|name| name.to_str());
    let known = super::PINNED
        .iter()
        .map(|(_, file)| *file)
        .chain([super::SPLICES]);
    name.is_some_and(|name| known.into_iter().any(|file| file == name))
}

fn unpin(pin: &Path) -> Result<(), PinsError> {
    match fs::remove_file(pin) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(PinsError::file("remove", pin, e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

fn is_empty(bpffs: &Path) -> bool {
    list(bpffs).is_ok_and(|found| {
        let first = |path: &PathBuf| FROM_THE_START.iter().any(|name| bpffs.join(name) == *path);
        found.iter().all(first)
    })
}

/// Is the file system there, of several the topmost, one that limpid has mounted?
fn is_our_mount(bpffs: &Path) -> bool {
    is_bpffs(bpffs)
        && fs::read_link(bpffs.join(MOUNTED_BY)).is_ok_and(|target| target == Path::new(OURS))
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, PinsError> {
    match fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| entry.map(|e| e.path()))
            .collect::<Result<_, _>>()
            .map_err(|e| PinsError::file("list", folder, e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(PinsError::file("list", folder, e)),
    }
}
