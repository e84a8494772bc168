//! What is behind a network device: a tap, link-local services, or a fake.

use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use vm_memory::VolatileSlice;

use super::features::Offloads;
use super::header::{HEADER_LEN, NetHeader};

/// Bytes of a frame that are copied before anything is decided about it: Ethernet with a VLAN tag,
/// the longest IPv4 header, the longest TCP header.
pub const FRAME_HEAD: usize = 138;

/// The host side of one network interface. Shared by its queue pairs.
pub trait NicBackend: Send + Sync {
    /// Number of queue pairs, 1 to [`super::MAX_QUEUE_PAIRS`].
    fn queue_pairs(&self) -> u16;

    /// Offloads it can take over in both directions.
    fn offloads(&self) -> Offloads;

    /// Whether there is a link. Whoever changes that has the driver told.
    fn link_up(&self) -> bool {
        true
    }

    /// From now on frames to the guest need only these of [`NicBackend::offloads`]. Called at
    /// activation, before any queue is opened. Does not block.
    fn configure(&self, accepted: Offloads) -> io::Result<()>;

    /// Frames go to and come from the first `pairs` queue pairs only. Does not block.
    fn set_active_pairs(&self, pairs: u16) -> io::Result<()>;

    /// Opens the data path of one queue pair; once per pair and activation.
    fn open(&self, pair: u16) -> io::Result<Box<dyn NicQueue>>;
}

/// The data path of one queue pair. No method blocks.
pub trait NicQueue: Send {
    /// Takes a frame from the guest. A frame that the host cannot take now is lost, as on a wire.
    fn transmit(&mut self, frame: &TxFrame<'_>, now: Instant) -> TxOutcome;

    /// Puts the next frame for the guest into `bufs`, without the virtio-net header.
    fn receive(&mut self, bufs: &[VolatileSlice<'_>], now: Instant) -> Received;

    /// Readable when [`NicQueue::receive`] may have something. May change to `None` when the host
    /// side has gone away.
    fn readable_fd(&self) -> Option<RawFd>;

    /// Whether [`NicQueue::receive`] has something that `readable_fd` does not tell of.
    fn has_reply(&self, now: Instant) -> bool;

    /// When [`NicQueue::has_reply`] becomes true by itself, from now.
    fn deadline(&self, now: Instant) -> Option<Duration>;
}

/// A frame on its way out. Its head is a private copy, so that what was decided on is what is sent
/// even if the guest rewrites its memory meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct TxFrame<'a> {
    /// The sanitised header.
    pub header: NetHeader,
    /// The wire form of `header`, then the first bytes of the frame.
    pub copy: &'a [u8],
    /// What follows, in guest memory. Never to be looked at before it is sent.
    pub rest: &'a [VolatileSlice<'a>],
    /// Length of the frame in bytes, without the header.
    pub len: usize,
}

impl TxFrame<'_> {
    /// The first bytes of the frame: all of it, or at least [`FRAME_HEAD`] bytes.
    pub fn head(&self) -> &[u8] {
        self.copy.get(HEADER_LEN..).unwrap_or_default()
    }
}

/// What became of a frame from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxOutcome {
    /// It is on the wire.
    Sent,
    /// A service on the link took it.
    Local,
    /// It is lost: the host refused it, or there is nowhere to send it.
    Dropped,
}

/// What [`NicQueue::receive`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// No frame now.
    Nothing,
    /// A frame is in the buffers.
    Frame {
        /// Its header.
        header: NetHeader,
        /// Its length. More than the buffers hold means that its end is lost.
        len: usize,
        /// It comes from a service on the link.
        local: bool,
    },
    /// A frame was lost.
    Lost,
}
