//! Where kernel, initial RAM disks and command line come from.

use std::fs::File;

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
}

/// A file to load.
pub enum Contents<'a> {
    /// On the root volume.
    Image(BootFile),
    /// Handed in.
    File(&'a File),
}

impl Contents<'_> {
    /// For the loader.
    pub fn blob(&self) -> Blob<'_> {
        match self {
            Contents::Image(file) => Blob::Image(file),
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

/// Finds the kernel of `spec`.
pub fn find<'a>(spec: &VmSpec, host: &'a Host) -> Result<Kernel<'a>, BootSourceError> {
    let entry = || match host.disks.first() {
        Some(root) => Ok(bootable::find(&root.disk, &limits(spec))?),
        None => Err(BootSourceError::Nothing),
    };
    match &spec.boot {
        BootSource::RootVolume { cmdline } => {
            let entry = entry()?;
            Ok(Kernel {
                description: format!("{} ({}, {})", entry.kernel.place(), entry.title, entry.origin),
                kernel: Contents::Image(entry.kernel),
                initrds: entry.initrds.into_iter().map(Contents::Image).collect(),
                cmdline: cmdline.clone().unwrap_or(entry.cmdline),
            })
        }
        BootSource::Files { cmdline, .. } => {
            let kernel = host.kernel.as_ref().ok_or(BootSourceError::Nothing)?;
            // A root volume without a boot entry is what `--kernel` is for.
            let cmdline = cmdline.clone().or_else(|| entry().ok().map(|entry| entry.cmdline));
            Ok(Kernel {
                kernel: Contents::File(kernel),
                initrds: host.initrd.iter().map(Contents::File).collect(),
                cmdline: cmdline.unwrap_or_else(|| default_cmdline(spec, host)),
                description: "the given kernel".into(),
            })
        }
    }
}

/// For a kernel given by the user without a command line and without a boot entry to take it from.
fn default_cmdline(spec: &VmSpec, host: &Host) -> String {
    let root = host.disks.first().and_then(|root| bootable::default_cmdline(&root.disk, &limits(spec)).ok());
    root.unwrap_or_else(|| "console=ttyS0".into())
}

/// Nothing larger than guest memory is worth reading.
fn limits(spec: &VmSpec) -> Limits {
    let memory = spec.memory.size_mib.saturating_mul(1 << 20);
    let limits = Limits::default();
    Limits { kernel: limits.kernel.min(memory), initrd: limits.initrd.min(memory), ..limits }
}
