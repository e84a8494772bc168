//! The run loop of one vCPU.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use kiln_devices::bus::Bus;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::failure;
use super::gate::{Gate, Pass};
use super::kick::{Kickable, kick};
use crate::confined::{Busy, Crew};

/// What happens to a machine as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest asked to be switched off (S5).
    PowerOff,
    /// The guest asked for a restart, or its processor shut down (triple fault).
    Reset,
    /// The guest has let go of this slot of the PCI bus, which is empty now.
    Ejected(u8),
    /// It cannot go on; one line says why.
    Failed(String),
}

/// Where vCPUs and the power device report to; the reader waits on the descriptor.
#[derive(Clone)]
pub struct MachineEvents {
    sender: Sender<MachineEvent>,
    wake: Arc<EventFd>,
}

impl MachineEvents {
    /// Events go to `sender`, and then `wake` is signalled.
    pub fn new(sender: Sender<MachineEvent>, wake: Arc<EventFd>) -> Self {
        MachineEvents { sender, wake }
    }

    /// Reports an event. Never blocks.
    pub fn report(&self, event: MachineEvent) {
        // The reader outlives all machines; should it be gone, the process is ending.
        let _ = self.sender.send(event);
        let _ = self.wake.write(1);
    }
}

/// Exits to user space, by kind.
#[derive(Debug, Default)]
pub struct VcpuCounters {
    /// Port I/O.
    pub pio: AtomicU64,
    /// Memory-mapped I/O.
    pub mmio: AtomicU64,
    /// Kicks.
    pub kicks: AtomicU64,
}

/// What all vCPUs of a machine share.
#[derive(Clone)]
pub struct Platform {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
    /// Guest memory, to show instruction bytes when something goes wrong.
    pub memory: GuestMemoryMmap,
    /// Where events go.
    pub events: MachineEvents,
    /// When to run.
    pub gate: Arc<Gate>,
    /// Exit counters.
    pub counters: Arc<VcpuCounters>,
}

/// A running vCPU thread. Stop the gate before dropping it.
pub struct VcpuThread {
    /// Gives back what it was given: to let go of a vCPU is not for its own thread.
    work: Busy<(VcpuFd, Platform)>,
}

impl VcpuThread {
    /// Gives a vCPU whose registers are set to a thread of `crew`. It waits at the gate.
    pub fn start(crew: &Crew, id: u8, vcpu: VcpuFd, platform: Platform) -> io::Result<Self> {
        let work = crew.run(move || Runner { id, vcpu: Kickable::new(vcpu), platform }.run())?;
        Ok(VcpuThread { work })
    }

    /// Gets the thread out of the guest so that it looks at the gate.
    pub fn kick(&self) {
        if let Some(thread) = self.work.thread() {
            kick(thread);
        }
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.kick();
        drop(self.work.wait());
    }
}

struct Runner {
    id: u8,
    vcpu: Kickable,
    platform: Platform,
}

/// What the loop does after an exit.
enum After {
    Enter,
    Report(MachineEvent),
}

impl Runner {
    fn run(mut self) -> (VcpuFd, Platform) {
        loop {
            self.vcpu.clear();
            match self.platform.gate.pass() {
                Pass::Enter => {}
                // Tells the guest's watchdogs that the time it missed was not its fault; a guest
                // without kvmclock has nothing to be told.
                Pass::Resumed => drop(self.vcpu.vcpu().kvmclock_ctrl()),
                Pass::End => return (self.vcpu.release(), self.platform),
            }
            if let After::Report(event) = self.enter() {
                // The machine is over: nobody enters the guest until whoever hears of it stops the gate.
                self.platform.gate.close();
                self.platform.events.report(event);
            }
        }
    }

    /// Runs the guest until its next exit and answers that exit.
    fn enter(&mut self) -> After {
        let Platform { ports, mmio, memory, counters, .. } = &self.platform;
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let (exit, width) = self.vcpu.run();
        match exit {
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&counters.pio);
                ports.write_string(u64::from(port), width, data);
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&counters.pio);
                ports.read_string(u64::from(port), width, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(&counters.mmio);
                mmio.write(address, data);
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(&counters.mmio);
                mmio.read(address, data);
            }
            Ok(VcpuExit::Shutdown) => {
                failure::shutdown(self.vcpu.vcpu(), self.id, memory);
                return After::Report(MachineEvent::Reset);
            }
            Ok(VcpuExit::SystemEvent(..)) => return After::Report(MachineEvent::Reset),
            Ok(VcpuExit::InternalError) => {
                let reason = failure::internal_error(self.vcpu.vcpu(), self.id, memory);
                return After::Report(MachineEvent::Failed(reason));
            }
            Ok(VcpuExit::FailEntry(reason, _)) => {
                let reason = failure::entry_failed(self.vcpu.vcpu(), self.id, reason, memory);
                return After::Report(MachineEvent::Failed(reason));
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {}
            Ok(other) => {
                let reason = format!("vCPU {} left the guest for an unknown reason: {other:?}", self.id);
                return After::Report(MachineEvent::Failed(reason));
            }
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => {
                count(&counters.kicks);
            }
            Err(e) => {
                return After::Report(MachineEvent::Failed(format!("running vCPU {} failed: {e}", self.id)));
            }
        }
        After::Enter
    }
}
