//! Carries out each request in place, on the thread that submits it.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::{Completion, Engine, Op};
use crate::{Disk, DiskError, Segment};

/// The engine that blocks. Cheapest to set up, and the way out where io_uring is not to be had.
pub struct SyncEngine {
    disk: Arc<dyn Disk>,
    mem: GuestMemoryMmap,
    done: VecDeque<Completion>,
}

impl SyncEngine {
    /// An engine on `disk` for buffers in `mem`.
    pub fn new(disk: Arc<dyn Disk>, mem: GuestMemoryMmap) -> Self {
        Self { disk, mem, done: VecDeque::new() }
    }
}

impl Engine for SyncEngine {
    fn submit(&mut self, tag: u64, op: Op) {
        let (result, segments) = execute(&*self.disk, &self.mem, op);
        self.done.push_back(Completion { tag, result, segments });
    }

    fn kick(&mut self) {}

    fn poll(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn wait(&mut self) {}

    fn event_fd(&self) -> Option<RawFd> {
        None
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn serve(&mut self, disk: Arc<dyn Disk>) {
        self.done.clear();
        self.disk = disk;
    }
}

/// Carries out `op` now. Gives the emptied list of segments back beside the result.
pub(super) fn execute(
    disk: &dyn Disk,
    mem: &GuestMemoryMmap,
    op: Op,
) -> (Result<(), DiskError>, Vec<Segment>) {
    let (result, mut segments) = match op {
        Op::Read { offset, segments } => {
            (resolve_all(mem, &segments).and_then(|bufs| disk.read_at(&bufs, offset)), segments)
        }
        Op::Write { offset, segments } => {
            (resolve_all(mem, &segments).and_then(|bufs| disk.write_at(&bufs, offset)), segments)
        }
        Op::Flush => (disk.flush(), Vec::new()),
        Op::Discard { offset, len } => (disk.discard(offset, len), Vec::new()),
        Op::WriteZeroes { offset, len, unmap } => (disk.write_zeroes(offset, len, unmap), Vec::new()),
    };
    segments.clear();
    (result, segments)
}

/// Turns guest addresses into memory. A segment may span several regions of guest memory.
pub(super) fn resolve<'m>(
    mem: &'m GuestMemoryMmap,
    segments: &[Segment],
) -> impl Iterator<Item = Result<VolatileSlice<'m>, DiskError>> {
    segments
        .iter()
        .flat_map(|segment| mem.get_slices(segment.addr, segment.len as usize))
        .map(|slice| slice.map_err(|_| DiskError::BadBuffer))
}

fn resolve_all<'m>(
    mem: &'m GuestMemoryMmap,
    segments: &[Segment],
) -> Result<Vec<VolatileSlice<'m>>, DiskError> {
    let mut bufs = Vec::with_capacity(segments.len());
    for slice in resolve(mem, segments) {
        bufs.push(slice?);
    }
    Ok(bufs)
}
