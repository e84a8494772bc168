//! The seam between a virtio device, its transport and the threads that serve its queues.
//!
//! ```text
//!  transport                       device                        host of workers (vmm, or a test)
//!    │ DRIVER_OK: activate(queues) ──▶ │
//!    │ ◀── workers, one or more queues each
//!    │ ── start(worker) ──────────────────────────────────────────▶ │ waits on wake_sources()
//!    │                                                              │ wake(token) …
//!    │ status = 0, pause or snapshot: handle.stop() ──────────────▶ │ drain()
//!    │ ◀── queue states ────────────────────────────────────────────│
//! ```
//!
//! Between `activate` and `stop` the transport does not touch a queue, and the device keeps only
//! what it shares with its workers. Queue registers are therefore frozen by ownership.

use std::any::Any;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// A virtio device without its transport: it knows neither PCI nor KVM.
pub trait VirtioDevice: Send {
    /// Device type of virtio 1.2 §5.
    fn device_type(&self) -> u32;

    /// Short name for logs, threads and counters, such as `blk0`.
    fn name(&self) -> &str;

    /// Device-specific feature bits on offer. The transport adds `VERSION_1`, `EVENT_IDX` and
    /// `INDIRECT_DESC`.
    fn features(&self) -> u64;

    /// Largest size of each queue, a power of two; the length is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// Fills `data` from `offset` of the device configuration space; the transport has preset it to
    /// zeroes, and bytes past the end stay zero. Does not block.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes a write to the configuration space; read-only fields ignore it. Does not block.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Takes over the queues that the driver enabled: when the driver sets DRIVER_OK, and again,
    /// without a reset in between, when a paused machine resumes. All earlier workers have drained.
    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn QueueWorker>>, ActivateError>;

    /// All workers are gone; forget what was negotiated.
    fn reset(&mut self) {}

    /// Adds the device's counters to `out` as `(counter, value)`.
    fn counters(&self, out: &mut Vec<(&'static str, u64)>);
}

/// What a device owns from DRIVER_OK on.
pub struct Activation {
    /// Guest memory.
    pub mem: GuestMemoryMmap,
    /// Negotiated feature bits.
    pub features: u64,
    /// The enabled queues, in ascending order of index; not necessarily all.
    pub queues: Vec<Virtqueue>,
    /// To report an unusable driver.
    pub fault: DeviceFault,
}

/// One enabled queue with its doorbell and interrupt.
pub struct Virtqueue {
    /// Index in the device's queue list.
    pub index: u16,
    /// The rings. Event index is already set as negotiated.
    pub queue: Queue,
    /// Readable when the driver has notified.
    pub kick: Arc<EventFd>,
    /// Write to interrupt the driver. Whether to do so is for `queue.needs_notification` to say.
    pub interrupt: Arc<EventFd>,
}

impl Virtqueue {
    /// The next chain that the driver made available. An error means that the rings are broken:
    /// raise the fault and stop serving.
    ///
    /// Unlike `pop_descriptor_chain` it neither hides that error nor logs at the guest's pace.
    pub fn pop<'m>(
        &mut self,
        mem: &'m GuestMemoryMmap,
    ) -> Result<Option<DescriptorChain<&'m GuestMemoryMmap>>, virtio_queue::Error> {
        Ok(self.queue.iter(mem)?.next())
    }

    /// Interrupts the driver if it wants to know about the chains used since the last call. Call it
    /// once per batch.
    pub fn signal(&mut self, mem: &GuestMemoryMmap) -> Result<(), virtio_queue::Error> {
        if self.queue.needs_notification(mem)? {
            // A full counter already means a pending interrupt.
            let _ = self.interrupt.write(1);
        }
        Ok(())
    }
}

/// Lets a worker declare the device broken (virtio 1.2 §2.1.2, DEVICE_NEEDS_RESET).
#[derive(Clone)]
pub struct DeviceFault {
    /// Seen by the transport when the driver reads the status.
    pub needs_reset: Arc<AtomicBool>,
    /// The configuration-change interrupt.
    pub config_interrupt: Arc<EventFd>,
}

impl DeviceFault {
    /// Sets DEVICE_NEEDS_RESET and interrupts the driver. The caller stops serving its queues.
    pub fn raise(&self) {
        self.needs_reset.store(true, std::sync::atomic::Ordering::Release);
        // A full event counter already means a pending interrupt.
        let _ = self.config_interrupt.write(1);
    }
}

/// A device cannot start with what the driver set up.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver did not enable a queue that the device cannot do without.
    #[error("queue {0} is needed and was not enabled")]
    MissingQueue(u16),
    /// The host refused something.
    #[error("{action} failed")]
    Host {
        /// What was tried.
        action: &'static str,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
}

/// Something a worker waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeSource {
    /// Level-triggered readiness of this descriptor.
    pub fd: RawFd,
    /// Wait for it to become writable instead of readable.
    pub writable: bool,
    /// Passed to [`QueueWorker::wake`].
    pub token: u32,
}

/// Where a worker wants to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// On the VMM's event loop, beside others: never blocks.
    EventLoop,
    /// On a thread of its own: may block on the host.
    Thread,
}

/// Serves one or more queues. Owned by one thread at a time.
pub trait QueueWorker: Send + Any {
    /// For the thread's name and for logs, such as `blk0-q1`.
    fn name(&self) -> String;

    /// Where to run.
    fn placement(&self) -> Placement;

    /// What to wait for. Asked once at start and again after a `wake` that returned
    /// [`Wake::SourcesChanged`].
    fn wake_sources(&self) -> Vec<WakeSource>;

    /// Called once before the first wait: looks at the queues for work that came before.
    fn started(&mut self, now: Instant);

    /// A source is ready, or the deadline passed (`token` is [`DEADLINE`]). Does a bounded amount
    /// of work; an event loop calls it again if the source is still ready.
    fn wake(&mut self, token: u32, now: Instant) -> Wake;

    /// When to be woken at the latest, from now.
    fn deadline(&self, now: Instant) -> Option<Duration> {
        let _ = now;
        None
    }

    /// Finishes or gives back every request taken, then tells where the queues stand.
    fn drain(self: Box<Self>) -> Vec<(u16, QueueState)>;
}

/// Token of a wake by [`QueueWorker::deadline`].
pub const DEADLINE: u32 = u32::MAX;

/// What a worker wants after a wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Wait on the same sources.
    Continue,
    /// Ask for the sources again.
    SourcesChanged,
}

/// Runs workers.
pub trait WorkerHost: Send + Sync {
    /// Starts serving.
    fn start(&self, worker: Box<dyn QueueWorker>) -> io::Result<Box<dyn WorkerHandle>>;
}

/// A running worker.
pub trait WorkerHandle: Send {
    /// Stops it and returns when it has drained. Must not be called from the worker itself.
    fn stop(self: Box<Self>) -> Vec<(u16, QueueState)>;
}
