//! What `kiln image inspect` shows: plain data, all text printable.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;

use serde::Serialize;

use super::candidate::{Candidate, FileRef};
use super::filesystem::{FileSystem, FsKind};
use super::limits::{Budget, Limits};
use super::search::Search;
use super::volumes::{Volume, Volumes};
use super::well_known;
use crate::Disk;
use crate::partition::{PartitionError, TableKind, printable};

/// An image, looked at from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Kind of partition table.
    pub table: TableKind,
    /// Bytes per logical sector that the table counts in.
    pub sector_size: u32,
    /// `PRETTY_NAME` of the root file system.
    pub os: Option<String>,
    /// By number.
    pub partitions: Vec<PartitionInfo>,
    /// Everything that could be booted, in the order of the search.
    pub entries: Vec<EntryInfo>,
    /// Place in `entries` of what boots by default.
    pub default: Option<usize>,
    /// Why nothing boots, in one line, when nothing does.
    pub problem: Option<String>,
}

/// A partition and what is on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionInfo {
    /// As Linux counts; 0 for the whole disk.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
    /// Type GUID, type byte, or `whole disk`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the type means, where it is a usual one.
    pub description: Option<&'static str>,
    /// Name in the table.
    pub name: String,
    /// What `root=PARTUUID=` takes.
    pub partuuid: Option<String>,
    /// File system, readable or not.
    pub filesystem: Option<FsKind>,
    /// Its label.
    pub label: Option<String>,
    /// What `root=UUID=` takes.
    pub uuid: Option<String>,
    /// Why it cannot be read, in one line.
    pub problem: Option<String>,
}

/// A boot entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EntryInfo {
    /// Title in the menu.
    pub title: String,
    /// Where it is written down.
    pub origin: String,
    /// Path and partition.
    pub kernel: String,
    /// Path and partition of each.
    pub initrds: Vec<String>,
    /// Kernel command line.
    pub cmdline: String,
    /// Why it does not boot, in one line.
    pub problem: Option<String>,
}

/// Looks at everything that [`super::find`] considers. Blocks on reads of `disk`.
///
/// # Errors
/// No partition table to speak of; whatever is wrong below that is part of the answer.
pub fn inspect(disk: &Arc<dyn Disk>, limits: &Limits) -> Result<Inspection, PartitionError> {
    let budget = Budget::new(limits);
    let volumes = Volumes::open(disk, &budget)?;
    let search = Search::new(&volumes, limits, &budget);
    let partitions = volumes.iter().map(|(_, volume)| partition(volume));
    let partitions = partitions.collect();
    // First what `find` would do, with the whole budget.
    let default = search.default();
    let mut candidates = search.all();
    let (default, problem) = match default {
        Ok((default, _)) => {
            let place = candidates.iter().position(|found| *found == default);
            let place = place.unwrap_or_else(|| {
                candidates.insert(0, default);
                0
            });
            (Some(place), None)
        }
        Err(error) => (None, Some(one_line(&error))),
    };
    let entry = |candidate: &Candidate| {
        let place = |file: &FileRef| search.place(file);
        EntryInfo {
            title: printable(&candidate.title),
            origin: candidate.origin.clone(),
            kernel: place(&candidate.kernel),
            initrds: candidate.initrds.iter().map(place).collect(),
            cmdline: printable(&candidate.cmdline),
            problem: search.open(candidate).err().map(|error| one_line(&error)),
        }
    };
    Ok(Inspection {
        size: disk.size(),
        table: volumes.kind,
        sector_size: volumes.sector_size,
        os: well_known::os_name(&volumes, limits.config).map(|name| printable(&name)),
        partitions,
        entries: candidates.iter().map(entry).collect(),
        default,
        problem,
    })
}

fn partition(volume: &Volume) -> PartitionInfo {
    let partition = &volume.partition;
    let shown = |text: Option<String>| text.map(|text| printable(&text));
    PartitionInfo {
        number: partition.number,
        start: partition.start,
        size: partition.len,
        kind: partition.kind.to_string(),
        description: partition.kind.description(),
        name: partition.name.clone(),
        partuuid: partition.partuuid.clone(),
        filesystem: volume.fs_kind(),
        label: shown(volume.fs().and_then(FileSystem::label)),
        uuid: shown(volume.fs().and_then(FileSystem::uuid)),
        problem: volume.mounted.as_ref().err().map(|error| one_line(error)),
    }
}

/// An error and its causes.
fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string does not fail.
        let _ = write!(line, ": {error}");
        cause = error.source();
    }
    line
}
