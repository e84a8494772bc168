//! Network device (virtio 1.2 §5.1).
//!
//! ```text
//!            queue pair k (one worker on an event loop)
//!  driver ── tx ──▶ chain ─▶ private copy of headers ─▶ NicBackend ─▶ tap (writev)
//!                                                       │
//!                                                       └▶ link-local services, answered in place
//!  driver ◀─ rx ─── merged buffers ◀── readv straight into guest memory ◀── tap
//!                                  ◀── replies of the services (copied)
//! ```
//!
//! Queues are numbered rx0, tx0, rx1, tx1, …, and the control queue is last. Which is last depends
//! on negotiation (§5.1.2): without `VIRTIO_NET_F_MQ` it is queue 2, however many there are.
//!
//! Nothing here decides where a frame may go. A frame's header and first bytes are copied once,
//! checked, and sent from that copy, so that no later write by the guest can change what the
//! backend has decided on.

mod backend;
mod chain;
mod control;
mod counters;
mod features;
mod header;
mod limit;
mod ring;
mod rx;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
mod tx;
mod worker;

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use kiln_disk::throttle::Throttle;
use kiln_model::MacAddr;

pub use backend::{FRAME_HEAD, NicBackend, NicQueue, Received, TxFrame, TxOutcome};
pub use features::Offloads;
pub use header::{
    HEADER_LEN, HeaderError, MAX_FRAME, MIN_FRAME, NetHeader, VIRTIO_NET_HDR_F_DATA_VALID,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
};

use super::{ActivateError, Activation, QueueWorker, VirtioDevice, Virtqueue};
use control::Control;
use counters::Counters;
use features::Negotiated;
use limit::{Limit, SharedThrottle};
use ring::Ring;
use rx::Rx;
use tx::Tx;
use worker::{PairWorker, Shared};

/// Device type of virtio 1.2 §5.1.1.
pub const VIRTIO_ID_NET: u32 = 1;
/// Most queue pairs of one device.
pub const MAX_QUEUE_PAIRS: u16 = 8;
/// Size of each receive and transmit queue.
const QUEUE_SIZE: u16 = 256;
/// Size of the control queue.
const CONTROL_QUEUE_SIZE: u16 = 64;
/// Smallest and largest `mtu` that a driver understands (virtio 1.2 §5.1.4.1).
const MTU_RANGE: std::ops::RangeInclusive<u16> = 68..=65_535;
/// `status` bit: the link is up.
const VIRTIO_NET_S_LINK_UP: u16 = 1;
/// Where `status` is in the configuration space.
const STATUS_AT: usize = 6;

/// What a network device is made of.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Short name for logs, such as `net0`.
    pub name: String,
    /// Hardware address of the guest's interface.
    pub mac: MacAddr,
    /// Largest IP packet in bytes, at least 68.
    pub mtu: u16,
}

/// A network device.
pub struct Net {
    name: String,
    backend: Arc<dyn NicBackend>,
    queue_pairs: u16,
    queue_sizes: Vec<u16>,
    mtu: u16,
    config: [u8; 12],
    counters: Arc<Counters>,
    /// Pairs in use, 1 until the driver asks for more; outlives a pause.
    active_pairs: Arc<AtomicU16>,
    tx_limit: Option<SharedThrottle>,
    rx_limit: Option<SharedThrottle>,
}

impl Net {
    /// A device in front of `backend`.
    pub fn new(config: NetConfig, backend: Arc<dyn NicBackend>) -> Self {
        let queue_pairs = backend.queue_pairs().clamp(1, MAX_QUEUE_PAIRS);
        let mut queue_sizes = vec![QUEUE_SIZE; usize::from(queue_pairs) * 2];
        if queue_pairs > 1 {
            queue_sizes.push(CONTROL_QUEUE_SIZE);
        }
        let mtu = config.mtu.clamp(*MTU_RANGE.start(), *MTU_RANGE.end());
        Net {
            name: config.name,
            queue_pairs,
            queue_sizes,
            mtu,
            config: config_space(config.mac, queue_pairs, mtu),
            counters: Arc::new(Counters::default()),
            active_pairs: Arc::new(AtomicU16::new(1)),
            backend,
            tx_limit: None,
            rx_limit: None,
        }
    }

    /// The same with limits on frames and bytes from and to the guest. What is over a limit waits: in
    /// the guest's ring, or with the backend.
    #[must_use]
    pub fn with_limits(self, tx: Option<Throttle>, rx: Option<Throttle>) -> Self {
        let shared = |throttle: Option<Throttle>| throttle.map(|throttle| Arc::new(Mutex::new(throttle)));
        Net { tx_limit: shared(tx), rx_limit: shared(rx), ..self }
    }

    /// Opens the backend and makes one worker per enabled queue pair.
    fn workers(
        &self,
        activation: Activation,
        negotiated: Negotiated,
    ) -> Result<Vec<Box<dyn QueueWorker>>, ActivateError> {
        let host = |action| move |source: io::Error| ActivateError::Host { action, source };
        let Activation { mem, queues, fault, .. } = activation;
        let pairs = if negotiated.multi_queue { self.queue_pairs } else { 1 };
        let mut queues = Queues(queues.into_iter().map(|q| (q.index, q)).collect());

        let control = negotiated.control.then(|| queues.take(pairs * 2)).flatten();
        let mut rings = Vec::new();
        for pair in 0..pairs {
            let (rx, tx) = (pair * 2, pair * 2 + 1);
            match (queues.take(rx), queues.take(tx)) {
                (Some(rx), Some(tx)) => rings.push((pair, rx, tx)),
                // A driver may leave later pairs alone, and then must not select them.
                _ if pair > 0 => break,
                (None, _) => return Err(ActivateError::MissingQueue(rx)),
                (_, None) => return Err(ActivateError::MissingQueue(tx)),
            }
        }

        self.backend
            .configure(negotiated.to_guest)
            .map_err(host("setting the offloads of the host interface"))?;
        let max_pairs = u16::try_from(rings.len()).unwrap_or(1);
        let active = self.active_pairs.load(Ordering::Acquire).min(max_pairs);
        self.active_pairs.store(active, Ordering::Release);
        self.backend.set_active_pairs(active).map_err(host("selecting the queues of the host interface"))?;
        let mut pokes = Vec::new();
        let mut poke_readers = Vec::new();
        for _ in &rings {
            let poke = eventfd().map_err(host("creating an event descriptor"))?;
            poke_readers.push(poke.try_clone().map_err(host("duplicating an event descriptor"))?);
            pokes.push(poke);
        }
        let shared = Arc::new(Shared {
            mem,
            backend: Arc::clone(&self.backend),
            counters: Arc::clone(&self.counters),
            active_pairs: Arc::clone(&self.active_pairs),
            pokes,
            max_pairs,
            fault,
        });

        let mut control = control.map(|queue| Control::new(Ring::new(queue, negotiated.event_idx)));
        let mut workers: Vec<Box<dyn QueueWorker>> = Vec::new();
        for ((pair, rx, tx), poke) in rings.into_iter().zip(poke_readers) {
            let queue = self.backend.open(pair).map_err(host("opening a queue of the host interface"))?;
            workers.push(Box::new(PairWorker {
                name: format!("{}-q{pair}", self.name),
                pair,
                shared: Arc::clone(&shared),
                rx: Rx::new(
                    Ring::new(rx, negotiated.event_idx),
                    negotiated,
                    self.mtu,
                    Limit::new(self.rx_limit.clone()),
                ),
                tx: Tx::new(
                    Ring::new(tx, negotiated.event_idx),
                    negotiated.from_guest,
                    Limit::new(self.tx_limit.clone()),
                ),
                control: control.take(),
                queue,
                poke,
                waits_on: None,
                dead: false,
            }));
        }
        Ok(workers)
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        features::offered(self.backend.offloads(), self.queue_pairs)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let Ok(offset) = usize::try_from(offset) else { return };
        let mut config = self.config;
        if let Some(status) = config.get_mut(STATUS_AT)
            && !self.backend.link_up()
        {
            *status &= !VIRTIO_NET_S_LINK_UP.to_le_bytes()[0];
        }
        let Some(source) = config.get(offset..) else { return };
        for (byte, value) in data.iter_mut().zip(source) {
            *byte = *value;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn QueueWorker>>, ActivateError> {
        let negotiated = Negotiated::new(activation.features);
        tracing::debug!(device = %self.name, ?negotiated, "driver is ready");
        self.workers(activation, negotiated)
    }

    fn reset(&mut self) {
        self.active_pairs.store(1, Ordering::Release);
    }

    fn counters(&self, out: &mut Vec<(&'static str, u64)>) {
        self.counters.list(out);
    }
}

/// The enabled queues by index.
struct Queues(std::collections::BTreeMap<u16, Virtqueue>);

impl Queues {
    fn take(&mut self, index: u16) -> Option<Virtqueue> {
        self.0.remove(&index)
    }
}

fn eventfd() -> io::Result<vmm_sys_util::eventfd::EventFd> {
    vmm_sys_util::eventfd::EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK)
}

/// `struct virtio_net_config` (virtio 1.2 §5.1.4): mac, status, max_virtqueue_pairs, mtu.
fn config_space(mac: MacAddr, queue_pairs: u16, mtu: u16) -> [u8; 12] {
    let [a, b, c, d, e, f] = mac.octets();
    let [status0, status1] = VIRTIO_NET_S_LINK_UP.to_le_bytes();
    let [pairs0, pairs1] = queue_pairs.to_le_bytes();
    let [mtu0, mtu1] = mtu.to_le_bytes();
    [a, b, c, d, e, f, status0, status1, pairs0, pairs1, mtu0, mtu1]
}

#[cfg(test)]
mod tests;
