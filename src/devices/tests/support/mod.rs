//! What the device tests share: a scratch disk and a network backend that sends frames back.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test program uses its part; failing is how it reports"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_devices::virtio::blk::{Blk, BlkConfig, Engines};
use kiln_devices::virtio::net::{
    Net, NetConfig, NetHeader, NicBackend, NicQueue, Offloads, Received, TxFrame, TxOutcome,
};
use kiln_disk::{Disk, RawDisk};
use kiln_model::MacAddr;
use vm_memory::{GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Hardware address of [`echo_net`].
pub const MAC: [u8; 6] = [0x02, 0, 0, 1, 2, 3];

/// A block device on an empty file of `sectors` sectors.
pub fn scratch_disk(mem: &GuestMemoryMmap, sectors: u64, queues: u16) -> Blk {
    let file = tempfile::tempfile().unwrap();
    file.set_len(sectors * 512).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RawDisk::new(file, false).unwrap());
    let config = BlkConfig { name: "blk0".into(), serial: "vol-0123".into(), throttle: None };
    Blk::new(config, &*disk, Engines::new(&disk, mem, queues).unwrap())
}

/// A network device whose frames come back.
pub fn echo_net(pairs: u16) -> Net {
    let config = NetConfig { name: "net0".into(), mac: MacAddr::new(MAC), mtu: 1500 };
    Net::new(config, Arc::new(EchoNic { pairs }))
}

struct EchoNic {
    pairs: u16,
}

impl NicBackend for EchoNic {
    fn queue_pairs(&self) -> u16 {
        self.pairs
    }
    fn offloads(&self) -> Offloads {
        Offloads::all()
    }
    fn configure(&self, _accepted: Offloads) -> io::Result<()> {
        Ok(())
    }
    fn set_active_pairs(&self, _pairs: u16) -> io::Result<()> {
        Ok(())
    }
    fn open(&self, _pair: u16) -> io::Result<Box<dyn NicQueue>> {
        Ok(Box::new(EchoQueue { frames: VecDeque::new(), readable: EventFd::new(EFD_NONBLOCK)? }))
    }
}

/// Most frames on their way back.
const MOST_FRAMES: usize = 16;

struct EchoQueue {
    frames: VecDeque<(NetHeader, Vec<u8>)>,
    readable: EventFd,
}

impl NicQueue for EchoQueue {
    fn transmit(&mut self, frame: &TxFrame<'_>, _now: Instant) -> TxOutcome {
        if self.frames.len() == MOST_FRAMES {
            return TxOutcome::Dropped;
        }
        let mut bytes = frame.head().to_vec();
        for rest in frame.rest {
            let start = bytes.len();
            bytes.resize(start + rest.len(), 0);
            rest.copy_to(&mut bytes[start..]);
        }
        self.frames.push_back((frame.header, bytes));
        let _ = self.readable.write(1);
        TxOutcome::Sent
    }

    fn receive(&mut self, bufs: &[VolatileSlice<'_>], _now: Instant) -> Received {
        let Some((header, frame)) = self.frames.pop_front() else {
            let _ = self.readable.read();
            return Received::Nothing;
        };
        let mut rest = &frame[..];
        for buf in bufs {
            let (now, later) = rest.split_at(rest.len().min(buf.len()));
            buf.copy_from(now);
            rest = later;
        }
        Received::Frame { header, len: frame.len(), local: false }
    }

    fn readable_fd(&self) -> Option<RawFd> {
        Some(self.readable.as_raw_fd())
    }

    fn has_reply(&self, _now: Instant) -> bool {
        false
    }

    fn deadline(&self, _now: Instant) -> Option<Duration> {
        None
    }
}
