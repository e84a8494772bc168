//! Where kernel, initial RAM disks and command line come from.

use std::fs::File;

use kiln_disk::bootable::filesystem::FsError;
use kiln_disk::bootable::{self, BootError, BootFile, Limits};
use kiln_vmspec::{BootSource, VmSpec};

use crate::boot::Blob;
use crate::host::Host;

/// Nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum BootSourceError {
    /// The spec has no disk and no kernel.
    #[error("there is neither a root volume nor a kernel to boot; pass --kernel")]
    Nothing,
    /// See source.
    #[error("no kernel can be read from the root volume")]
    RootVolume(#[from] BootError),
    /// A file of the boot entry that cannot be read after all.
    #[error("{place} cannot be read")]
    Read {
        /// Path and partition.
        place: String,
        /// Why.
        #[source]
        source: FsError,
    },
}

/// A file to load, read into memory or still open.
pub enum Contents<'a> {
    /// Read out of the root volume.
    Bytes(Vec<u8>),
    /// Handed in.
    File(&'a File),
}

impl Contents<'_> {
    /// For the loader.
    pub fn blob(&self) -> Blob<'_> {
        match self {
            Contents::Bytes(bytes) => Blob::Bytes(bytes),
            Contents::File(file) => Blob::File(file),
        }
    }
}

/// Everything the loader needs.
pub struct Kernel<'a> {
    /// The kernel.
    pub kernel: Contents<'a>,
    /// Its initial RAM disks.
    pub initrds: Vec<Contents<'a>>,
    /// Its command line.
    pub cmdline: String,
    /// For people.
    pub description: String,
}

/// Command line for a kernel given by the user without one and without a boot entry to take it from.
const DEFAULT_CMDLINE: &str = "console=ttyS0 root=/dev/vda1 ro";

/// Finds the kernel of `spec`.
pub fn find<'a>(spec: &VmSpec, host: &'a Host) -> Result<Kernel<'a>, BootSourceError> {
    let entry = || match host.disks.first() {
        Some(disk) => Ok(bootable::find(disk, &limits(spec))?),
        None => Err(BootSourceError::Nothing),
    };
    match &spec.boot {
        BootSource::RootVolume { cmdline } => {
            let entry = entry()?;
            let limits = limits(spec);
            let mut initrds = Vec::new();
            for initrd in &entry.initrds {
                initrds.push(read(initrd, limits.initrd)?);
            }
            Ok(Kernel {
                kernel: read(&entry.kernel, limits.kernel)?,
                initrds,
                cmdline: cmdline.clone().unwrap_or_else(|| entry.cmdline.clone()),
                description: format!("{} ({}, {})", entry.kernel.place(), entry.title, entry.origin),
            })
        }
        BootSource::Files { cmdline, .. } => {
            let kernel = host.kernel.as_ref().ok_or(BootSourceError::Nothing)?;
            // A root volume without a boot entry is what `--kernel` is for.
            let cmdline = cmdline.clone().or_else(|| entry().ok().map(|entry| entry.cmdline));
            Ok(Kernel {
                kernel: Contents::File(kernel),
                initrds: host.initrd.iter().map(Contents::File).collect(),
                cmdline: cmdline.unwrap_or_else(|| DEFAULT_CMDLINE.into()),
                description: "the given kernel".into(),
            })
        }
    }
}

fn read<'a>(file: &BootFile, limit: u64) -> Result<Contents<'a>, BootSourceError> {
    let bytes = file.read(limit);
    let bytes = bytes.map_err(|source| BootSourceError::Read { place: file.place().to_owned(), source })?;
    Ok(Contents::Bytes(bytes))
}

/// Nothing larger than guest memory is worth reading.
fn limits(spec: &VmSpec) -> Limits {
    let memory = spec.memory.size_mib.saturating_mul(1 << 20);
    let limits = Limits::default();
    Limits { kernel: limits.kernel.min(memory), initrd: limits.initrd.min(memory), ..limits }
}
