//! One machine, from power-on to power-off.
//!
//! ```text
//!  Machine::assemble ─▶ start ─▶ running ◀─ pause · resume ─▶ paused
//!                                   │ guest resets or powers off, or the user kills it
//!                                   ▼
//!                                 stop (vCPUs end, workers drain, everything is dropped)
//! ```
//!
//! A reset of the guest builds a new machine on the same [`Host`]: nothing of the old one, wanted or
//! not, can survive.

mod assemble;
mod boot_source;
mod hotplug;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_devices::bus::Bus;
use kiln_devices::pci::hotplug::PciHotplug;
use kiln_devices::pci::{PciFunction, PciRoot};
use kiln_devices::power::Power;
use kiln_devices::serial::Serial;
use kiln_devices::virtio::blk::Capacity;
use kiln_devices::virtio::{VirtioPci, VirtioServices};
use kiln_vmspec::Stats;

pub use assemble::{AssembleError, Surroundings};
pub use boot_source::BootSourceError;

use crate::console::Console;
#[cfg(doc)]
use crate::host::Host;
use crate::kvm::Vm;
use crate::vcpu::{Gate, VcpuCounters, VcpuThread};

/// A virtio device in its slot.
struct Plugged {
    slot: u8,
    function: Arc<Mutex<VirtioPci>>,
    /// Of a disk.
    capacity: Option<Capacity>,
}

impl Plugged {
    fn lock(&self) -> std::sync::MutexGuard<'_, VirtioPci> {
        lock(&self.function)
    }
}

/// An assembled machine.
pub struct Machine {
    /// What was booted, for people.
    pub booted: String,
    gate: Arc<Gate>,
    vcpus: Vec<VcpuThread>,
    counters: Arc<VcpuCounters>,
    serial: Arc<Mutex<Serial>>,
    power: Arc<Mutex<Power>>,
    root: Arc<PciRoot>,
    hotplug: Arc<Mutex<PciHotplug>>,
    functions: Vec<Plugged>,
    /// For devices that come later.
    services: VirtioServices,
    buses: [(&'static str, Arc<Bus>); 2],
    // Dropped last: the devices hold connections into it.
    _vm: Vm,
}

impl Machine {
    /// Lets the vCPUs run.
    pub fn start(&self) {
        self.gate.open();
    }

    /// Returns when no vCPU runs and every device has drained.
    pub fn pause(&self) {
        self.hold_vcpus();
        for function in &self.functions {
            function.lock().pause();
        }
    }

    /// Undoes [`Machine::pause`]. A device that cannot go on shows that to its driver.
    pub fn resume(&self) {
        for function in &self.functions {
            let mut function = function.lock();
            if let Err(e) = function.resume() {
                tracing::error!("{} did not resume: {e}", function.name());
            }
        }
        self.gate.open();
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        lock(&self.power).press_power_button();
    }

    /// Hands waiting console input to the serial port.
    pub fn feed_console(&self, console: &Console) {
        console.feed(|bytes| lock(&self.serial).enqueue_input(bytes));
    }

    /// Adds this machine's counters.
    pub fn stats(&self, stats: &mut Stats) {
        let mut put = |name: String, value| {
            stats.counters.insert(name, value);
        };
        put("vcpu.pio_exits".into(), self.counters.pio.load(Ordering::Relaxed));
        put("vcpu.mmio_exits".into(), self.counters.mmio.load(Ordering::Relaxed));
        put("vcpu.kicks".into(), self.counters.kicks.load(Ordering::Relaxed));
        for (name, bus) in &self.buses {
            let (reads, writes) = bus.unclaimed();
            put(format!("{name}.unclaimed_reads"), reads);
            put(format!("{name}.unclaimed_writes"), writes);
        }
        for function in &self.functions {
            let function = function.lock();
            let mut counters = Vec::new();
            function.counters(&mut counters);
            for (counter, value) in counters {
                put(format!("{}.{counter}", function.name()), value);
            }
        }
    }

    /// Ends the machine: vCPU threads are joined, devices reset, workers drained.
    pub fn stop(mut self) {
        self.gate.stop();
        self.vcpus.clear();
        for function in &self.functions {
            function.lock().reset();
        }
    }

    fn hold_vcpus(&self) {
        self.gate.close();
        self.vcpus.iter().for_each(VcpuThread::kick);
        self.gate.wait_parked(self.vcpus.len());
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
