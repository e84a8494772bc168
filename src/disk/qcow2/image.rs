//! One qcow2 file: where its data are.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::alloc::{Allocator, read_zero_filled};
use super::compressed::{InflateCache, inflate};
use super::create::grow_overlay;
use super::entry::{Compressed, Corrupt, Entry, Kind};
use super::header::{Geometry, Header, bad, clear_autoclear};
use super::tables::{Residence, Tables};
use crate::DiskError;
use crate::lock::ImageFile;
use crate::raw::file_size;

/// A qcow2 file, without what lies below it.
///
/// Locks, in the order in which they may be held together: `writer.flushing`, `state`,
/// `writer.allocator`. No I/O happens under `state`.
pub(super) struct Image {
    pub file: ImageFile,
    pub geometry: Geometry,
    /// Virtual size in bytes. Grows under the lock of `state`, after the tables.
    size: AtomicU64,
    /// Where the L1 table is in the file.
    pub l1_offset: u64,
    state: Mutex<State>,
    /// A cluster has become free of writers.
    pub freed: Condvar,
    inflated: Mutex<InflateCache>,
    /// Present when the image may be written.
    pub writer: Option<Writer>,
}

/// What changes, under one lock.
pub(super) struct State {
    pub tables: Tables,
    /// Clusters in the hands of a writer that needs them for itself.
    pub claimed: HashSet<u64>,
    /// Clusters with prepared writes.
    pub prepared: HashMap<u64, Prepared>,
}

/// Writes that were prepared and not finished, all in one cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prepared {
    pub host: u64,
    pub writes: usize,
}

pub(super) struct Writer {
    pub allocator: Mutex<Allocator>,
    /// Held by the one thread that writes tables back.
    pub flushing: Mutex<()>,
}

/// A stretch of the disk with one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub place: Place,
    /// Length in bytes, not 0.
    pub len: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In this file from this offset on; what is past its end reads as zeroes.
    Data { offset: u64, writable: bool },
    /// Zeroes.
    Zero,
    /// Nothing is known here.
    Unallocated,
    /// In the cluster that this stream inflates to. The run ends with the cluster.
    Compressed(Compressed),
}

impl Image {
    pub fn open(file: ImageFile, write: bool, has_lower: bool) -> Result<Self, DiskError> {
        let file_len = file_size(&file)?;
        let header = Header::read(&file, file_len)?;
        if header.has_backing && !has_lower {
            return Err(bad("it is an overlay, and the image that it lies over was not handed in"));
        }
        let geometry = header.geometry;
        // Both tables lie inside the file, and are small enough: the header says so.
        let load = |offset, entries| read_words(&file, offset, entries);
        let l1 = load(header.l1_offset, header.l1_entries)?;
        let tables =
            Tables::new(geometry, l1, write).map_err(|Corrupt| bad("its L1 table is damaged or shared"))?;

        let writer = if write {
            if let Some(reason) = header.unwritable {
                return Err(bad(format!("it cannot be written: {reason}")));
            }
            if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
                return Err(bad("it cannot be written: it is not in a regular file, so it cannot grow"));
            }
            let reftable = load(header.reftable_offset, header.reftable_entries)?;
            if reftable.iter().any(|&block| !geometry.is_aligned(block) || block >= file_len) {
                return Err(bad("its refcount table is damaged"));
            }
            if header.autoclear != 0 {
                clear_autoclear(&file).map_err(|source| DiskError::transfer("write", 8, 88, source))?;
            }
            let allocator = Allocator::new(geometry, header.reftable_offset, reftable, file_len);
            Some(Writer { allocator: Mutex::new(allocator), flushing: Mutex::default() })
        } else {
            None
        };
        Ok(Self {
            file,
            geometry,
            size: AtomicU64::new(header.size),
            l1_offset: header.l1_offset,
            state: Mutex::new(State { tables, claimed: HashSet::new(), prepared: HashMap::new() }),
            freed: Condvar::new(),
            inflated: Mutex::default(),
            writer,
        })
    }

    /// Virtual size in bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Makes the disk larger, as [`super::grow_overlay`] does with a file that nobody has open.
    pub fn grow(&self, size: u64) -> Result<(), DiskError> {
        // Nobody writes tables back meanwhile, so none is written that the header does not have yet.
        let writer = self.writer.as_ref().ok_or(DiskError::ReadOnly)?;
        let _flushing = writer.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        if size == self.size() {
            return Ok(());
        }
        let l1_entries = grow_overlay(&self.file, size)?;
        self.state().tables.grow(l1_entries);
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the state with the entry of `cluster` in memory. `false`: it has no L2 table.
    pub fn state_with(&self, cluster: u64) -> Result<(MutexGuard<'_, State>, bool), DiskError> {
        let mut state = self.state();
        loop {
            match state.tables.residence(cluster) {
                Residence::Here => return Ok((state, true)),
                Residence::NoTable => return Ok((state, false)),
                Residence::Missing { at, epoch } => {
                    drop(state);
                    let words = Tables::slice_bytes(self.geometry) / 8;
                    let words = read_words(&self.file, at, words)?.into_boxed_slice();
                    state = self.state();
                    state.tables.insert(cluster, at, epoch, words);
                }
            }
        }
    }

    /// What is at `offset`, as far as it is one thing, up to `len` bytes. Neither is 0, and the
    /// range lies inside the disk.
    pub fn lookup(&self, offset: u64, len: u64) -> Result<Run, DiskError> {
        let first = offset >> self.geometry.cluster_bits;
        let (state, mapped) = self.state_with(first)?;
        if !mapped {
            let end = state.tables.table_end(first) << self.geometry.cluster_bits;
            return Ok(Run { place: Place::Unallocated, len: len.min(end - offset) });
        }
        let slice_end = state.tables.slice_end(first) << self.geometry.cluster_bits;
        let len = len.min(slice_end - offset);
        let mut run: Option<Run> = None;
        let mut at = offset;
        while at < offset + len {
            let cluster = at >> self.geometry.cluster_bits;
            let entry = state.tables.entry(cluster).map_err(|Corrupt| self.corrupt(at))?;
            let piece = self.piece(entry, at, offset + len - at);
            match &mut run {
                None => run = Some(piece),
                Some(run) if continues(*run, piece) => run.len += piece.len,
                Some(_) => break,
            }
            at += piece.len;
        }
        run.ok_or_else(|| self.corrupt(offset))
    }

    /// The longest run at `at` inside its cluster.
    fn piece(&self, entry: Entry, at: u64, len: u64) -> Run {
        let in_cluster = self.geometry.in_cluster(at);
        let plain = match entry {
            Entry::Compressed(stream) => {
                let len = len.min(self.geometry.cluster_size() - in_cluster);
                return Run { place: Place::Compressed(stream), len };
            }
            Entry::Plain(plain) => plain,
        };
        // At most 32.
        let first = (in_cluster >> self.geometry.sub_bits()) as u32;
        let kind = plain.kind(first);
        let end = (first + 1..self.geometry.subs())
            .find(|&sub| plain.kind(sub) != kind)
            .unwrap_or(self.geometry.subs());
        let place = match (kind, plain.host) {
            // Of an image that is only read nothing is, even if it is the only user of its clusters.
            (Kind::Data, Some(host)) => {
                Place::Data { offset: host + in_cluster, writable: plain.copied && self.writer.is_some() }
            }
            (Kind::Zero, _) => Place::Zero,
            _ => Place::Unallocated,
        };
        Run { place, len: len.min((u64::from(end) << self.geometry.sub_bits()) - in_cluster) }
    }

    /// The contents of a compressed cluster.
    pub fn inflate(&self, stream: Compressed) -> Result<Arc<[u8]>, DiskError> {
        let cached = self.inflated.lock().unwrap_or_else(PoisonError::into_inner).get(stream);
        if let Some(data) = cached {
            return Ok(data);
        }
        // At most two clusters.
        let mut raw = vec![0; stream.len as usize];
        read_zero_filled(&self.file, &mut raw, stream.offset)
            .map_err(|source| DiskError::transfer("read", stream.len, stream.offset, source))?;
        let data = inflate(&raw, self.geometry.cluster_size() as usize)
            .ok_or_else(|| bad(format!("the compressed data at {} are damaged", stream.offset)))?;
        self.inflated.lock().unwrap_or_else(PoisonError::into_inner).put(stream, Arc::clone(&data));
        Ok(data)
    }

    pub fn corrupt(&self, offset: u64) -> DiskError {
        bad(format!("the table entry for byte {offset} is damaged"))
    }
}

/// Whether `next` can be read together with `run`, which it follows.
fn continues(run: Run, next: Run) -> bool {
    match (run.place, next.place) {
        (Place::Data { offset, writable }, Place::Data { offset: next, writable: next_writable }) => {
            offset + run.len == next && writable == next_writable
        }
        (Place::Zero, Place::Zero) | (Place::Unallocated, Place::Unallocated) => true,
        _ => false,
    }
}

/// Big-endian words from the file.
fn read_words(file: &File, offset: u64, count: u64) -> Result<Vec<u64>, DiskError> {
    let len = count * 8;
    let mut raw = vec![0; usize::try_from(len).unwrap_or(0)];
    read_zero_filled(file, &mut raw, offset)
        .map_err(|source| DiskError::transfer("read", len, offset, source))?;
    Ok(raw.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word)).collect())
}
