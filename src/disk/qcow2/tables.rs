//! The tables of one image in memory: all of L1, and slices of L2 tables as they are needed.
//!
//! A slice is *clean*, *dirty*, or *being written*. Only clean slices without pins are dropped to
//! make room, so that what is read from the file is never older than what was dropped; `epoch`
//! tells a reader whose read raced with a write-back and an eviction.

use std::collections::{BTreeMap, HashMap};

use super::entry::{Corrupt, Entry};
use super::header::{Geometry, OFFSET_MASK};

/// Bytes of an L2 table that are read, kept and written together.
const SLICE_BYTES: u64 = 4096;

/// Slices kept per image: 4 MiB, which map 32 GiB of a disk.
const MAX_SLICES: usize = 1024;

/// Dirty slices that make a writer write them back before it goes on.
pub(super) const MAX_DIRTY: usize = MAX_SLICES / 2;

const L1_COPIED: u64 = 1 << 63;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;

pub(super) struct Tables {
    geometry: Geometry,
    /// Entries as in the file.
    l1: Vec<u64>,
    /// Entries that the file does not have yet.
    changed_l1: BTreeMap<usize, u64>,
    slices: HashMap<u64, Slice>,
    dirty: usize,
    /// Batches taken and not written.
    batches: usize,
    clock: u64,
    epoch: u64,
}

struct Slice {
    /// Where in the file.
    at: u64,
    words: Box<[u64]>,
    dirty: bool,
    writing: bool,
    /// Users that count on finding it.
    pins: u32,
    /// Time of last use.
    used: u64,
}

/// Whether an entry can be looked at.
pub(super) enum Residence {
    /// The slice is in memory.
    Here,
    /// There is no L2 table: nothing is mapped.
    NoTable,
    /// The slice has to be read from `at` and given to [`Tables::insert`] with the epoch.
    Missing { at: u64, epoch: u64 },
}

/// What a flush has to write, slices first.
#[derive(Default)]
pub(super) struct Batch {
    /// Key, place and contents.
    pub slices: Vec<(u64, u64, Vec<u8>)>,
    /// Index and entry.
    pub l1: Vec<(usize, u64)>,
}

impl Tables {
    /// Takes the L1 table. A writer needs every L2 table for itself.
    pub fn new(geometry: Geometry, l1: Vec<u64>, write: bool) -> Result<Self, Corrupt> {
        for &entry in &l1 {
            let offset = entry & OFFSET_MASK;
            let shared = write && offset != 0 && entry & L1_COPIED == 0;
            if entry & L1_RESERVED != 0 || !geometry.is_aligned(offset) || shared {
                return Err(Corrupt);
            }
        }
        Ok(Self {
            geometry,
            l1,
            changed_l1: BTreeMap::new(),
            slices: HashMap::new(),
            dirty: 0,
            batches: 0,
            clock: 0,
            epoch: 0,
        })
    }

    /// Gives the L1 table `entries` entries, if it has fewer. New ones map nothing.
    pub fn grow(&mut self, entries: usize) {
        self.l1.resize(entries.max(self.l1.len()), 0);
    }

    pub fn slice_bytes(geometry: Geometry) -> u64 {
        SLICE_BYTES.min(geometry.cluster_size())
    }

    fn slice_entries(&self) -> u64 {
        Self::slice_bytes(self.geometry) / (8 * self.geometry.entry_words() as u64)
    }

    /// The slice that holds the entry of `cluster`.
    fn key(&self, cluster: u64) -> u64 {
        cluster / self.slice_entries()
    }

    /// First cluster whose entry is in another slice.
    pub fn slice_end(&self, cluster: u64) -> u64 {
        (self.key(cluster) + 1) * self.slice_entries()
    }

    /// First cluster whose entry is in another L2 table.
    pub fn table_end(&self, cluster: u64) -> u64 {
        let entries = self.geometry.l2_entries();
        (cluster / entries + 1) * entries
    }

    pub fn residence(&mut self, cluster: u64) -> Residence {
        self.clock += 1;
        if let Some(slice) = self.slices.get_mut(&self.key(cluster)) {
            slice.used = self.clock;
            return Residence::Here;
        }
        match self.slice_place(cluster) {
            Some(at) => Residence::Missing { at, epoch: self.epoch },
            None => Residence::NoTable,
        }
    }

    fn slice_place(&self, cluster: u64) -> Option<u64> {
        let entries = self.geometry.l2_entries();
        let index = usize::try_from(cluster / entries).ok()?;
        let table = self.l1.get(index)? & OFFSET_MASK;
        let slice = (cluster % entries) / self.slice_entries();
        (table != 0).then(|| table + slice * Self::slice_bytes(self.geometry))
    }

    /// Takes a slice that was read, unless the file may have changed since.
    pub fn insert(&mut self, cluster: u64, at: u64, epoch: u64, words: Box<[u64]>) {
        if epoch != self.epoch {
            return;
        }
        self.evict();
        let used = self.clock;
        let slice = Slice { at, words, dirty: false, writing: false, pins: 0, used };
        self.slices.entry(self.key(cluster)).or_insert(slice);
    }

    /// Makes room. Drops an eighth at once, so that the search is not repeated for each slice.
    fn evict(&mut self) {
        if self.slices.len() < MAX_SLICES {
            return;
        }
        let mut idle: Vec<(u64, u64)> = self
            .slices
            .iter()
            .filter(|(_, slice)| !slice.dirty && !slice.writing && slice.pins == 0)
            .map(|(&key, slice)| (slice.used, key))
            .collect();
        idle.sort_unstable();
        for (_, key) in idle.into_iter().take(MAX_SLICES / 8) {
            self.slices.remove(&key);
        }
    }

    /// The entry of a cluster whose slice is here.
    pub fn entry(&self, cluster: u64) -> Result<Entry, Corrupt> {
        let slice = self.slices.get(&self.key(cluster)).ok_or(Corrupt)?;
        let words = self.geometry.entry_words();
        let index = (cluster % self.slice_entries()) as usize * words;
        let word = |i: usize| slice.words.get(i).copied().unwrap_or(0);
        Entry::decode([word(index), if words == 2 { word(index + 1) } else { 0 }], self.geometry)
    }

    /// Changes the entry of a cluster whose slice is here.
    pub fn set_entry(&mut self, cluster: u64, entry: Entry) {
        let words = self.geometry.entry_words();
        let index = (cluster % self.slice_entries()) as usize * words;
        let new = entry.encode(self.geometry);
        let Some(slice) = self.slices.get_mut(&self.key(cluster)) else { return };
        for (to, from) in slice.words.iter_mut().skip(index).take(words).zip(new) {
            *to = from;
        }
        if !slice.dirty {
            slice.dirty = true;
            self.dirty += 1;
        }
    }

    /// Keeps the slice of a cluster, which is here, until [`Tables::unpin`].
    pub fn pin(&mut self, cluster: u64) {
        if let Some(slice) = self.slices.get_mut(&self.key(cluster)) {
            slice.pins += 1;
        }
    }

    pub fn unpin(&mut self, cluster: u64) {
        if let Some(slice) = self.slices.get_mut(&self.key(cluster)) {
            slice.pins = slice.pins.saturating_sub(1);
        }
    }

    pub fn has_table(&self, cluster: u64) -> bool {
        self.slice_place(cluster).is_some()
    }

    /// Enters a new L2 table, which reads as zeroes, for the clusters around `cluster`.
    pub fn enter_table(&mut self, cluster: u64, table: u64) {
        let Ok(index) = usize::try_from(cluster / self.geometry.l2_entries()) else { return };
        if let Some(entry) = self.l1.get_mut(index) {
            *entry = L1_COPIED | table;
            self.changed_l1.insert(index, *entry);
        }
    }

    /// Number of dirty slices.
    pub fn dirty(&self) -> usize {
        self.dirty
    }

    /// Whether the file has all changes, though maybe not on stable storage.
    pub fn is_clean(&self) -> bool {
        self.dirty == 0 && self.batches == 0 && self.changed_l1.is_empty()
    }

    /// Takes all changes for writing. They stay in memory until [`Tables::written`].
    pub fn take_changes(&mut self) -> Batch {
        let mut slices = Vec::with_capacity(self.dirty);
        if self.dirty > 0 {
            for (&key, slice) in self.slices.iter_mut().filter(|(_, slice)| slice.dirty) {
                slice.dirty = false;
                slice.writing = true;
                slices.push((
                    key,
                    slice.at,
                    slice.words.iter().flat_map(|word| word.to_be_bytes()).collect(),
                ));
            }
            self.dirty = 0;
        }
        self.batches += 1;
        Batch { slices, l1: std::mem::take(&mut self.changed_l1).into_iter().collect() }
    }

    /// Ends a write-back. After a failure everything is dirty again.
    pub fn written(&mut self, batch: &Batch, success: bool) {
        for (key, ..) in &batch.slices {
            if let Some(slice) = self.slices.get_mut(key) {
                slice.writing = false;
                if !success && !slice.dirty {
                    slice.dirty = true;
                    self.dirty += 1;
                }
            }
        }
        if !success {
            for &(index, entry) in &batch.l1 {
                self.changed_l1.entry(index).or_insert(entry);
            }
        }
        self.batches -= 1;
        self.epoch += 1;
    }
}
