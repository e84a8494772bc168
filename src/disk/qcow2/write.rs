//! Changes to the top image.
//!
//! ```text
//!  in place     mapped units of our own clusters: write the data, nothing else
//!  claimed      anything: have the cluster for oneself, fill up units that are written in part,
//!               write, map
//!  prepared     whole units: reserve a place, let an engine write it, map when told
//! ```
//!
//! Units written in place are never claimed ones: a claim only changes what unmapped units of its
//! cluster read as, or zeroes units. A guest that writes and zeroes the same bytes at once gets one
//! of the two.
//!
//! Who claims a cluster waits for prepared writes to it. So an engine must not make a blocking
//! change while it holds prepared writes of its own.

use std::collections::hash_map;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::alloc::extend_to;
use super::entry::{Corrupt, Entry, Plain, covered, touched};
use super::image::{Image, Place, Prepared, Run, Writer};
use super::tables::{Batch, MAX_DIRTY};
use super::{Qcow2Disk, Source};
use crate::positioned::{self, part};
use crate::{DiskError, Extent, PreparedWrite};

/// How to make a range read as zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zeroing {
    /// Wherever it costs nothing; give the space back.
    Discard,
    /// Everywhere; give the space back.
    Unmap,
    /// Everywhere; keep the space.
    Keep,
    /// As [`Zeroing::Unmap`], and so that the image says so itself where what is below it reads as zeroes too.
    Say,
}

impl Qcow2Disk {
    /// Writes `bufs`, which hold `len` bytes, from `offset` on.
    pub(super) fn write(&self, bufs: &[VolatileSlice<'_>], offset: u64, len: u64) -> Result<(), DiskError> {
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let run = self.top.lookup(at, len - done)?;
            done += match run {
                Run { place: Place::Data { offset, writable: true }, len } => {
                    positioned::write_all(&self.top.file, &part(bufs, done, len), offset)
                        .map_err(|source| DiskError::transfer("write", len, at, source))?;
                    len
                }
                _ => {
                    let geometry = self.top.geometry;
                    let len = (len - done).min(geometry.cluster_size() - geometry.in_cluster(at));
                    self.write_claimed(&part(bufs, done, len), at, len)?;
                    len
                }
            };
        }
        Ok(())
    }

    /// Writes inside one cluster, with everything that this may take.
    fn write_claimed(&self, bufs: &[VolatileSlice<'_>], at: u64, len: u64) -> Result<(), DiskError> {
        let image = &self.top;
        let geometry = image.geometry;
        image.limit_dirty()?;
        let claim = image.claim(at >> geometry.cluster_bits)?;
        let entry = claim.entry()?;
        let plain = match entry {
            Entry::Plain(plain) => plain,
            Entry::Compressed(_) => Plain::default(),
        };
        let (host, fresh) = match plain.writable_host() {
            Some(host) => (host, false),
            None => (image.allocate()?, true),
        };
        // Data in a place that is not ours to change have to come along.
        let moved = fresh && (plain.data != 0 || matches!(entry, Entry::Compressed(_)));

        let start = geometry.in_cluster(at);
        let end = start + len;
        let units = if moved { geometry.all_subs() } else { touched(geometry, start, len) };
        let (fill_start, fill_end) = if moved {
            (0, geometry.cluster_size())
        } else {
            let unmapped = |offset: u64| plain.data & touched(geometry, offset, 1) == 0;
            let sub = geometry.sub_size();
            (
                if unmapped(start) { start - start % sub } else { start },
                if unmapped(end - 1) { end.next_multiple_of(sub) } else { end },
            )
        };
        let base = at - start;
        let mut head = self.filling(base + fill_start, start - fill_start, fresh)?;
        let mut tail = self.filling(base + end, fill_end - end, fresh)?;
        let first = if head.is_empty() { start } else { fill_start };
        let pieces: Vec<VolatileSlice<'_>> = std::iter::once(VolatileSlice::from(&mut head[..]))
            .chain(bufs.iter().copied())
            .chain(std::iter::once(VolatileSlice::from(&mut tail[..])))
            .collect();
        positioned::write_all(&image.file, &pieces, host + first)
            .map_err(|source| DiskError::transfer("write", len, at, source))?;
        let (data, zero) = if moved { (units, 0) } else { (plain.data | units, plain.zero & !units) };
        claim.set_entry(Entry::Plain(Plain { host: Some(host), copied: true, data, zero }))
    }

    /// The bytes around a write that share a unit with it. None are needed where zeroes are already
    /// there.
    fn filling(&self, offset: u64, len: u64, fresh: bool) -> Result<Vec<u8>, DiskError> {
        if len == 0 || (fresh && self.reads_as_zeroes(offset, len)?) {
            return Ok(Vec::new());
        }
        // At most a cluster.
        let mut bytes = vec![0; len as usize];
        self.read(&[VolatileSlice::from(&mut bytes[..])], offset, len)?;
        Ok(bytes)
    }

    fn reads_as_zeroes(&self, offset: u64, len: u64) -> Result<bool, DiskError> {
        let mut done = 0;
        while done < len {
            match self.find(offset + done, len - done)? {
                (Source::Zero, run) => done += run,
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Makes a range read as zeroes.
    pub(super) fn zero(&self, offset: u64, len: u64, how: Zeroing) -> Result<(), DiskError> {
        let geometry = self.top.geometry;
        let sub = geometry.sub_size();
        let end = offset + len;
        let mut holes = Holes { image: &self.top, start: 0, len: 0 };
        let mut at = offset;
        while at < end {
            let (source, run) = self.find(at, end - at)?;
            if matches!(source, Source::Zero) && how != Zeroing::Say {
                at += run;
                continue;
            }
            let start = geometry.in_cluster(at);
            let mut len = (end - at).min(geometry.cluster_size() - start);
            // The rest of the last unit belongs to nobody.
            let whole = if at + len == self.top.size() {
                covered(geometry, start, len.next_multiple_of(sub))
            } else {
                covered(geometry, start, len)
            };
            let aligned = start.is_multiple_of(sub);
            if aligned && whole != 0 {
                len = len.min(u64::from(whole.count_ones()) * sub);
                if let Some(hole) = self.zero_units(at, whole, how)? {
                    holes.add(hole, len);
                    at += len;
                    continue;
                }
            } else {
                len = len.min(sub - start % sub);
            }
            if how != Zeroing::Discard {
                let mut zeroes = vec![0; len as usize];
                self.write(&[VolatileSlice::from(&mut zeroes[..])], at, len)?;
            }
            at += len;
        }
        holes.punch();
        Ok(())
    }

    /// Marks whole units of the cluster at `at`. Returns the place that is free now, or 0 if there
    /// is none; `None` if the cluster cannot be marked.
    fn zero_units(&self, at: u64, units: u32, how: Zeroing) -> Result<Option<u64>, DiskError> {
        let image = &self.top;
        let geometry = image.geometry;
        image.limit_dirty()?;
        let claim = image.claim(at >> geometry.cluster_bits)?;
        let plain = match claim.entry()? {
            Entry::Plain(plain) => plain,
            Entry::Compressed(_) if units == geometry.all_subs() => Plain::default(),
            Entry::Compressed(_) => return Ok(None),
        };
        let mut new = Plain { data: plain.data & !units, zero: plain.zero | units, ..plain };
        if !new.copied && new.data == 0 {
            new.host = None;
        }
        claim.set_entry(Entry::Plain(new))?;
        let hole = new.writable_host().filter(|_| how != Zeroing::Keep);
        Ok(Some(hole.map_or(0, |host| host + geometry.in_cluster(at))))
    }
}

/// Joins what neighbouring clusters free.
struct Holes<'i> {
    image: &'i Image,
    start: u64,
    len: u64,
}

impl Holes<'_> {
    /// `start` is 0 when nothing is free.
    fn add(&mut self, start: u64, len: u64) {
        if start != self.start + self.len {
            self.punch();
            self.start = start;
        }
        if start != 0 {
            self.len += len;
        }
    }

    /// Gives the blocks back. A file system that cannot do that keeps them.
    fn punch(&mut self) {
        if self.len > 0 {
            let _ = fallocate(&self.image.file, FallocateMode::PunchHole, true, self.start, self.len);
        }
        (self.start, self.len) = (0, 0);
    }
}

/// A cluster that nobody else claims or prepares writes for.
struct Claim<'i> {
    image: &'i Image,
    cluster: u64,
}

impl Claim<'_> {
    fn entry(&self) -> Result<Entry, DiskError> {
        let (state, _) = self.image.state_with(self.cluster)?;
        state
            .tables
            .entry(self.cluster)
            .map_err(|Corrupt| self.image.corrupt(self.cluster << self.image.geometry.cluster_bits))
    }

    fn set_entry(&self, entry: Entry) -> Result<(), DiskError> {
        let (mut state, _) = self.image.state_with(self.cluster)?;
        state.tables.set_entry(self.cluster, entry);
        Ok(())
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.image.state().claimed.remove(&self.cluster);
        self.image.freed.notify_all();
    }
}

impl Image {
    fn writer(&self) -> Result<&Writer, DiskError> {
        self.writer.as_ref().ok_or(DiskError::ReadOnly)
    }

    /// Waits until nobody else changes the cluster, and keeps others from it. Its L2 table exists.
    fn claim(&self, cluster: u64) -> Result<Claim<'_>, DiskError> {
        self.ensure_table(cluster)?;
        let mut state = self.state();
        while state.claimed.contains(&cluster) || state.prepared.contains_key(&cluster) {
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.claimed.insert(cluster);
        Ok(Claim { image: self, cluster })
    }

    fn ensure_table(&self, cluster: u64) -> Result<(), DiskError> {
        if self.state().tables.has_table(cluster) {
            return Ok(());
        }
        let table = self.allocate()?;
        extend_to(&self.file, table + self.geometry.cluster_size()).map_err(growing)?;
        let mut state = self.state();
        if state.tables.has_table(cluster) {
            drop(state);
            return self.give_back(table);
        }
        state.tables.enter_table(cluster, table);
        Ok(())
    }

    fn allocate(&self) -> Result<u64, DiskError> {
        lock(&self.writer()?.allocator).allocate(&self.file).map_err(growing)
    }

    fn give_back(&self, cluster: u64) -> Result<(), DiskError> {
        lock(&self.writer()?.allocator).give_back(cluster);
        Ok(())
    }

    /// See [`crate::Disk::prepare_write`]. The range lies inside the disk.
    pub(super) fn prepare_write(&self, offset: u64, len: u64) -> Option<PreparedWrite> {
        let cluster = offset >> self.geometry.cluster_bits;
        let start = self.geometry.in_cluster(offset);
        let len = len.min(self.geometry.cluster_size() - start);
        self.ensure_table(cluster).ok()?;
        let mut fresh = None;
        let host = loop {
            let (mut state, _) = self.state_with(cluster).ok()?;
            let host = match self.host_for(&state, cluster, start, len) {
                Some(Some(host)) => Some(host),
                Some(None) => fresh.take(),
                None => break None,
            };
            if let Some(host) = host {
                state.prepared.entry(cluster).or_insert(Prepared { host, writes: 0 }).writes += 1;
                state.tables.pin(cluster);
                break Some(host);
            }
            drop(state);
            fresh = Some(self.allocate().ok()?);
        };
        if let Some(unused) = fresh {
            self.give_back(unused).ok()?;
        }
        let host = host?;
        let extent = Extent { fd: self.file.as_raw_fd(), offset: host + start, len };
        Some(PreparedWrite { extent, offset })
    }

    /// The host cluster for a prepared write: `Some(None)` if one has to be allocated, `None` if the
    /// write cannot be prepared.
    fn host_for(
        &self,
        state: &super::image::State,
        cluster: u64,
        start: u64,
        len: u64,
    ) -> Option<Option<u64>> {
        if state.claimed.contains(&cluster) || state.tables.dirty() >= MAX_DIRTY {
            return None;
        }
        let Ok(Entry::Plain(plain)) = state.tables.entry(cluster) else { return None };
        let partial = touched(self.geometry, start, len) & !covered(self.geometry, start, len);
        if partial & !plain.data != 0 {
            return None;
        }
        if let Some(host) = plain.writable_host() {
            return Some(Some(host));
        }
        if plain.data != 0 {
            return None;
        }
        Some(state.prepared.get(&cluster).map(|prepared| prepared.host))
    }

    /// See [`crate::Disk::finish_write`].
    pub(super) fn finish_write(&self, write: &PreparedWrite, done: bool) {
        let cluster = write.offset >> self.geometry.cluster_bits;
        let mut state = self.state();
        let state = &mut *state;
        let hash_map::Entry::Occupied(mut prepared) = state.prepared.entry(cluster) else { return };
        if done && let Ok(Entry::Plain(plain)) = state.tables.entry(cluster) {
            let units = touched(self.geometry, self.geometry.in_cluster(write.offset), write.extent.len);
            let new = Plain {
                host: Some(prepared.get().host),
                copied: true,
                data: plain.data | units,
                zero: plain.zero & !units,
            };
            state.tables.set_entry(cluster, Entry::Plain(new));
        }
        state.tables.unpin(cluster);
        prepared.get_mut().writes -= 1;
        if prepared.get().writes == 0 {
            prepared.remove();
            self.freed.notify_all();
        }
    }

    /// Keeps the memory for changed tables bounded when a guest does not flush.
    fn limit_dirty(&self) -> Result<(), DiskError> {
        if self.state().tables.dirty() >= MAX_DIRTY { self.flush() } else { Ok(()) }
    }

    /// Makes everything that was completed before durable.
    pub(super) fn flush(&self) -> Result<(), DiskError> {
        let writer = self.writer()?;
        let _one_at_a_time = lock(&writer.flushing);
        let batch = self.state().tables.take_changes();
        let result = self.write_back(&batch);
        self.state().tables.written(&batch, result.is_ok());
        result.map_err(|source| DiskError::Io { action: "flush".to_owned(), source })
    }

    fn write_back(&self, batch: &Batch) -> std::io::Result<()> {
        if !batch.slices.is_empty() {
            // Data and refcounts before the entries that refer to them.
            self.file.sync_data()?;
            for (_, at, bytes) in &batch.slices {
                self.file.write_all_at(bytes, *at)?;
            }
        }
        if !batch.l1.is_empty() {
            // Tables before the entries that refer to them.
            self.file.sync_data()?;
            for &(index, entry) in &batch.l1 {
                self.file.write_all_at(&entry.to_be_bytes(), self.l1_offset + index as u64 * 8)?;
            }
        }
        self.file.sync_data()
    }

    /// Flushes, and takes back what was reserved and not used.
    pub(super) fn close(&self) -> Result<(), DiskError> {
        self.flush()?;
        lock(&self.writer()?.allocator)
            .release(&self.file)
            .map_err(|source| DiskError::Io { action: "closing the image".to_owned(), source })
    }
}

fn growing(source: std::io::Error) -> DiskError {
    DiskError::Io { action: "growing the image".to_owned(), source }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
