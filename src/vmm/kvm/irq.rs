//! Interrupts: MSI through irqfd, and the few wired lines.
//!
//! ```text
//!  worker ─ write ─▶ EventFd ─ irqfd ─▶ GSI ─ routing table ─▶ MSI message ─▶ local APIC
//! ```
//!
//! GSIs below [`WIRED_LINES`] are the I/O APIC's pins; above them each MSI-X vector has one. A
//! masked vector has no irqfd, so the count in its `EventFd` is its pending bit; the kernel looks at
//! it when the irqfd is assigned, so nothing is lost and nothing needs a lock.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_devices::interrupt::{InterruptLine, MsiController, MsiMessage};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

/// Pins of the I/O APIC: GSIs 0 to 23.
pub const WIRED_LINES: u32 = 24;

/// Most MSI vectors of one VM; KVM routes at most 4096 interrupts.
const MOST_VECTORS: u32 = 2048;

/// MSI controller on KVM.
pub struct KvmMsi {
    vm: Arc<VmFd>,
    state: Mutex<Routes>,
}

#[derive(Default)]
struct Routes {
    allocated: u32,
    /// Lines that were given back.
    free: Vec<u32>,
    /// Connected lines by GSI.
    connected: BTreeMap<u32, MsiMessage>,
}

impl KvmMsi {
    /// Sets up the routes of the wired lines; no vector is connected.
    pub fn new(vm: Arc<VmFd>) -> io::Result<Self> {
        let controller = KvmMsi { vm, state: Mutex::default() };
        controller.apply(&Routes::default())?;
        Ok(controller)
    }

    fn apply(&self, routes: &Routes) -> io::Result<()> {
        let wired = (0..WIRED_LINES).map(ioapic_entry);
        let entries: Vec<_> =
            wired.chain(routes.connected.iter().map(|(gsi, m)| msi_entry(*gsi, *m))).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|e| io::Error::other(format!("{e:?}")))?;
        self.vm.set_gsi_routing(&table).map_err(io::Error::from)
    }
}

impl MsiController for KvmMsi {
    fn allocate(&self) -> io::Result<u32> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = state.free.pop() {
            return Ok(line);
        }
        if state.allocated >= MOST_VECTORS {
            return Err(io::Error::other("the VM has no interrupt vectors left"));
        }
        let line = WIRED_LINES.saturating_add(state.allocated);
        state.allocated = state.allocated.saturating_add(1);
        Ok(line)
    }

    fn connect(&self, line: u32, event: &EventFd, message: MsiMessage) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.connected.insert(line, message);
        if before == Some(message) {
            return Ok(());
        }
        let done = self.apply(&state).and_then(|()| match before {
            Some(_) => Ok(()),
            None => self.vm.register_irqfd(event, line).map_err(io::Error::from),
        });
        if done.is_err() {
            // The line stays as it was.
            match before {
                Some(message) => state.connected.insert(line, message),
                None => state.connected.remove(&line),
            };
        }
        done
    }

    fn disconnect(&self, line: u32, event: &EventFd) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.connected.remove(&line).is_none() {
            return Ok(());
        }
        // The stale route stays until the next change of the table: without an irqfd nothing uses
        // it, and rewriting the table for every masking would double the cost of masking.
        self.vm.unregister_irqfd(event, line).map_err(io::Error::from)
    }

    fn release(&self, line: u32) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).free.push(line);
    }
}

/// A pin of the I/O APIC, raised through an irqfd so that any thread may do it with one write.
pub struct KvmWire {
    event: EventFd,
}

impl KvmWire {
    /// Connects pin `gsi`.
    pub fn new(vm: &VmFd, gsi: u32) -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        vm.register_irqfd(&event, gsi)?;
        Ok(KvmWire { event })
    }
}

impl InterruptLine for KvmWire {
    fn trigger(&self) -> io::Result<()> {
        self.event.write(1)
    }
}

fn ioapic_entry(pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin };
    entry
}

fn msi_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    let [b0, b1, b2, b3, b4, b5, b6, b7] = message.address.to_le_bytes();
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: u32::from_le_bytes([b0, b1, b2, b3]),
        address_hi: u32::from_le_bytes([b4, b5, b6, b7]),
        data: message.data,
        ..Default::default()
    };
    entry
}
