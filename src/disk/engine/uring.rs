//! Carries requests out through io_uring.
//!
//! ```text
//!  Op ─▶ request ─▶ pieces, one per extent ─▶ backlog ─▶ submission ring ─▶ kernel
//!           ▲           │ short: the rest again                              │
//!           └───────────┴──────────────────────────── completion ring ◀──────┘
//! ```
//!
//! What lies in a file as it is goes to the ring: reads and overwrites of extents, fresh data of
//! prepared writes, flushes that are one `fdatasync`, discards of flat files. The rest (zeroes,
//! compressed data, partly written units, changed tables) is done in place through [`Disk`]. So are
//! writes where the file system cannot take any without the risk of waiting (ext4): the ring would
//! hand each of them to a thread of its own, one after the other, at ten times the cost.
//!
//! [`Engine::event_fd`] is the ring itself: it is readable while completions wait, and completions
//! that were taken right after submission wake nobody.
//!
//! Invariants:
//! - a piece, with its vectors, lives in `pieces` from the moment it is queued until its completion
//!   is taken, and guest memory is kept mapped by `mem`; [`Drop`] waits for the kernel;
//! - `at_kernel` counts entries in the submission ring and in the kernel, and never exceeds the
//!   size of the ring, so completions cannot overflow;
//! - a ring takes the operations of [`OPERATIONS`] and no further registration;
//! - no blocking change is made while a prepared write of ours is on its way ([`UringEngine::settle`]).
#![expect(unsafe_code, reason = "the kernel reads and writes guest memory behind the compiler's back")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::register::Restriction;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use vm_memory::GuestMemoryMmap;

use super::slab::Slab;
use super::sync::{execute, resolve};
use super::{Completion, Engine, Op};
use crate::disk::check_range;
use crate::positioned::part;
use crate::{Disk, DiskError, PreparedWrite, Segment};

/// All that a ring can be asked for.
const OPERATIONS: [u8; 6] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// The engine for queues of some depth.
pub struct UringEngine {
    ring: IoUring,
    disk: Arc<dyn Disk>,
    mem: GuestMemoryMmap,
    requests: Slab<Request>,
    pieces: Slab<Piece>,
    /// Pieces that the ring has not seen.
    backlog: VecDeque<usize>,
    at_kernel: usize,
    /// Prepared writes among the pieces.
    prepared: usize,
    done: VecDeque<Completion>,
    /// Requests taken and not told.
    in_flight: usize,
    /// Emptied vectors, to be filled again.
    spare: Vec<Vectors>,
    writes: Writes,
}

/// What the file system makes of writes that must not wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// There was no write yet.
    Untried,
    /// It takes them, so the ring does too.
    Ring,
    /// It refuses them all.
    InPlace,
}

/// A request until all of its pieces are done.
struct Request {
    tag: u64,
    /// Where on the disk it starts, and its memory, for a read or write.
    offset: u64,
    segments: Vec<Segment>,
    /// One more while pieces are still being cut.
    pieces: usize,
    /// The first thing that went wrong.
    result: Result<(), DiskError>,
}

/// One entry of the ring.
struct Piece {
    request: usize,
    fd: RawFd,
    /// Where in the file, and how much is left to do.
    at: u64,
    len: u64,
    /// Where on the disk.
    offset: u64,
    action: Action,
}

enum Action {
    Read(Vectors),
    Write(Vectors, Option<PreparedWrite>),
    Sync,
    /// A discard or write-zeroes, and its way without the ring.
    Fallocate(i32, Op),
}

/// Guest memory, for the kernel to read or write.
#[derive(Default)]
struct Vectors {
    list: Vec<libc::iovec>,
    /// Entries that are done.
    skip: usize,
}

// SAFETY: the pointers are plain addresses of guest memory, which the engine keeps mapped and which
// is not tied to a thread. They are dereferenced by the kernel only.
unsafe impl Send for Vectors {}

impl UringEngine {
    /// An engine for up to `depth` entries in the ring at once.
    pub fn new(disk: Arc<dyn Disk>, mem: GuestMemoryMmap, depth: u16) -> io::Result<Self> {
        let depth = depth.max(1);
        let build = |cooperative: bool| {
            let mut builder = IoUring::builder();
            builder.setup_clamp().dontfork().setup_r_disabled();
            if cooperative {
                // Completions are processed when the thread enters the kernel anyway.
                builder.setup_coop_taskrun();
            }
            builder.build(u32::from(depth))
        };
        // Linux before 5.19 does not know the flag of the first; before 5.10 there is neither.
        let ring = build(true).or_else(|_| build(false))?;

        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !OPERATIONS.iter().all(|&code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // What a ring does is not seen by system call filters, so the ring itself must be bound to
        // what a disk needs: no files, no sockets, for whoever takes this process over.
        let mut allowed = OPERATIONS.map(Restriction::sqe_op);
        ring.submitter().register_restrictions(&mut allowed)?;
        ring.submitter().register_enable_rings()?;
        let capacity = usize::from(depth);
        Ok(Self {
            ring,
            disk,
            mem,
            requests: Slab::with_capacity(capacity),
            pieces: Slab::with_capacity(capacity),
            backlog: VecDeque::with_capacity(capacity),
            at_kernel: 0,
            prepared: 0,
            done: VecDeque::with_capacity(capacity),
            in_flight: 0,
            spare: Vec::new(),
            writes: Writes::Untried,
        })
    }

    /// Cuts a read or write into pieces.
    fn transfer(&mut self, tag: u64, offset: u64, segments: Vec<Segment>, write: bool) {
        let vectors = match self.map(offset, &segments, write) {
            Ok(vectors) => vectors,
            Err(error) => return self.tell(tag, Err(error), segments),
        };
        let total: u64 = vectors.list.iter().map(|vector| vector.iov_len as u64).sum();
        let request = self.requests.insert(Request { tag, offset, segments, pieces: 1, result: Ok(()) });
        let mut whole = Some(vectors);
        let mut result = Ok(());
        let mut done = 0;
        while done < total {
            let (at, left) = (offset + done, total - done);
            if write && self.writes == Writes::InPlace {
                result = self.in_place(request, at, left, write);
                break;
            }
            let (extent, prepared) = match self.disk.extent(at, left, write) {
                Some(extent) => (extent, None),
                None => match if write { self.disk.prepare_write(at, left) } else { None } {
                    Some(prepared) => (prepared.extent, Some(prepared)),
                    None => {
                        result = self.in_place(request, at, left, write);
                        break;
                    }
                },
            };
            let vectors = if extent.len == total {
                whole.take().unwrap_or_default()
            } else {
                let mut vectors = self.spare.pop().unwrap_or_default();
                if let Some(whole) = &whole {
                    whole.cut(done, extent.len, &mut vectors);
                }
                vectors
            };
            if write && self.writes == Writes::Untried {
                self.writes = vectors.try_write(extent.fd, extent.offset);
            }
            self.prepared += usize::from(prepared.is_some());
            let action = if write { Action::Write(vectors, prepared) } else { Action::Read(vectors) };
            self.queue(Piece {
                request,
                fd: extent.fd,
                at: extent.offset,
                len: extent.len,
                offset: at,
                action,
            });
            done += extent.len;
        }
        if let Some(vectors) = whole {
            self.recycle(vectors);
        }
        self.end_piece(request, result);
    }

    /// Checks a transfer and finds its memory.
    fn map(&mut self, offset: u64, segments: &[Segment], write: bool) -> Result<Vectors, DiskError> {
        if write && self.disk.read_only() {
            return Err(DiskError::ReadOnly);
        }
        let mut vectors = self.spare.pop().unwrap_or_default();
        let mut total = 0u64;
        for slice in resolve(&self.mem, segments) {
            let slice = slice?;
            total = total.saturating_add(slice.len() as u64);
            // The guard only pins a mapping on Xen; here `mem` keeps the memory mapped.
            let iov_base = slice.ptr_guard_mut().as_ptr().cast();
            vectors.list.push(libc::iovec { iov_base, iov_len: slice.len() });
        }
        check_range(offset, Some(total), self.disk.size())?;
        Ok(vectors)
    }

    /// Does a part of a transfer through the disk.
    fn in_place(&mut self, request: usize, at: u64, len: u64, write: bool) -> Result<(), DiskError> {
        if write {
            self.settle();
        }
        let Some(request) = self.requests.get_mut(request) else { return Ok(()) };
        let bufs = resolve(&self.mem, &request.segments).collect::<Result<Vec<_>, _>>()?;
        let bufs = part(&bufs, at - request.offset, len);
        if write { self.disk.write_at(&bufs, at) } else { self.disk.read_at(&bufs, at) }
    }

    /// Adds an entry for the ring.
    fn queue(&mut self, piece: Piece) {
        if let Some(request) = self.requests.get_mut(piece.request) {
            request.pieces += 1;
        }
        let index = self.pieces.insert(piece);
        self.backlog.push_back(index);
    }

    /// Queues a request that is a single entry without data.
    fn control(&mut self, tag: u64, fd: RawFd, at: u64, len: u64, action: Action) {
        let request = self.requests.insert(Request {
            tag,
            offset: at,
            segments: Vec::new(),
            pieces: 0,
            result: Ok(()),
        });
        self.queue(Piece { request, fd, at, len, offset: at, action });
    }

    /// Does a discard or write-zeroes, through the ring if the disk is one file.
    fn change(&mut self, tag: u64, op: Op) {
        let (offset, len, mode) = match op {
            Op::Discard { offset, len } => (offset, len, PUNCH_HOLE),
            Op::WriteZeroes { offset, len, unmap: true } => (offset, len, PUNCH_HOLE),
            Op::WriteZeroes { offset, len, .. } => (offset, len, ZERO_RANGE),
            _ => (0, 0, 0),
        };
        let in_range = len > 0 && check_range(offset, Some(len), self.disk.size()).is_ok();
        match self.disk.flat_file() {
            Some(fd) if in_range && !self.disk.read_only() => {
                self.control(tag, fd, offset, len, Action::Fallocate(mode, op));
            }
            _ => {
                self.settle();
                let (result, segments) = execute(&*self.disk, &self.mem, op);
                self.tell(tag, result, segments);
            }
        }
    }

    /// Waits until no prepared write of ours is on its way.
    fn settle(&mut self) {
        while self.prepared > 0 {
            self.push();
            self.enter(usize::from(self.at_kernel > 0));
            self.reap();
        }
    }

    /// Moves the backlog into the submission ring, as far as it has room.
    fn push(&mut self) {
        let capacity = self.ring.submission().capacity();
        while self.at_kernel < capacity
            && let Some(&index) = self.backlog.front()
        {
            if let Some(piece) = self.pieces.get_mut(index) {
                let entry = piece.entry().user_data(index as u64);
                // SAFETY: the entry names an open file of `disk`, and memory of `mem` through
                // vectors that stay in `pieces`, at an address that does not change, until the
                // completion has been taken. Disk and memory outlive the ring's last completion:
                // `drop` waits for it.
                if unsafe { self.ring.submission().push(&entry) }.is_err() {
                    return;
                }
                self.at_kernel += 1;
            }
            self.backlog.pop_front();
        }
    }

    /// Tells the kernel of new entries and waits for `want` completions, or less long.
    fn enter(&mut self, want: usize) {
        loop {
            match self.ring.submit_and_wait(want) {
                Ok(_) => return,
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) =>
                {
                    // Entries that were not taken stay in the ring. If the kernel has others, their
                    // completion brings us back here.
                    if self.ring.submission().len() < self.at_kernel {
                        return;
                    }
                    std::thread::yield_now();
                }
                #[expect(
                    clippy::panic,
                    reason = "the kernel finds fault with our use of the ring, not with a request"
                )]
                Err(error) => panic!("io_uring_enter failed: {error}"),
            }
        }
    }

    /// Takes all completions.
    fn reap(&mut self) {
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { return };
            self.at_kernel -= 1;
            if let Ok(index) = usize::try_from(entry.user_data()) {
                self.complete(index, entry.result());
            }
        }
    }

    fn complete(&mut self, index: usize, code: i32) {
        let Some(piece) = self.pieces.get_mut(index) else { return };
        let result = match u64::try_from(code) {
            Ok(_) if matches!(piece.action, Action::Sync | Action::Fallocate(..)) => Ok(()),
            Ok(0) => Err(None),
            Ok(done) if done < piece.len => {
                piece.advance(done);
                return self.backlog.push_back(index);
            }
            Ok(_) => Ok(()),
            Err(_) if matches!(-code, libc::EINTR | libc::EAGAIN) => return self.backlog.push_back(index),
            Err(_) => Err(Some(io::Error::from_raw_os_error(-code))),
        };
        if let Some(piece) = self.pieces.remove(index) {
            self.finish(piece, result);
        }
    }

    /// Ends a piece. An error of `None` is the end of the file.
    fn finish(&mut self, piece: Piece, result: Result<(), Option<io::Error>>) {
        let Piece { request, len, offset, action, .. } = piece;
        let failed = |verb: &str, error: Option<io::Error>| {
            let error = error.unwrap_or_else(|| io::ErrorKind::WriteZero.into());
            DiskError::transfer(verb, len, offset, error)
        };
        let result = match (action, result) {
            (Action::Read(vectors), result) => {
                self.recycle(vectors);
                match result {
                    // What that means depends on the format.
                    Err(None) => self.in_place(request, offset, len, false),
                    result => result.map_err(|error| failed("read", error)),
                }
            }
            (Action::Write(vectors, prepared), result) => {
                self.recycle(vectors);
                if let Some(prepared) = prepared {
                    self.disk.finish_write(prepared, result.is_ok());
                    self.prepared -= 1;
                }
                result.map_err(|error| failed("write", error))
            }
            (Action::Sync, result) => result.map_err(|error| failed("flush", error)),
            (Action::Fallocate(..), Ok(())) => Ok(()),
            // Not every file system can do it this way.
            (Action::Fallocate(_, op), Err(_)) => execute(&*self.disk, &self.mem, op).0,
        };
        self.end_piece(request, result);
    }

    /// One piece of a request less. After the last the request is done.
    fn end_piece(&mut self, request: usize, result: Result<(), DiskError>) {
        let Some(state) = self.requests.get_mut(request) else { return };
        if state.result.is_ok() {
            state.result = result;
        }
        state.pieces -= 1;
        if state.pieces == 0
            && let Some(Request { tag, segments, result, .. }) = self.requests.remove(request)
        {
            self.tell(tag, result, segments);
        }
    }

    fn tell(&mut self, tag: u64, result: Result<(), DiskError>, mut segments: Vec<Segment>) {
        segments.clear();
        self.done.push_back(Completion { tag, result, segments });
    }

    fn recycle(&mut self, mut vectors: Vectors) {
        vectors.list.clear();
        vectors.skip = 0;
        self.spare.push(vectors);
    }
}

impl Piece {
    fn entry(&self) -> squeue::Entry {
        let fd = types::Fd(self.fd);
        match &self.action {
            Action::Read(vectors) => match vectors.left() {
                [one] => {
                    opcode::Read::new(fd, one.iov_base.cast(), len32(one.iov_len)).offset(self.at).build()
                }
                many => opcode::Readv::new(fd, many.as_ptr(), len32(many.len())).offset(self.at).build(),
            },
            Action::Write(vectors, _) => match vectors.left() {
                [one] => {
                    opcode::Write::new(fd, one.iov_base.cast(), len32(one.iov_len)).offset(self.at).build()
                }
                many => opcode::Writev::new(fd, many.as_ptr(), len32(many.len())).offset(self.at).build(),
            },
            Action::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Action::Fallocate(mode, _) => {
                opcode::Fallocate::new(fd, self.len).offset(self.at).mode(*mode).build()
            }
        }
    }

    /// Passes over what is done. `done` is less than what was left.
    fn advance(&mut self, done: u64) {
        self.at += done;
        self.offset += done;
        self.len -= done;
        if let Action::Read(vectors) | Action::Write(vectors, _) = &mut self.action {
            vectors.advance(done);
        }
    }
}

/// Lengths of vectors and of a chain fit 32 bits; if one did not, the transfer would be short.
fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl Vectors {
    fn left(&self) -> &[libc::iovec] {
        self.list.get(self.skip..).unwrap_or_default()
    }

    fn advance(&mut self, done: u64) {
        let mut done = done as usize;
        while let Some(vector) = self.list.get_mut(self.skip) {
            if done < vector.iov_len {
                vector.iov_base = vector.iov_base.wrapping_byte_add(done);
                vector.iov_len -= done;
                return;
            }
            done -= vector.iov_len;
            self.skip += 1;
        }
    }

    /// Tries to write without waiting. What it writes, the ring will write once more.
    fn try_write(&self, fd: RawFd, at: u64) -> Writes {
        let (vectors, Ok(at)) = (self.left(), i64::try_from(at)) else { return Writes::Untried };
        let count = i32::try_from(vectors.len()).unwrap_or(i32::MAX);
        // SAFETY: `vectors` is a live list of at least `count` entries, which name guest memory that
        // the engine keeps mapped; `fd` is an open file of its disk.
        let written = unsafe { libc::pwritev2(fd, vectors.as_ptr(), count, at, libc::RWF_NOWAIT) };
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::EOPNOTSUPP) if written < 0 => Writes::InPlace,
            _ => Writes::Ring,
        }
    }

    /// Copies the `len` bytes after the first `skip` into `into`.
    fn cut(&self, skip: u64, len: u64, into: &mut Vectors) {
        let (mut skip, mut len) = (skip as usize, len as usize);
        for vector in &self.list {
            let start = skip.min(vector.iov_len);
            let count = len.min(vector.iov_len - start);
            skip -= start;
            len -= count;
            if count > 0 {
                let iov_base = vector.iov_base.wrapping_byte_add(start);
                into.list.push(libc::iovec { iov_base, iov_len: count });
            }
        }
    }
}

impl Engine for UringEngine {
    fn submit(&mut self, tag: u64, op: Op) {
        self.in_flight += 1;
        match op {
            Op::Read { offset, segments } => self.transfer(tag, offset, segments, false),
            Op::Write { offset, segments } => self.transfer(tag, offset, segments, true),
            Op::Flush => match self.disk.flush_file() {
                Some(fd) => self.control(tag, fd, 0, 0, Action::Sync),
                None => {
                    let result = self.disk.flush();
                    self.tell(tag, result, Vec::new());
                }
            },
            op @ (Op::Discard { .. } | Op::WriteZeroes { .. }) => self.change(tag, op),
        }
    }

    fn kick(&mut self) {
        self.push();
        if !self.ring.submission().is_empty() {
            self.enter(0);
        }
    }

    fn poll(&mut self) -> Option<Completion> {
        if self.done.is_empty() {
            self.reap();
            // Rests of short transfers, and what the ring had no room for.
            self.kick();
        }
        let completion = self.done.pop_front()?;
        self.in_flight -= 1;
        Some(completion)
    }

    fn wait(&mut self) {
        self.reap();
        while self.done.is_empty() && self.in_flight > 0 {
            self.push();
            self.enter(1);
            self.reap();
        }
    }

    fn event_fd(&self) -> Option<RawFd> {
        Some(self.ring.as_raw_fd())
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn serve(&mut self, disk: Arc<dyn Disk>) {
        // Not one entry of the ring may name a file of the disk that goes.
        while self.in_flight > 0 {
            self.wait();
            while self.poll().is_some() {}
        }
        self.disk = disk;
        self.writes = Writes::Untried;
    }
}

impl Drop for UringEngine {
    /// The kernel must not be left with addresses of memory that goes away.
    fn drop(&mut self) {
        while self.at_kernel > 0 {
            self.enter(1);
            self.reap();
        }
        while let Some(index) = self.backlog.pop_front() {
            if let Some(Piece { action: Action::Write(_, Some(prepared)), .. }) = self.pieces.remove(index) {
                self.disk.finish_write(prepared, false);
            }
        }
    }
}
