//! Entry points that fuzz targets and property tests share. Each takes any bytes and must return:
//! no panic, no hang, no large allocation.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bls::LoaderEntry;
use super::extlinux::ExtlinuxConf;
use super::filesystem::{Contents, FileSystem, FsError, FsKind, NodeKind};
use super::limits::{Budget, Limits};
use super::search::Search;
use super::uki::UnifiedImage;
use super::volumes::Volumes;
use super::{BootEntry, find, inspect, version};
use crate::Disk;
use crate::partition::{MemoryDisk, TableKind, read_table};

/// Tighter than the defaults, so that running into them is quick.
const LIMITS: Limits =
    Limits { kernel: 1 << 20, initrd: 1 << 20, config: 64 << 10, metadata: 4 << 20, steps: 5_000 };

/// Makes whole sectors of any bytes.
fn disk(bytes: &[u8]) -> Arc<dyn Disk> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    MemoryDisk::new(bytes)
}

fn read(entry: &BootEntry) {
    // Content does not matter, ways to read it do.
    let _ = entry.kernel.read(LIMITS.kernel);
    for initrd in &entry.initrds {
        let _ = initrd.read(LIMITS.initrd);
    }
}

/// Reads a partition table.
pub fn partition_table(bytes: &[u8]) {
    let disk = disk(bytes);
    if let Ok(table) = read_table(disk.as_ref()) {
        for partition in table.partitions {
            let end = partition.start.checked_add(partition.len);
            assert!(end.is_some_and(|end| end <= disk.size()), "outside the disk");
        }
    }
}

/// Searches a whole disk.
pub fn bootable_find(bytes: &[u8]) {
    let disk = disk(bytes);
    if let Ok(entry) = find(&disk, &LIMITS) {
        read(&entry);
    }
    let _ = inspect(&disk, &LIMITS);
}

/// Runs `grub.cfg`, with itself as environment block and loader entry at hand.
pub fn grub_script(bytes: &[u8]) {
    let files = [
        ("/boot/grub/grub.cfg", bytes),
        ("/boot/grub/grubenv", bytes),
        ("/loader/entries/a.conf", bytes),
        ("/boot/vmlinuz", b"kernel"),
    ];
    let volumes = Volumes::of(TableKind::None, vec![Box::new(MemoryFs::new(&files))]);
    let budget = Budget::new(&LIMITS);
    let search = Search::new(&volumes, &LIMITS, &budget);
    if let Ok((_, entry)) = search.default() {
        read(&entry);
    }
    for candidate in search.all() {
        let _ = search.open(&candidate);
    }
}

/// Parses a loader entry; the first line is its file name.
pub fn bls_entry(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (name, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let entry = LoaderEntry::parse(name, rest);
    let order = version::compare(&entry.version, &entry.id);
    assert_eq!(order.reverse(), version::compare(&entry.id, &entry.version));
}

/// Parses `extlinux.conf`.
pub fn extlinux_conf(bytes: &[u8]) {
    let conf = ExtlinuxConf::parse(&String::from_utf8_lossy(bytes));
    assert!(conf.default_label().is_none_or(|label| label.kernel.is_some()));
}

/// Finds the sections of a PE file.
pub fn uki(bytes: &[u8]) {
    let contents = Contents::inline(bytes.to_vec());
    let read = |buf: &mut [u8], at: u64| contents.read_exact_at(buf, at);
    if let Ok(image) = UnifiedImage::parse(contents.len(), read) {
        for (start, len) in [image.linux, image.initrd].into_iter().flatten() {
            let end = start.checked_add(len);
            assert!(end.is_some_and(|end| end <= contents.len()), "outside the file");
        }
    }
}

/// Files by path. Directories are what paths have in common.
pub(crate) struct MemoryFs {
    files: BTreeMap<String, Vec<u8>>,
    pub(crate) label: Option<String>,
    pub(crate) uuid: Option<String>,
}

impl MemoryFs {
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Self {
        let file = |(path, contents): &(&str, &[u8])| ((*path).to_owned(), contents.to_vec());
        Self { files: files.iter().map(file).collect(), label: None, uuid: None }
    }

    fn names<'a>(&'a self, directory: &str) -> impl Iterator<Item = &'a str> {
        let prefix = format!("{}/", directory.trim_end_matches('/'));
        let name = move |path: &'a String| path.strip_prefix(&prefix)?.split('/').next();
        self.files.keys().filter_map(name)
    }
}

impl FileSystem for MemoryFs {
    fn kind(&self) -> FsKind {
        FsKind::Ext4
    }

    fn label(&self) -> Option<String> {
        self.label.clone()
    }

    fn uuid(&self) -> Option<String> {
        self.uuid.clone()
    }

    fn open(&self, path: &str) -> Result<Contents, FsError> {
        let contents = self.files.get(path).ok_or(FsError::NotFound)?;
        Ok(Contents::inline(contents.clone()))
    }

    fn list_dir(&self, path: &str) -> Result<Vec<String>, FsError> {
        let mut names: Vec<_> = self.names(path).map(str::to_owned).collect();
        names.dedup();
        Ok(names)
    }

    fn stat(&self, path: &str) -> Result<NodeKind, FsError> {
        if self.files.contains_key(path) {
            return Ok(NodeKind::File);
        }
        let mut names = self.names(path);
        names.next().map_or(Err(FsError::NotFound), |_| Ok(NodeKind::Directory))
    }
}
