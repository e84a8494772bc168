//! A device for tests: what the driver gives it to read, it writes back.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use virtio_queue::{QueueState, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use crate::virtio::{
    ActivateError, Activation, DeviceFault, Placement, QueueWorker, VirtioDevice, Virtqueue, Wake, WakeSource,
};

/// A feature bit of no meaning.
pub const LOOPBACK_FEATURE: u64 = 1 << 7;
/// Most bytes copied for one chain.
const MAX_COPY: usize = 64 << 10;

/// What happened to a [`Loopback`].
#[derive(Default)]
pub struct LoopbackLog {
    /// Number of activations.
    pub activations: AtomicU32,
    /// Number of resets.
    pub resets: AtomicU32,
    /// Features of the last activation.
    pub features: AtomicU64,
    /// Queues of the last activation.
    pub queues: Mutex<Vec<u16>>,
    /// Refuse to activate.
    pub refuse: std::sync::atomic::AtomicBool,
}

/// The device. Its configuration space has 16 writable bytes.
pub struct Loopback {
    name: String,
    sizes: Vec<u16>,
    config: [u8; 16],
    log: Arc<LoopbackLog>,
}

impl Loopback {
    /// A device with queues of these sizes.
    pub fn new(name: &str, sizes: &[u16]) -> Self {
        Self { name: name.into(), sizes: sizes.into(), config: [0; 16], log: Arc::default() }
    }

    /// Where it records what happens to it.
    pub fn log(&self) -> Arc<LoopbackLog> {
        self.log.clone()
    }
}

impl VirtioDevice for Loopback {
    fn device_type(&self) -> u32 {
        0x3f
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        LOOPBACK_FEATURE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = self.config.get(offset as usize..).unwrap_or(&[]);
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let to = self.config.get_mut(offset as usize..).unwrap_or(&mut []);
        to.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn QueueWorker>>, ActivateError> {
        if self.log.refuse.load(Ordering::Relaxed) {
            return Err(ActivateError::MissingQueue(0));
        }
        let Activation { mem, features, queues, fault } = activation;
        self.log.activations.fetch_add(1, Ordering::Relaxed);
        self.log.features.store(features, Ordering::Relaxed);
        *self.log.queues.lock().unwrap() = queues.iter().map(|vq| vq.index).collect();
        Ok(queues
            .into_iter()
            .map(|vq| -> Box<dyn QueueWorker> {
                let name = format!("{}-q{}", self.name, vq.index);
                Box::new(LoopbackWorker { name, mem: mem.clone(), vq, fault: fault.clone(), broken: false })
            })
            .collect())
    }

    fn reset(&mut self) {
        self.log.resets.fetch_add(1, Ordering::Relaxed);
    }

    fn counters(&self, out: &mut Vec<(&'static str, u64)>) {
        out.push(("loopback_activations", self.log.activations.load(Ordering::Relaxed).into()));
    }
}

struct LoopbackWorker {
    name: String,
    mem: GuestMemoryMmap,
    vq: Virtqueue,
    fault: DeviceFault,
    broken: bool,
}

impl LoopbackWorker {
    fn serve(&mut self) -> Result<(), virtio_queue::Error> {
        let Self { mem, vq, .. } = self;
        loop {
            let mut served = 0;
            while let Some(chain) = vq.pop(mem)? {
                let head = chain.head_index();
                let mut bytes = Vec::new();
                for descriptor in chain.clone().readable() {
                    let mut piece = vec![0; (descriptor.len() as usize).min(MAX_COPY - bytes.len())];
                    if mem.read_slice(&mut piece, descriptor.addr()).is_ok() {
                        bytes.append(&mut piece);
                    }
                }
                let mut written = 0;
                for descriptor in chain.writable() {
                    let rest = &bytes[written..];
                    let piece = &rest[..rest.len().min(descriptor.len() as usize)];
                    if mem.write_slice(piece, descriptor.addr()).is_err() {
                        break;
                    }
                    written += piece.len();
                }
                vq.queue.add_used(mem, head, written as u32)?;
                served += 1;
                // A driver that refills while we drain must not keep us here for ever.
                if served > vq.queue.size() {
                    let _ = vq.kick.write(1);
                    return vq.signal(mem);
                }
            }
            if served > 0 {
                vq.signal(mem)?;
            }
            if !vq.queue.enable_notification(mem)? {
                return Ok(());
            }
        }
    }
}

impl QueueWorker for LoopbackWorker {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn placement(&self) -> Placement {
        Placement::EventLoop
    }

    fn wake_sources(&self) -> Vec<WakeSource> {
        vec![WakeSource { fd: self.vq.kick.as_raw_fd(), writable: false, token: 0 }]
    }

    fn started(&mut self, now: Instant) {
        self.wake(0, now);
    }

    fn wake(&mut self, _token: u32, _now: Instant) -> Wake {
        let _ = self.vq.kick.read();
        if !self.broken && self.serve().is_err() {
            self.broken = true;
            self.fault.raise();
        }
        Wake::Continue
    }

    fn drain(self: Box<Self>) -> Vec<(u16, QueueState)> {
        vec![(self.vq.index, self.vq.queue.state())]
    }
}
