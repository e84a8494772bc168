//! A network device (virtio 1.2 §5.1): one queue pair, frames whole, no offloads.

use super::{F_EVENT_IDX, NET, Part, Queue, Transport};
use crate::clock;
use crate::io;
use crate::memory::{self, Buffer};
use crate::pci::Function;
use crate::report::Outcome;

pub const RX: u16 = 0;
pub const TX: u16 = 1;
/// `struct virtio_net_hdr` with `num_buffers`, as VERSION_1 has it always.
pub const HEADER: usize = 12;
pub const F_MAC: u64 = 1 << 5;
pub const F_STATUS: u64 = 1 << 16;
/// `status` in the device configuration.
const STATUS: u64 = 6;
const S_LINK_UP: u16 = 1;

const BUFFER: usize = 2048;
const RX_BUFFERS: usize = 32;

pub struct Net {
    pub transport: Transport,
    pub rx: Queue,
    pub tx: Queue,
    pub mac: [u8; 6],
    rx_buffers: Buffer,
    tx_buffer: Buffer,
}

impl Net {
    /// Starts the `nth` network device and offers it buffers.
    pub fn start(nth: usize) -> Outcome<Self> {
        Self::start_on(Transport::find(NET, nth)?)
    }

    /// Starts the network device in this place.
    pub fn start_at(function: Function) -> Outcome<Self> {
        Self::start_on(Transport::of(function)?)
    }

    fn start_on(transport: Transport) -> Outcome<Self> {
        let features = transport.negotiate(F_MAC | F_STATUS | F_EVENT_IDX)?;
        let mut rx = transport.enable(RX, 64, features)?;
        let tx = transport.enable(TX, 64, features)?;
        transport.go()?;
        let mac = [0, 1, 2, 3, 4, 5].map(|at| io::read8(transport.device + at));
        let rx_buffers = memory::allocate(BUFFER * RX_BUFFERS);
        for n in 0..RX_BUFFERS {
            rx.set_desc(n as u16, Part::to_fill(rx_buffers.part(n * BUFFER, BUFFER)), 0);
            rx.offer(n as u16);
        }
        rx.publish();
        rx.kick();
        Ok(Net { transport, rx, tx, mac, rx_buffers, tx_buffer: memory::allocate(HEADER + BUFFER) })
    }

    /// Whether the device says that there is a link.
    pub fn link_up(&self) -> bool {
        io::read16(self.transport.device + STATUS) & S_LINK_UP != 0
    }

    /// Sends a frame and waits until the device has taken it.
    pub fn send(&mut self, frame: &[u8]) -> Outcome {
        let len = HEADER + frame.len();
        self.tx_buffer.part(0, HEADER).fill(0);
        self.tx_buffer.write(HEADER, frame);
        self.tx.submit(&[Part::out(self.tx_buffer.part(0, len))]);
        self.tx.wait_used(5000)?;
        Ok(())
    }

    /// Waits for a frame that `wanted` accepts, and drops others.
    pub fn receive<T>(&mut self, ms: u64, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        clock::poll(ms, || {
            let used = self.rx.take_used()?;
            let at = used.id as usize % RX_BUFFERS * BUFFER;
            let len = (used.len as usize).clamp(HEADER, BUFFER);
            let found = wanted(&self.rx_buffers.part(at, len).bytes()[HEADER..]);
            self.rx.offer(used.id as u16);
            self.rx.publish();
            self.rx.kick_if_wanted();
            found
        })
    }
}
