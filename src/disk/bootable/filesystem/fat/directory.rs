//! Directories: entries of 32 bytes, preceded by those that hold the long name, last part first.

use super::super::bytes::{Bytes, text};
use super::{Fat, FatNode, FsError, FsKind, MAX_DIRECTORY, NodeKind};

const ENTRY: usize = 32;
const ATTRIBUTE_VOLUME: u8 = 0x08;
const ATTRIBUTE_DIRECTORY: u8 = 0x10;
const ATTRIBUTE_LONG_NAME: u8 = 0x0f;
const DELETED: u8 = 0xe5;
/// UTF-16 units in one entry of a long name, and entries in one name.
const LONG_PART: usize = 13;
const MAX_PARTS: usize = 20;

/// A file or directory.
pub(super) struct Entry {
    short: String,
    long: Option<String>,
    pub(super) node: FatNode,
}

impl Entry {
    pub(super) fn name(&self) -> &str {
        self.long.as_deref().unwrap_or(&self.short)
    }

    /// Whether one of its names is `wanted`, which is in lower case.
    pub(super) fn is_named(&self, wanted: &str) -> bool {
        self.name().to_lowercase() == wanted || self.short.to_lowercase() == wanted
    }
}

impl Fat {
    /// Calls `each` with every file and directory until it answers `false`.
    pub(super) fn for_each_entry(
        &self,
        directory: &FatNode,
        mut each: impl FnMut(&Entry) -> bool,
    ) -> Result<(), FsError> {
        let bytes = self.directory_bytes(directory)?;
        let mut long = LongName::default();
        for raw in bytes.as_chunks::<ENTRY>().0 {
            match raw {
                [0, ..] => break,
                [DELETED, ..] => long = LongName::default(),
                _ if raw[11] & 0x3f == ATTRIBUTE_LONG_NAME => long.add(raw),
                _ => {
                    let long = std::mem::take(&mut long).finish(raw);
                    if raw[11] & ATTRIBUTE_VOLUME == 0 && !each(&self.entry(raw, long)) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// The label that lies in the root directory.
    pub(super) fn volume_label(&self) -> Result<Option<String>, FsError> {
        use super::Format;
        let bytes = self.directory_bytes(&self.root()?)?;
        let entries = bytes.as_chunks::<ENTRY>().0;
        let label = entries
            .iter()
            .take_while(|raw| raw[0] != 0)
            .find(|raw| raw[0] != DELETED && raw[11] & 0x3f & !0x20 == ATTRIBUTE_VOLUME)
            .and_then(|raw| text(&Bytes(raw).array::<11>(0)));
        Ok(label)
    }

    fn directory_bytes(&self, directory: &FatNode) -> Result<Vec<u8>, FsError> {
        let contents = self.directory(directory)?;
        self.source.spend(contents.len())?;
        contents.read_all(MAX_DIRECTORY)
    }

    fn entry(&self, raw: &[u8; ENTRY], long: Option<String>) -> Entry {
        let fields = Bytes(raw);
        let is_wide = self.geometry.kind == FsKind::Fat32;
        let high = if is_wide { fields.le16(20) } else { 0 };
        let kind = if raw[11] & ATTRIBUTE_DIRECTORY != 0 { NodeKind::Directory } else { NodeKind::File };
        Entry {
            short: short_name(raw),
            long,
            node: FatNode {
                kind,
                first_cluster: u32::from(high) << 16 | u32::from(fields.le16(26)),
                size: fields.le32(28),
            },
        }
    }
}

/// `NAME.EXT`, in lower case where the entry's flags say so.
fn short_name(raw: &[u8; ENTRY]) -> String {
    let part = |bytes: &[u8], lower: bool| {
        let shown: String = bytes.iter().map(|&c| printable_ascii(c)).collect();
        let shown = shown.trim_end_matches(' ');
        if lower { shown.to_ascii_lowercase() } else { shown.to_owned() }
    };
    let mut base = Bytes(raw).array::<8>(0);
    if base[0] == 0x05 {
        base[0] = DELETED;
    }
    let base = part(&base, raw[12] & 0x08 != 0);
    match part(&raw[8..11], raw[12] & 0x10 != 0) {
        extension if extension.is_empty() => base,
        extension => format!("{base}.{extension}"),
    }
}

/// Code pages are not known here; files that matter have ASCII names.
fn printable_ascii(c: u8) -> char {
    if c.is_ascii() { char::from(c) } else { '_' }
}

/// A long name that is being gathered.
#[derive(Default)]
struct LongName {
    /// By place in the name.
    parts: Vec<[u16; LONG_PART]>,
    /// Number of the part that must come next; the name is complete at 0.
    missing: usize,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, raw: &[u8; ENTRY]) {
        let order = raw[0];
        let number = usize::from(order & 0x3f);
        if order & 0x40 != 0 && (1..=MAX_PARTS).contains(&number) {
            self.parts = vec![[0; LONG_PART]; number];
            self.missing = number;
            self.checksum = raw[13];
        }
        if number == 0 || number != self.missing || raw[13] != self.checksum {
            *self = Self::default();
            return;
        }
        self.missing -= 1;
        let fields = Bytes(raw);
        let places = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
        if let Some(part) = self.parts.get_mut(self.missing) {
            *part = places.map(|at| fields.le16(at));
        }
    }

    /// The name, if all parts were there and belong to the short name in `raw`.
    fn finish(self, raw: &[u8; ENTRY]) -> Option<String> {
        let checksum = raw[..11].iter().fold(0u8, |sum, &c| sum.rotate_right(1).wrapping_add(c));
        if self.parts.is_empty() || self.missing != 0 || checksum != self.checksum {
            return None;
        }
        let units = self.parts.into_iter().flatten();
        let units = units.take_while(|&unit| unit != 0 && unit != 0xffff);
        char::decode_utf16(units).collect::<Result<_, _>>().ok()
    }
}
