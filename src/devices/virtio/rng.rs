//! Entropy device (virtio 1.2 §5.4): one queue of buffers to fill with random bytes.
//!
//! Bytes come from the host's `getrandom`, which does not block once the host has booted. A guest
//! can ask for as much as it likes and gets it in small portions: a request is cut at 64 KiB, a wake
//! at 256 KiB, after which other workers of the event loop have their turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use virtio_queue::{QueueState, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::{
    ActivateError, Activation, DeviceFault, Placement, QueueWorker, VirtioDevice, Virtqueue, Wake, WakeSource,
};
use std::os::fd::AsRawFd;

const DEVICE_TYPE: u32 = 4;
const QUEUE_SIZES: [u16; 1] = [64];
/// Most bytes for one request.
const MAX_REQUEST: usize = 64 << 10;
/// Most bytes for one wake.
const MAX_WAKE: usize = 256 << 10;
/// Most requests for one wake: empty ones cost time as well.
const MAX_WAKE_REQUESTS: usize = 64;
/// Bytes drawn at a time.
const PORTION: usize = 4 << 10;

#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    bad_requests: AtomicU64,
}

/// The device.
pub struct Rng {
    name: String,
    counters: Arc<Counters>,
}

impl Rng {
    /// `name` is for logs and counters.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), counters: Arc::default() }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// There is no configuration space.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn QueueWorker>>, ActivateError> {
        let Activation { mem, queues, fault, .. } = activation;
        let vq = queues.into_iter().next().ok_or(ActivateError::MissingQueue(0))?;
        let counters = self.counters.clone();
        Ok(vec![Box::new(RngWorker { name: self.name.clone(), mem, vq, fault, counters, broken: false })])
    }

    fn counters(&self, out: &mut Vec<(&'static str, u64)>) {
        let Counters { requests, bytes, bad_requests } = &*self.counters;
        let all = [("requests", requests), ("bytes", bytes), ("bad_requests", bad_requests)];
        out.extend(all.map(|(name, value)| (name, value.load(Ordering::Relaxed))));
    }
}

struct RngWorker {
    name: String,
    mem: GuestMemoryMmap,
    vq: Virtqueue,
    fault: DeviceFault,
    counters: Arc<Counters>,
    broken: bool,
}

impl RngWorker {
    fn serve(&mut self) {
        if self.broken {
            return;
        }
        if let Err(error) = self.fill_available() {
            tracing::debug!(device = self.name, %error, "rings are broken");
            self.broken = true;
            self.fault.raise();
        }
    }

    fn fill_available(&mut self) -> Result<(), virtio_queue::Error> {
        let Self { mem, vq, counters, .. } = self;
        let (mut bytes, mut requests) = (0, 0);
        let exhausted = loop {
            while bytes < MAX_WAKE && requests < MAX_WAKE_REQUESTS {
                let Some(chain) = vq.pop(mem)? else { break };
                let head = chain.head_index();
                let filled = fill(mem, chain.writable().map(|d| (d.addr(), d.len() as usize)));
                if filled == 0 {
                    counters.bad_requests.fetch_add(1, Ordering::Relaxed);
                }
                // At most MAX_REQUEST.
                vq.queue.add_used(mem, head, filled as u32)?;
                bytes += filled;
                requests += 1;
            }
            if bytes >= MAX_WAKE || requests >= MAX_WAKE_REQUESTS {
                break true;
            }
            if !vq.queue.enable_notification(mem)? {
                break false;
            }
        };
        counters.requests.fetch_add(requests as u64, Ordering::Relaxed);
        counters.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if requests > 0 {
            vq.signal(mem)?;
        }
        if exhausted {
            // Come back for the rest after the others.
            let _ = vq.kick.write(1);
        }
        Ok(())
    }
}

/// Fills buffers and returns how many bytes, from the first on, are random. Ends early at a buffer
/// outside of guest memory.
fn fill(mem: &GuestMemoryMmap, buffers: impl Iterator<Item = (vm_memory::GuestAddress, usize)>) -> usize {
    let mut portion = [0; PORTION];
    let mut filled = 0;
    for (addr, len) in buffers {
        let len = len.min(MAX_REQUEST - filled);
        let mut done = 0;
        while done < len {
            let now = &mut portion[..PORTION.min(len - done)];
            let Some(at) = addr.0.checked_add(done as u64) else { return filled };
            if getrandom::fill(now).is_err() || mem.write_slice(now, vm_memory::GuestAddress(at)).is_err() {
                return filled;
            }
            done += now.len();
            filled += now.len();
        }
    }
    filled
}

impl QueueWorker for RngWorker {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn placement(&self) -> Placement {
        Placement::EventLoop
    }

    fn wake_sources(&self) -> Vec<WakeSource> {
        vec![WakeSource { fd: self.vq.kick.as_raw_fd(), writable: false, token: 0 }]
    }

    fn started(&mut self, _now: Instant) {
        self.serve();
    }

    fn wake(&mut self, _token: u32, _now: Instant) -> Wake {
        let _ = self.vq.kick.read();
        self.serve();
        Wake::Continue
    }

    fn drain(self: Box<Self>) -> Vec<(u16, QueueState)> {
        vec![(self.vq.index, self.vq.queue.state())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Buffer, GuestDriver, GuestQueue, TestMachine, status};

    const QUEUE: u64 = 0x1_0000;
    const BUFFER: u64 = 0x10_0000;

    fn start() -> (TestMachine, GuestDriver, GuestQueue) {
        let (machine, driver) = TestMachine::with_device(Rng::new("rng0"));
        let (_, mut queues) = driver.start(&machine, u64::MAX, QUEUE);
        let queue = queues.remove(0);
        (machine, driver, queue)
    }

    fn counters(machine: &TestMachine) -> [u64; 3] {
        let mut all = Vec::new();
        machine.devices[0].lock().unwrap().counters(&mut all);
        ["requests", "bytes", "bad_requests"].map(|name| all.iter().find(|(n, _)| *n == name).unwrap().1)
    }

    fn bytes(machine: &TestMachine, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        machine.mem.read_slice(&mut bytes, vm_memory::GuestAddress(at)).unwrap();
        bytes
    }

    #[test]
    fn buffers_are_filled_up_to_the_cap_and_not_beyond() {
        let (machine, driver, mut queue) = start();
        queue.add(&[Buffer::writable(BUFFER, 40_000), Buffer::writable(BUFFER + 0x1_0000, 40_000)]);
        driver.kick(&machine, 0);
        machine.run();
        assert_eq!(queue.poll_used(), Some((0, 65_536)));
        assert_eq!(driver.interrupts(&machine), [0x41]);
        for piece in [0, 39_900, 0x1_0000, 0x1_0000 + 65_536 - 40_000 - 100] {
            assert_ne!(bytes(&machine, BUFFER + piece, 100), [0; 100], "{piece}");
        }
        assert_eq!(bytes(&machine, BUFFER + 40_000, 100), [0; 100]);
        assert_eq!(bytes(&machine, BUFFER + 0x1_0000 + 65_536 - 40_000, 100), [0; 100]);
        assert_eq!(counters(&machine), [1, 65_536, 0]);
    }

    #[test]
    fn one_wake_does_a_bounded_amount_and_the_rest_follows() {
        let (machine, driver, mut queue) = start();
        for _ in 0..10 {
            queue.add(&[Buffer::writable(BUFFER, 65_536)]);
        }
        driver.kick(&machine, 0);
        // At most so much after one wake; `run` goes on until nothing is left.
        machine.workers.run_until(|| queue.used_idx() > 0);
        assert_eq!(usize::from(queue.used_idx()), MAX_WAKE / MAX_REQUEST);
        machine.run();
        assert_eq!(queue.used_idx(), 10);
        assert_eq!(counters(&machine), [10, 655_360, 0]);
    }

    #[test]
    fn requests_without_room_come_back_empty() {
        let (machine, driver, mut queue) = start();
        let before = bytes(&machine, BUFFER, 64);
        queue.add(&[Buffer::readable(BUFFER, 64)]);
        queue.add(&[Buffer::writable(0xffff_ffff_ffff_f000, 0x2000)]);
        queue.add(&[Buffer::writable(BUFFER, 0)]);
        queue.add(&[Buffer::writable((16 << 20) - 8, 16)]);
        driver.kick(&machine, 0);
        machine.run();
        let used: Vec<_> = std::iter::from_fn(|| queue.poll_used()).map(|(_, len)| len).collect();
        assert_eq!(used, [0; 4]);
        assert_eq!(counters(&machine), [4, 0, 4]);
        assert_eq!(bytes(&machine, BUFFER, 64), before);
        assert_eq!(driver.status(&machine) & status::DEVICE_NEEDS_RESET, 0);
    }
}
