//! Where an instance pins what must outlive the daemon: `BPFFS/limpid/NAME/`.
//!
//! ```text
//! flows connecting meta attachments counters splices      maps
//! links/IFINDEX-ingress links/IFINDEX-egress              TCX links
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use thiserror::Error;

/// Why the folder for the pins is not usable.
#[derive(Debug, Error)]
pub enum PinsError {
    /// The file system could not be mounted.
    #[error("cannot mount a BPF file system on {path}: {source}")]
    Mount {
        /// Where.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
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

/// The folder of one instance.
#[derive(Clone, Debug)]
pub struct Pins {
    bpffs: PathBuf,
    root: PathBuf,
}

impl Pins {
    /// The folder of `instance` in the BPF file system at `bpffs`. Touches nothing.
    #[must_use]
    pub fn new(bpffs: &Path, instance: &str) -> Self {
        Self {
            bpffs: bpffs.to_owned(),
            root: bpffs.join("limpid").join(instance),
        }
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

    /// Where the TCX link of an interface is pinned.
    #[must_use]
    pub fn link(&self, ifindex: u32, direction: &str) -> PathBuf {
        self.root
            .join("links")
            .join(format!("{ifindex}-{direction}"))
    }

    /// Makes the folder, and mounts the file system first where it is missing, as under
    /// `ip netns exec`, which hides the host's `/sys`.
    pub fn create(&self) -> Result<(), PinsError> {
        if !is_bpffs(&self.bpffs) {
            fs::create_dir_all(&self.bpffs)
                .map_err(|e| PinsError::file("create", &self.bpffs, e))?;
            mount(
                Some("bpf"),
                &self.bpffs,
                Some("bpf"),
                MsFlags::empty(),
                Some("mode=0700"),
            )
            .map_err(|e| PinsError::Mount {
                path: self.bpffs.display().to_string(),
                source: e.into(),
            })?;
            tracing::info!(path = %self.bpffs.display(), "mounted a BPF file system");
        }
        let links = self.root.join("links");
        fs::create_dir_all(&links).map_err(|e| PinsError::file("create", &links, e))
    }

    /// Claims the folder for this process, until the guard is dropped.
    pub fn lock(&self) -> Result<Lock, PinsError> {
        let folder =
            fs::File::open(&self.root).map_err(|e| PinsError::file("open", &self.root, e))?;
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Lock(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Err(PinsError::InUse {
                instance: self
                    .root
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                path: self.root.display().to_string(),
            }),
            Err((_, e)) => Err(PinsError::file("lock", &self.root, e.into())),
        }
    }

    /// Removes every pin and the folder; what is removed is listed. Nothing there is not an error.
    pub fn remove(&self) -> Result<Vec<PathBuf>, PinsError> {
        let mut removed = Vec::new();
        let links = self.root.join("links");
        for pin in list(&links)?.into_iter().chain(list(&self.root)?) {
            if pin != links {
                fs::remove_file(&pin).map_err(|e| PinsError::file("remove", &pin, e))?;
                removed.push(pin);
            }
        }
        for folder in [&links, &self.root] {
            match fs::remove_dir(folder) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(PinsError::file("remove", folder, e));
                }
                Ok(()) | Err(_) => {}
            }
        }
        // The folder of all instances goes with the last of them.
        if let Some(parent) = self.root.parent() {
            let _ = fs::remove_dir(parent);
        }
        Ok(removed)
    }
}

/// The claim on an instance's folder.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its drop")] Flock<fs::File>);

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
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
