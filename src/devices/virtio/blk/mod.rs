//! Virtio block device (virtio 1.2 §5.2).
//!
//! ```text
//!  avail ring ─▶ chain ─▶ request::parse ─▶ Engine::submit … kick (one per batch)
//!                 │ broken        │ refused                │
//!                 ▼               ▼                        ▼
//!           NEEDS_RESET       status byte ◀───────── Engine::poll
//!                                 └─▶ used ring ─▶ interrupt (one per batch)
//! ```
//!
//! Each queue has a worker of its own on a thread of its own. Workers share the disk and the
//! counters, nothing else. The engines are made before any system call filter; they go to the workers at activation and come back when a worker is drained. A device that
//! replaces another in front of the same disk takes over its engines.

mod config;
mod counters;
#[cfg(any(test, feature = "test-utils"))]
pub mod fuzzing;
pub mod request;
mod worker;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_disk::engine::{Engine, new_engine, park};
use kiln_disk::throttle::Throttle;
use kiln_disk::{Disk, DiskError};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::GuestMemoryMmap;

use super::{ActivateError, Activation, QueueWorker, VirtioDevice};
use config::ConfigSpace;
use counters::Counters;
use request::Limits;
use worker::BlkQueue;

/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 256;

/// Most queues a device may have.
pub const MAX_QUEUES: u16 = 16;

/// Data segments of one request: a queue's worth of descriptors without header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;

/// How a block device looks to its guest.
#[derive(Debug)]
pub struct BlkConfig {
    /// For logs and threads, such as `blk0`.
    pub name: String,
    /// Serial number; the first 20 bytes count (§5.2.6, VIRTIO_BLK_T_GET_ID).
    pub serial: String,
    /// Limits all queues together.
    pub throttle: Option<Throttle>,
}

/// A virtio block device.
pub struct Blk {
    features: u64,
    config: ConfigSpace,
    queue_sizes: Vec<u16>,
    shared: Arc<Shared>,
}

/// What the queues of one device have in common.
struct Shared {
    name: String,
    serial: [u8; ID_LEN],
    capacity: Capacity,
    read_only: bool,
    counters: Counters,
    throttle: Option<Mutex<Throttle>>,
    engines: Arc<Engines>,
}

/// Size of a disk as its guest is told. Whoever makes the disk larger says so here, and then has the device
/// tell its driver: see [`super::VirtioPci::config_changed`].
#[derive(Debug, Clone)]
pub struct Capacity(Arc<AtomicU64>);

impl Capacity {
    fn bytes(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// The disk has this many bytes now. Call it with the device locked, so that a driver never reads half of
    /// an old size and half of a new one.
    pub fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Release);
    }
}

impl Shared {
    fn limits(&self) -> Limits {
        Limits { size: self.capacity.bytes(), read_only: self.read_only }
    }
}

/// The engines of one disk that serve no queue at the moment. They outlive the device, and hold all
/// that its queues need from the host.
pub struct Engines {
    queues: u16,
    idle: Mutex<Vec<Box<dyn Engine>>>,
}

impl Engines {
    /// One engine per queue, clamped to 1 to [`MAX_QUEUES`], for a guest with `mem`.
    pub fn new(disk: &Arc<dyn Disk>, mem: &GuestMemoryMmap, queues: u16) -> Result<Arc<Self>, DiskError> {
        let queues = queues.clamp(1, MAX_QUEUES);
        let idle = (0..queues)
            .map(|_| new_engine(Arc::clone(disk), mem.clone(), QUEUE_SIZE))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Arc::new(Engines { queues, idle: Mutex::new(idle) }))
    }

    /// Engines that were made before, one per queue: at least one and at most [`MAX_QUEUES`].
    pub fn of(engines: Vec<Box<dyn Engine>>) -> Arc<Self> {
        let queues = u16::try_from(engines.len()).unwrap_or(MAX_QUEUES).clamp(1, MAX_QUEUES);
        Arc::new(Engines { queues, idle: Mutex::new(engines) })
    }

    /// Takes the disk from the engines that are idle: from now on a device that they serve answers every
    /// request with an error.
    pub fn park(&self) {
        self.idle().iter_mut().for_each(|engine| park(&mut **engine));
    }

    /// Takes all engines that are idle, for another disk. Those of a device that has been reset are.
    pub fn take(&self) -> Vec<Box<dyn Engine>> {
        std::mem::take(&mut *self.idle())
    }

    /// Number of engines, idle or not: the most queues that a device can have.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Box<dyn Engine>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blk {
    /// A device on `disk` with as many queues as there are `engines`, which no other device uses.
    pub fn new(config: BlkConfig, disk: &dyn Disk, engines: Arc<Engines>) -> Self {
        let queues = engines.queues();
        let mut features = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_MQ;
        features |= if disk.read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };

        let mut serial = [0; ID_LEN];
        for (to, from) in serial.iter_mut().zip(config.serial.bytes()) {
            *to = from;
        }
        Self {
            features,
            config: ConfigSpace::new(disk, queues, SEG_MAX),
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
            shared: Arc::new(Shared {
                name: config.name,
                serial,
                capacity: Capacity(Arc::new(AtomicU64::new(disk.size()))),
                read_only: disk.read_only(),
                counters: Counters::default(),
                throttle: config.throttle.map(Mutex::new),
                engines,
            }),
        }
    }

    /// To make the device larger.
    pub fn capacity(&self) -> Capacity {
        self.shared.capacity.clone()
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &str {
        &self.shared.name
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(self.shared.capacity.bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn QueueWorker>>, ActivateError> {
        let Activation { mem, features, queues, fault } = activation;
        // A driver that cannot flush expects completed writes to be durable (§5.2.6.2).
        let write_through = features & (1 << VIRTIO_BLK_F_FLUSH) == 0 && !self.shared.read_only;
        queues
            .into_iter()
            .map(|virtqueue| {
                let engine = self.shared.engines.idle().pop().ok_or_else(|| ActivateError::Host {
                    action: "taking a disk engine that is in use",
                    source: io::ErrorKind::ResourceBusy.into(),
                })?;
                let worker = BlkQueue::new(
                    virtqueue,
                    mem.clone(),
                    fault.clone(),
                    engine,
                    Arc::clone(&self.shared),
                    write_through,
                );
                Ok(Box::new(worker) as Box<dyn QueueWorker>)
            })
            .collect()
    }

    fn counters(&self, out: &mut Vec<(&'static str, u64)>) {
        self.shared.counters.list(out);
    }
}

#[cfg(test)]
mod tests;
