//! FAT12, FAT16 and FAT32 with long names (Microsoft "FAT32 File System Specification" 1.03).
//!
//! ```text
//! boot sector · reserved │ FAT, FAT copy │ root directory (FAT12/16) │ clusters 2, 3, …
//! ```

mod directory;

use super::super::source::Source;
use super::bytes::{Bytes, text};
use super::contents::Runs;
use super::{Contents, Format, FsError, FsKind, MAX_DIRECTORY, MAX_NAMES, NodeKind};

/// Most clusters that FAT12 and FAT16 can have ("FAT Type Determination").
const MAX_FAT12: u32 = 4084;
const MAX_FAT16: u32 = 65524;
const MAX_FAT32: u32 = 0x0fff_fff5;
/// The FAT is read in pieces of this size.
const WINDOW: u64 = 4096;

/// Says whether there is a FAT boot sector, and of which width.
pub(super) fn probe(source: &Source) -> Result<Option<FsKind>, FsError> {
    if source.len() < 512 {
        return Ok(None);
    }
    let sector = source.metadata_vec(512, 0)?;
    Ok(Geometry::parse(Bytes(&sector)).map(|geometry| geometry.kind))
}

/// The boot sector, in bytes.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    kind: FsKind,
    cluster: u64,
    fat: u64,
    fat_len: u64,
    /// Fixed root directory of FAT12 and FAT16.
    root: u64,
    root_len: u64,
    data: u64,
    clusters: u32,
    end: u64,
}

impl Geometry {
    /// `None` for anything that Linux would not take for FAT. All sums fit: the factors have at most
    /// 32 and 12 bits.
    fn parse(boot: Bytes<'_>) -> Option<Self> {
        let sector = u64::from(boot.le16(11));
        let per_cluster = u64::from(boot.u8(13));
        let reserved = u64::from(boot.le16(14));
        let fats = u64::from(boot.u8(16));
        let is_fat = matches!(sector, 512 | 1024 | 2048 | 4096)
            && per_cluster.is_power_of_two()
            && reserved != 0
            && (1..=4).contains(&fats)
            && (boot.u8(21) == 0xf0 || boot.u8(21) >= 0xf8)
            && boot.le16(510) == 0xaa55;
        if !is_fat {
            return None;
        }
        let either = |short: u16, long: u32| match short {
            0 => u64::from(long),
            short => u64::from(short),
        };
        let total = either(boot.le16(19), boot.le32(32));
        let fat_sectors = either(boot.le16(22), boot.le32(36));
        let root_len = u64::from(boot.le16(17)) * 32;
        let root = (reserved + fats * fat_sectors) * sector;
        let data = root + root_len.next_multiple_of(sector);
        let cluster = sector * per_cluster;
        let clusters = (total * sector).checked_sub(data)? / cluster;
        let clusters = u32::try_from(clusters).ok()?;
        let kind = if boot.le16(22) == 0 {
            FsKind::Fat32
        } else if clusters <= MAX_FAT12 {
            FsKind::Fat12
        } else {
            FsKind::Fat16
        };
        let most = match kind {
            FsKind::Fat32 => MAX_FAT32,
            _ => MAX_FAT16,
        };
        (fat_sectors != 0 && clusters != 0 && clusters <= most).then_some(Self {
            kind,
            cluster,
            fat: reserved * sector,
            fat_len: fat_sectors * sector,
            root,
            root_len,
            data,
            clusters,
            end: total * sector,
        })
    }
}

/// A mounted FAT file system.
pub(super) struct Fat {
    source: Source,
    geometry: Geometry,
    label: Option<String>,
    uuid: Option<String>,
    root_cluster: u32,
}

#[derive(Debug, Clone)]
pub(super) struct FatNode {
    kind: NodeKind,
    /// 0: the fixed root directory, or an empty file.
    first_cluster: u32,
    size: u32,
}

impl Fat {
    pub(super) fn mount(source: Source) -> Result<Self, FsError> {
        let sector = source.metadata_vec(512, 0)?;
        let boot = Bytes(&sector);
        let geometry = Geometry::parse(boot).ok_or(FsError::Damaged("the boot sector makes no sense"))?;
        if geometry.end > source.len() {
            return Err(FsError::Damaged("it is larger than its partition (is the image truncated?)"));
        }
        let is_wide = geometry.kind == FsKind::Fat32;
        // Where the extended part of the boot sector begins.
        let extended = if is_wide { 66 } else { 38 };
        let has_serial = matches!(boot.u8(extended), 0x28 | 0x29);
        let serial = boot.le32(extended + 1);
        let mut fs = Self {
            label: text(&boot.array::<11>(extended + 5))
                .filter(|label| has_serial && boot.u8(extended) == 0x29 && label != "NO NAME"),
            uuid: has_serial.then(|| format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)),
            root_cluster: if is_wide { boot.le32(44) } else { 0 },
            geometry,
            source,
        };
        // The label in the root directory is what tools change.
        if let Ok(Some(label)) = fs.volume_label() {
            fs.label = Some(label);
        }
        Ok(fs)
    }

    /// Place of a cluster.
    fn cluster_offset(&self, cluster: u32) -> Result<u64, FsError> {
        match cluster.checked_sub(2) {
            Some(index) if index < self.geometry.clusters => {
                Ok(self.geometry.data + u64::from(index) * self.geometry.cluster)
            }
            _ => Err(FsError::Damaged("a cluster number is out of range")),
        }
    }

    /// Finds the runs of `len` bytes that begin at `first`. A chain may be longer than that, not
    /// shorter.
    fn map(&self, first: u32, len: u64) -> Result<Contents, FsError> {
        let mut runs = Runs::new(&self.source, len);
        let mut chain = Chain::new(self);
        let mut cluster = first;
        // Ends: every turn adds a cluster's worth.
        while runs.end() < len {
            let place = self.cluster_offset(cluster)?;
            runs.push(runs.end(), self.geometry.cluster, place)?;
            if runs.end() < len {
                cluster =
                    chain.next(cluster)?.ok_or(FsError::Damaged("a file is shorter than it should be"))?;
            }
        }
        Ok(runs.finish())
    }

    /// Bytes in the chain of a directory, which has no size of its own.
    fn directory_len(&self, first: u32) -> Result<u64, FsError> {
        let mut chain = Chain::new(self);
        let mut cluster = first;
        let mut len = self.geometry.cluster;
        while let Some(next) = chain.next(cluster)? {
            len += self.geometry.cluster;
            if len > MAX_DIRECTORY {
                return Err(FsError::Damaged("a directory is far too large"));
            }
            cluster = next;
        }
        Ok(len)
    }

    fn directory(&self, node: &FatNode) -> Result<Contents, FsError> {
        if node.first_cluster == 0 && self.geometry.kind != FsKind::Fat32 {
            let mut runs = Runs::new(&self.source, self.geometry.root_len);
            runs.push(0, self.geometry.root_len, self.geometry.root)?;
            return Ok(runs.finish());
        }
        // ".." of a directory in the root names cluster 0, on FAT32 too.
        let first = match node.first_cluster {
            0 => self.root_cluster,
            first => first,
        };
        self.map(first, self.directory_len(first)?)
    }
}

/// Steps along the FAT, which it reads through a window.
struct Chain<'a> {
    fat: &'a Fat,
    window: Vec<u8>,
    start: u64,
}

impl<'a> Chain<'a> {
    fn new(fat: &'a Fat) -> Self {
        Self { fat, window: Vec::new(), start: 0 }
    }

    /// The cluster after `cluster`; `None` at the end of the chain.
    fn next(&mut self, cluster: u32) -> Result<Option<u32>, FsError> {
        let number = u64::from(cluster);
        let next = match self.fat.geometry.kind {
            FsKind::Fat12 => {
                let at = number + number / 2;
                let pair = u16::from_le_bytes([self.byte(at)?, self.byte(at + 1)?]);
                let entry = if cluster.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 };
                (entry < 0xff8).then_some(u32::from(entry))
            }
            FsKind::Fat16 => {
                let entry = u16::from_le_bytes([self.byte(2 * number)?, self.byte(2 * number + 1)?]);
                (entry < 0xfff8).then_some(u32::from(entry))
            }
            _ => {
                let mut entry = [0; 4];
                for (at, byte) in (4 * number..).zip(&mut entry) {
                    *byte = self.byte(at)?;
                }
                let entry = u32::from_le_bytes(entry) & 0x0fff_ffff;
                (entry < 0x0fff_fff8).then_some(entry)
            }
        };
        Ok(next)
    }

    fn byte(&mut self, at: u64) -> Result<u8, FsError> {
        let start = at - at % WINDOW;
        if self.window.is_empty() || self.start != start {
            let left = self.fat.geometry.fat_len.saturating_sub(start);
            let len = left.min(WINDOW);
            // `len` is at most `WINDOW`.
            self.window = self.fat.source.metadata_vec(len as usize, self.fat.geometry.fat + start)?;
            self.start = start;
        }
        self.window
            .get((at - start) as usize)
            .copied()
            .ok_or(FsError::Damaged("the allocation table is too short"))
    }
}

impl Format for Fat {
    type Node = FatNode;

    fn kind(&self) -> FsKind {
        self.geometry.kind
    }

    fn label(&self) -> Option<String> {
        self.label.clone()
    }

    fn uuid(&self) -> Option<String> {
        self.uuid.clone()
    }

    fn root(&self) -> Result<FatNode, FsError> {
        Ok(FatNode { kind: NodeKind::Directory, first_cluster: self.root_cluster, size: 0 })
    }

    fn node_kind(&self, node: &FatNode) -> NodeKind {
        node.kind
    }

    fn lookup(&self, directory: &FatNode, name: &str) -> Result<FatNode, FsError> {
        let wanted = name.to_lowercase();
        let mut found = None;
        self.for_each_entry(directory, |entry| {
            if entry.is_named(&wanted) {
                found = Some(entry.node.clone());
            }
            found.is_none()
        })?;
        found.ok_or(FsError::NotFound)
    }

    fn list(&self, directory: &FatNode) -> Result<Vec<String>, FsError> {
        let mut names = Vec::new();
        self.for_each_entry(directory, |entry| {
            if !matches!(entry.name(), "." | "..") {
                names.push(entry.name().to_owned());
            }
            names.len() < MAX_NAMES
        })?;
        Ok(names)
    }

    fn read_link(&self, _: &FatNode) -> Result<String, FsError> {
        Err(FsError::NotFound)
    }

    fn contents(&self, file: &FatNode) -> Result<Contents, FsError> {
        self.map(file.first_cluster, u64::from(file.size))
    }
}
