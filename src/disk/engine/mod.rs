//! How requests of one queue are carried out.
//!
//! [`new_engine`] picks the implementation. All of its system resources are made there, so that a
//! queue can be started later under a system call filter that allows no set-up.

mod absent;
mod slab;
mod sync;
mod uring;

use std::os::fd::RawFd;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::{Disk, DiskError, Segment};

pub use sync::SyncEngine;
pub use uring::UringEngine;

/// Makes the engine for one queue of `disk` with at most `depth` requests in flight.
pub fn new_engine(
    disk: Arc<dyn Disk>,
    mem: GuestMemoryMmap,
    depth: u16,
) -> Result<Box<dyn Engine>, DiskError> {
    match UringEngine::new(Arc::clone(&disk), mem.clone(), depth) {
        Ok(engine) => Ok(Box::new(engine)),
        Err(error) => {
            // An old kernel, or one told to do without (`kernel.io_uring_disabled`).
            tracing::debug!("no io_uring: {error}");
            Ok(Box::new(SyncEngine::new(disk, mem)))
        }
    }
}

/// Makes an engine that has no disk yet: see [`Engine::serve`].
pub fn new_spare_engine(mem: GuestMemoryMmap, depth: u16) -> Result<Box<dyn Engine>, DiskError> {
    new_engine(Arc::new(absent::NoDisk), mem, depth)
}

/// Takes the disk from an engine, which may serve another one later.
pub fn park(engine: &mut dyn Engine) {
    engine.serve(Arc::new(absent::NoDisk));
}

/// One request. `segments` add up to the length of a read or write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Disk to guest memory.
    Read {
        /// Byte offset on the disk.
        offset: u64,
        /// Where to.
        segments: Vec<Segment>,
    },
    /// Guest memory to disk.
    Write {
        /// Byte offset on the disk.
        offset: u64,
        /// Where from.
        segments: Vec<Segment>,
    },
    /// Make earlier completed writes durable.
    Flush,
    /// See [`crate::Disk::discard`].
    Discard {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// See [`crate::Disk::write_zeroes`].
    WriteZeroes {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
        /// May reclaim the range.
        unmap: bool,
    },
}

/// A finished request.
#[derive(Debug)]
pub struct Completion {
    /// As given to [`Engine::submit`].
    pub tag: u64,
    /// How it ended.
    pub result: Result<(), DiskError>,
    /// The request's list of segments, emptied, for the next request to reuse its allocation.
    pub segments: Vec<Segment>,
}

/// Carries out the requests of one queue. Owned by one thread.
pub trait Engine: Send {
    /// Takes a request. It may complete at once; the result is always told by [`Engine::poll`].
    /// Never blocks on a full ring: the engine keeps what the host cannot take yet.
    fn submit(&mut self, tag: u64, op: Op);

    /// Tells the host of everything submitted since the last call (one system call per batch).
    fn kick(&mut self);

    /// The next finished request, if there is one.
    fn poll(&mut self) -> Option<Completion>;

    /// Blocks until [`Engine::poll`] has something, or nothing is in flight.
    fn wait(&mut self);

    /// Readable (level-triggered) while [`Engine::poll`] may have something new. `None` when everything
    /// completes in `submit`.
    fn event_fd(&self) -> Option<RawFd>;

    /// Number of requests taken and not yet told by `poll`.
    fn in_flight(&self) -> usize;

    /// Serves another disk from now on. Waits for what is in flight on the one before, whose results are lost.
    fn serve(&mut self, disk: Arc<dyn Disk>);
}

#[cfg(test)]
mod tests;
