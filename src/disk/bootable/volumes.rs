//! The file systems of a disk, and how boot configurations name them.

use std::sync::Arc;

use super::filesystem::{FileSystem, FsKind, MountError, mount};
use super::limits::Budget;
use super::source::Source;
use crate::Disk;
use crate::partition::{Partition, PartitionError, PartitionView, TableKind, read_table};

/// Place in [`Volumes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct VolumeId(usize);

/// One partition and what is on it.
pub(crate) struct Volume {
    pub(crate) partition: Partition,
    /// `Ok(None)`: nothing that is known.
    pub(crate) mounted: Result<Option<Box<dyn FileSystem>>, MountError>,
}

impl Volume {
    pub(crate) fn fs(&self) -> Option<&dyn FileSystem> {
        self.mounted.as_ref().ok()?.as_deref()
    }

    /// Kind of file system, readable or not.
    pub(crate) fn fs_kind(&self) -> Option<FsKind> {
        match &self.mounted {
            Ok(fs) => fs.as_ref().map(|fs| fs.kind()),
            Err(MountError::NotReadable(kind) | MountError::Failed { kind, .. }) => Some(*kind),
            Err(MountError::Probe(_)) => None,
        }
    }

    /// What is in the way of reading it: `partition 1 is Btrfs, which Kiln cannot read yet`.
    pub(crate) fn problem(&self) -> Option<String> {
        let name = match self.partition.number {
            0 => "the disk".to_owned(),
            number => format!("partition {number}"),
        };
        match self.mounted.as_ref().err()? {
            // Nobody expects a kernel there.
            MountError::NotReadable(FsKind::Swap) => None,
            MountError::NotReadable(kind) => Some(format!("{name} is {kind}, which Kiln cannot read yet")),
            MountError::Failed { kind, error } => Some(format!("{name} is {kind}, but {error}")),
            MountError::Probe(error) => Some(format!("{name} cannot be read: {error}")),
        }
    }
}

impl std::fmt::Display for Volume {
    /// `partition 1 (ext4)`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.partition.number {
            0 => f.write_str("the disk")?,
            number => write!(f, "partition {number}")?,
        }
        match self.fs_kind() {
            Some(kind) => write!(f, " ({kind})"),
            None => Ok(()),
        }
    }
}

/// Partitions that are looked at; the others do not count.
const MAX_VOLUMES: usize = 128;

/// All partitions of a disk.
pub(crate) struct Volumes {
    pub(crate) kind: TableKind,
    pub(crate) sector_size: u32,
    list: Vec<Volume>,
}

impl Volumes {
    /// Reads the partition table and mounts what can be mounted.
    pub(crate) fn open(disk: &Arc<dyn Disk>, budget: &Arc<Budget>) -> Result<Self, PartitionError> {
        let table = read_table(disk.as_ref())?;
        let open = |partition: Partition| {
            let view = PartitionView::new(Arc::clone(disk), &partition);
            let mounted = mount(&Source::new(view, Arc::clone(budget)));
            Volume { partition, mounted }
        };
        Ok(Self {
            kind: table.kind,
            sector_size: table.sector_size,
            list: table.partitions.into_iter().take(MAX_VOLUMES).map(open).collect(),
        })
    }

    /// The given file systems as partitions 1, 2, ….
    #[cfg(any(test, feature = "test-utils"))]
    pub(crate) fn of(kind: TableKind, list: Vec<Box<dyn FileSystem>>) -> Self {
        use crate::partition::PartitionType;
        let volume = |(number, fs)| Volume {
            partition: Partition {
                number: if kind == TableKind::None { 0 } else { number },
                start: 0,
                len: 0,
                kind: PartitionType::WholeDisk,
                name: String::new(),
                partuuid: Some(format!("cafe1234-{number:02x}")),
            },
            mounted: Ok(Some(fs)),
        };
        Self { kind, sector_size: 512, list: (1..).zip(list).map(volume).collect() }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (VolumeId, &Volume)> {
        let id = |(index, volume)| (VolumeId(index), volume);
        self.list.iter().enumerate().map(id)
    }

    /// Those that can be read.
    pub(crate) fn mounted(&self) -> impl Iterator<Item = (VolumeId, &Volume, &dyn FileSystem)> {
        self.iter().filter_map(|(id, volume)| Some((id, volume, volume.fs()?)))
    }

    pub(crate) fn get(&self, id: VolumeId) -> Option<&Volume> {
        self.list.get(id.0)
    }

    pub(crate) fn fs(&self, id: VolumeId) -> Option<&dyn FileSystem> {
        self.get(id)?.fs()
    }

    /// `partition 1 (ext4)`.
    pub(crate) fn describe(&self, id: VolumeId) -> String {
        self.get(id).map(Volume::to_string).unwrap_or_default()
    }

    /// The file system with this UUID; case does not matter, as in GRUB.
    pub(crate) fn by_uuid(&self, uuid: &str) -> Option<VolumeId> {
        self.mounted()
            .find(|(_, _, fs)| fs.uuid().is_some_and(|u| u.eq_ignore_ascii_case(uuid)))
            .map(|(id, ..)| id)
    }

    pub(crate) fn by_label(&self, label: &str) -> Option<VolumeId> {
        self.mounted().find(|(_, _, fs)| fs.label().is_some_and(|l| l == label)).map(|(id, ..)| id)
    }

    pub(crate) fn by_file(&self, path: &str) -> Option<VolumeId> {
        self.mounted().find(|(_, _, fs)| fs.exists(path)).map(|(id, ..)| id)
    }

    /// A device as GRUB writes it, without parentheses: `hd0,gpt1`, `hd0,msdos5`, `hd0,1`, `hd0`.
    /// The number of the disk does not matter, since only one is looked at.
    pub(crate) fn by_grub_device(&self, device: &str) -> Option<VolumeId> {
        let rest = device.strip_prefix("hd")?;
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let number = match rest.strip_prefix(',') {
            None if rest.is_empty() => 0,
            None => return None,
            Some(partition) => {
                partition.trim_start_matches(|c: char| c.is_ascii_alphabetic()).parse().ok()?
            }
        };
        self.iter().find(|(_, volume)| volume.partition.number == number).map(|(id, _)| id)
    }

    /// The name that [`Volumes::by_grub_device`] understands.
    pub(crate) fn grub_device(&self, id: VolumeId) -> String {
        let number = self.get(id).map_or(0, |volume| volume.partition.number);
        match self.kind {
            TableKind::Gpt => format!("hd0,gpt{number}"),
            TableKind::Mbr => format!("hd0,msdos{number}"),
            TableKind::None => "hd0".to_owned(),
        }
    }
}
