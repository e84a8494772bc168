//! Virtio over PCI, modern interface only (virtio 1.2 §4.1).
//!
//! ```text
//!  PciRoot ─ config, BAR accesses ─▶ VirtioPci (one mutex)
//!                                      ├ registers: status, features, queue registers
//!                                      ├ msix: vectors ── MsiController (irqfd)
//!                                      ├ doorbells ────── DoorbellRegistry (ioeventfd)
//!                                      └ device ── activate ─▶ workers ── WorkerHost
//!
//!          DRIVER_OK              pause
//!   Idle ───────────▶ Running ◀──────────▶ Paused
//!    ▲ status = 0        │     resume         │
//!    └───────────────────┴────────────────────┘
//! ```
//!
//! vCPU threads call under the device's mutex. Workers never take it: they own their queues, kicks
//! arrive by event descriptors, and interrupts leave the same way. A vCPU thread that resets the
//! device waits in it until the workers have drained; therefore **a thread that runs workers must
//! not lock a device** (for counters, say).
//!
//! An unusable driver finds DEVICE_NEEDS_RESET in the status: on a DRIVER_OK without a usable queue,
//! when the device refuses to start, or when a worker raises its [`DeviceFault`].

mod doorbells;
mod function;
mod layout;
pub(crate) mod registers;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_queue::{Queue, QueueState};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::doorbells::Doorbells;
use self::layout::{Capabilities, MAX_QUEUES};
use self::registers::{Effect, Registers};
use super::device::{
    ActivateError, Activation, DeviceFault, VirtioDevice, Virtqueue, WorkerHandle, WorkerHost,
};
use crate::guest_faults::GuestFaults;
use crate::interrupt::{DoorbellRegistry, MsiController};
use crate::pci::config::ConfigSpace;
use crate::pci::msix::Msix;

pub use self::registers::QueueError;

/// What every device needs of its machine.
#[derive(Clone)]
pub struct VirtioServices {
    /// Guest memory.
    pub mem: GuestMemoryMmap,
    /// Interrupts.
    pub msi: Arc<dyn MsiController>,
    /// Notifications.
    pub doorbells: Arc<dyn DoorbellRegistry>,
    /// Threads.
    pub workers: Arc<dyn WorkerHost>,
}

/// Why a device does not run although its driver says DRIVER_OK.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The driver enabled no queue.
    #[error("no queue is enabled")]
    NoQueue,
    /// A queue cannot be used.
    #[error("queue {index} is unusable")]
    Queue {
        /// Index of the queue.
        index: u16,
        /// What is wrong with it.
        #[source]
        source: QueueError,
    },
    /// A queue state does not describe a queue.
    #[error("the saved state of queue {0} is unusable")]
    State(u16),
    /// The device refused.
    #[error(transparent)]
    Device(#[from] ActivateError),
    /// The host could not run a worker.
    #[error("worker could not be started")]
    Worker(#[source] io::Error),
}

enum Run {
    /// Reset, or not yet started, or failed to start.
    Idle,
    Running(Vec<Box<dyn WorkerHandle>>),
    Paused(Vec<(u16, QueueState)>),
}

/// MSI-X source of the configuration change interrupt; queue `i` is source `i + 1`.
const CONFIG_SOURCE: usize = 0;

fn queue_source(queue: u16) -> usize {
    usize::from(queue) + 1
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    device: Box<dyn VirtioDevice>,
    mem: GuestMemoryMmap,
    workers: Arc<dyn WorkerHost>,
    config: ConfigSpace,
    capabilities: Capabilities,
    msix: Msix,
    doorbells: Doorbells,
    registers: Registers,
    fault: DeviceFault,
    run: Run,
    /// Queues handed to the device.
    active: Vec<u16>,
    generation: u8,
    guest_faults: GuestFaults,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    activations: u64,
    resets: u64,
    /// Notifications that left the kernel.
    notify_exits: u64,
}

impl VirtioPci {
    /// Wraps `device`. Fails when the host has no descriptors or interrupt lines left, or when the
    /// device's queue sizes are no sizes of queues.
    pub fn new(device: Box<dyn VirtioDevice>, services: VirtioServices) -> io::Result<Self> {
        let sizes = device.queue_max_sizes();
        if sizes.len() > MAX_QUEUES || sizes.iter().any(|s| !s.is_power_of_two() || *s > 0x8000) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let kicks = sizes.iter().map(|_| Ok(Arc::new(EventFd::new(EFD_NONBLOCK)?)));
        let kicks = kicks.collect::<io::Result<Vec<_>>>()?;
        let VirtioServices { mem, msi, doorbells, workers } = services;
        let msix = Msix::new(msi, sizes.len() as u16 + 1)?;
        let (config, capabilities) = layout::config_space(device.device_type(), sizes.len(), &msix);
        Ok(Self {
            registers: Registers::new(offered(device.as_ref()), sizes),
            fault: new_fault(&msix),
            device,
            mem,
            workers,
            config,
            capabilities,
            msix,
            doorbells: Doorbells::new(doorbells, kicks),
            run: Run::Idle,
            active: Vec::new(),
            generation: 0,
            guest_faults: GuestFaults::new(),
            counters: Counters::default(),
        })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Adds the counters of device and transport.
    pub fn counters(&self, out: &mut Vec<(&'static str, u64)>) {
        self.device.counters(out);
        out.extend([
            ("activations", self.counters.activations),
            ("resets", self.counters.resets),
            ("notify_exits", self.counters.notify_exits),
            ("guest_faults", self.guest_faults.count()),
            ("needs_reset", u64::from(self.needs_reset())),
        ]);
    }

    /// Stops the workers and keeps where the queues stand. The caller has stopped the vCPUs.
    /// Notifications stay pending until [`VirtioPci::resume`]. Blocks until drained.
    pub fn pause(&mut self) {
        self.run = match std::mem::replace(&mut self.run, Run::Idle) {
            Run::Running(workers) => Run::Paused(stop(workers)),
            other => other,
        };
    }

    /// Undoes [`VirtioPci::pause`]. On failure the guest finds DEVICE_NEEDS_RESET.
    pub fn resume(&mut self) -> Result<(), StartError> {
        let states = match std::mem::replace(&mut self.run, Run::Idle) {
            Run::Paused(states) => states,
            other => {
                self.run = other;
                return Ok(());
            }
        };
        // Workers of a broken device would only break again.
        if self.needs_reset() {
            return Ok(());
        }
        let queues = states.into_iter().map(|(index, state)| {
            let queue = Queue::try_from(state).map_err(|_| StartError::State(index))?;
            Ok((index, queue))
        });
        let result = queues.collect::<Result<Vec<_>, _>>().and_then(|queues| self.start(queues));
        result.inspect_err(|_| self.fault.raise())
    }

    /// The device's configuration space has changed on the host's side: tells the driver.
    pub fn config_changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.registers.driver_ok() {
            self.msix.signal(CONFIG_SOURCE);
        }
    }

    fn needs_reset(&self) -> bool {
        self.fault.needs_reset.load(Ordering::Acquire)
    }

    /// DRIVER_OK was set.
    fn activate(&mut self) {
        self.counters.activations += 1;
        let event_idx = self.registers.features() & registers::EVENT_IDX != 0;
        let enabled = (0u16..).zip(self.registers.queues()).filter(|(_, registers)| registers.enabled());
        let queues = enabled.map(|(index, registers)| match registers.build(&self.mem, event_idx) {
            Ok(queue) => Ok((index, queue)),
            Err(source) => Err(StartError::Queue { index, source }),
        });
        let started = match queues.collect::<Result<Vec<_>, _>>() {
            Ok(queues) if queues.is_empty() => Err(StartError::NoQueue),
            Ok(queues) => self.start(queues),
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            if self.guest_faults.record() {
                tracing::warn!(
                    device = self.device.name(),
                    error = &error as &dyn std::error::Error,
                    "not started"
                );
            }
            self.fault.raise();
        }
    }

    /// Hands `queues` to the device and its workers to the host.
    fn start(&mut self, queues: Vec<(u16, Queue)>) -> Result<(), StartError> {
        self.active.clear();
        let active = queues.iter().map(|(index, _)| *index).collect();
        let queues = queues.into_iter().filter_map(|(index, queue)| {
            let kick = self.doorbells.kick(index)?.clone();
            Some(Virtqueue { index, queue, kick, interrupt: self.msix.event(queue_source(index)) })
        });
        let activation = Activation {
            queues: queues.collect(),
            mem: self.mem.clone(),
            features: self.registers.features(),
            fault: self.fault.clone(),
        };
        let workers = self.device.activate(activation)?;
        let mut running = Vec::with_capacity(workers.len());
        for worker in workers {
            match self.workers.start(worker) {
                Ok(handle) => running.push(handle),
                Err(error) => {
                    stop(running);
                    return Err(StartError::Worker(error));
                }
            }
        }
        self.run = Run::Running(running);
        self.active = active;
        if let Err(error) = self.place_doorbells() {
            // Notifications leave the kernel instead: slower, not lost.
            tracing::warn!(device = self.device.name(), %error, "doorbells could not be bound");
        }
        Ok(())
    }

    /// Doorbells are bound while the BAR decodes and queues are in use, so that the probing before
    /// that costs no system calls.
    fn place_doorbells(&mut self) -> io::Result<()> {
        let bar = self.config.decoded_bar(layout::BAR).map(|range| range.start);
        self.doorbells.place(bar, &self.active)
    }

    /// Status 0 (virtio 1.2 §2.4): stops the workers and forgets everything the driver set up.
    fn reset_device(&mut self) {
        // All fields by name, so that a new one is not forgotten.
        let Self {
            device,
            mem: _,
            workers: _,
            config: _,
            capabilities: _,
            msix,
            doorbells,
            registers,
            fault,
            run,
            active,
            // Goes on counting: a driver may compare it across a reset.
            generation: _,
            guest_faults: _,
            counters,
        } = self;
        if let Run::Running(workers) = std::mem::replace(run, Run::Idle) {
            stop(workers);
        }
        active.clear();
        if let Err(error) = doorbells.place(None, &[]) {
            tracing::warn!(device = device.name(), %error, "doorbells could not be unbound");
        }
        doorbells.drain();
        msix.reset_sources();
        device.reset();
        *registers = Registers::new(offered(device.as_ref()), device.queue_max_sizes());
        *fault = new_fault(msix);
        counters.resets += 1;
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Reset => self.reset_device(),
            Effect::Activate => self.activate(),
            Effect::ConfigVector(vector) => self.msix.set_vector(CONFIG_SOURCE, vector),
            Effect::QueueVector(queue, vector) => self.msix.set_vector(queue_source(queue), vector),
        }
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        if let Run::Running(workers) = std::mem::replace(&mut self.run, Run::Idle) {
            stop(workers);
        }
    }
}

/// Feature bits on offer: the device's and the transport's.
fn offered(device: &dyn VirtioDevice) -> u64 {
    device.features() | registers::VERSION_1 | registers::EVENT_IDX | registers::INDIRECT_DESC
}

/// A fault of its own for each life, so that an earlier one cannot be mistaken for it.
fn new_fault(msix: &Msix) -> DeviceFault {
    DeviceFault { needs_reset: Arc::new(AtomicBool::new(false)), config_interrupt: msix.event(CONFIG_SOURCE) }
}

fn stop(workers: Vec<Box<dyn WorkerHandle>>) -> Vec<(u16, QueueState)> {
    workers.into_iter().flat_map(WorkerHandle::stop).collect()
}
