//! Finds kernel, initial RAM disk and command line on a root volume.
//!
//! ```text
//! disk ─▶ partition table ─▶ file systems ─▶ boot configuration ─▶ candidate ─▶ BootEntry
//!                            (Volumes)       loader entries                    (files are there,
//!                                            unified kernel images              sizes fit)
//!                                            grub.cfg
//!                                            extlinux.conf
//!                                            usual paths
//! ```
//!
//! The configurations are tried in that order on every file system; the first whose default entry
//! has all its files wins. An entry with missing files gives way to the next source, and is reported
//! if none is left.
//!
//! An image's owner is not trusted: see [`limits`]. Nothing of the image is executed here, and
//! nothing is written.

mod bls;
mod candidate;
mod entry;
mod extlinux;
pub mod filesystem;
#[cfg(any(test, feature = "test-utils"))]
pub mod fuzzing;
mod grub;
#[cfg(test)]
mod hostile;
mod inspection;
mod limits;
mod search;
mod source;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod uki;
mod version;
mod volumes;
mod well_known;

use std::sync::Arc;

pub use bls::LoaderEntry;
pub use entry::{BootEntry, BootFile, BootFileReader};
pub use extlinux::{ExtlinuxConf, Label};
pub use grub::ScriptError;
pub use inspection::{EntryInfo, Inspection, PartitionInfo, inspect};
pub use limits::Limits;
pub use uki::UnifiedImage;

use crate::Disk;
use crate::partition::PartitionError;
use filesystem::FsError;
use limits::Budget;
use search::Search;
use volumes::Volumes;

/// Why an image does not boot. Each is one line: what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// No usable partition table.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// Neither table nor file system.
    #[error("no partition table and no file system in it: is this a disk image?")]
    Nothing,
    /// Partitions, but nothing that could be read on them.
    #[error("{0}; pass --kernel and --initrd")]
    NoFileSystem(String),
    /// File systems, but nothing to boot on them.
    #[error("no boot entry and no /boot/vmlinuz* on {0}; pass --kernel")]
    NoEntry(String),
    /// An entry names a device that is no partition of this disk.
    #[error(
        "{origin}: entry \"{title}\" needs {path}, which is on no partition that Kiln can read; pass --kernel"
    )]
    Unreachable {
        /// Where the entry is written down.
        origin: String,
        /// Its title.
        title: String,
        /// As the entry has it.
        path: String,
    },
    /// An entry names a file that is not there or not readable.
    #[error("{origin}: entry \"{title}\" needs {file}, which cannot be read; pass --kernel")]
    File {
        /// Where the entry is written down.
        origin: String,
        /// Its title.
        title: String,
        /// Path and partition.
        file: String,
        /// What is wrong with it.
        #[source]
        source: FsError,
    },
    /// A configuration that cannot be followed.
    #[error("{origin} cannot be understood; pass --kernel")]
    Script {
        /// Which file.
        origin: String,
        /// What is wrong with it.
        #[source]
        source: ScriptError,
    },
    /// [`Limits`] reached.
    #[error(
        "looking for a kernel takes more work than any usual image needs (is the image damaged?); pass --kernel"
    )]
    Exhausted,
}

/// Finds what the image boots by default. Blocks on reads of `disk`.
///
/// # Errors
/// One line that names cause and remedy; the chain of sources has the details.
pub fn find(disk: &Arc<dyn Disk>, limits: &Limits) -> Result<BootEntry, BootError> {
    let budget = Budget::new(limits);
    let volumes = Volumes::open(disk, &budget)?;
    let (_, entry) = Search::new(&volumes, limits, &budget).default()?;
    Ok(entry)
}

/// A command line for a kernel that is not from the image: `root=` names the partition that looks
/// most like a root file system. Blocks on reads of `disk`.
///
/// # Errors
/// No partition table to speak of.
pub fn default_cmdline(disk: &Arc<dyn Disk>, limits: &Limits) -> Result<String, BootError> {
    let volumes = Volumes::open(disk, &Budget::new(limits))?;
    Ok(well_known::command_line(&volumes, None))
}
