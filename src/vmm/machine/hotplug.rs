//! Devices that come to a running machine and go from it.
//!
//! ```text
//!  attach: plug ─▶ "arrived" ─▶ event ─▶ the guest finds it
//!  detach: "to go" ─▶ event ─▶ the guest's driver lets go ─▶ eject (vCPU thread): unplug
//!             └─ by force: what is behind it goes first         └─▶ MachineEvent::Ejected ─▶ forget
//! ```
//!
//! A slot is empty as soon as it is unplugged; the device itself, and what it needs of the host, goes on the
//! control thread, which may close things.
//!
//! By force a disk is taken out of its device, which stays and answers every request with an error until the
//! guest lets go of it; an interface has no link from then on. To pull the device out as well would hurt more than it helps: a driver of Linux that
//! resets it waits for a status of zero, reads all ones for ever, and holds up every other hot-plug event.

use std::io;
use std::sync::{Arc, Mutex};

use kiln_devices::pci::hotplug::EjectSink;
use kiln_devices::pci::{PciError, PciRoot, SLOT_COUNT};
use kiln_devices::virtio::blk::{Blk, BlkConfig, Capacity};
use kiln_devices::virtio::net::{Net, NetConfig, NicBackend};
use kiln_devices::virtio::{VirtioDevice, VirtioPci};

use super::assemble::throttle;
use super::{Machine, Plugged, lock};
use crate::host::{OpenDisk, OpenNic};
use crate::vcpu::{MachineEvent, MachineEvents};

/// A device could not be plugged in.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// See source.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// See source.
    #[error("making a virtio device failed")]
    Device(#[from] io::Error),
}

/// Empties slots that the guest has let go of.
pub(super) struct Ejects {
    pub(super) root: Arc<PciRoot>,
    pub(super) events: MachineEvents,
}

impl EjectSink for Ejects {
    fn eject(&self, slot: u8) {
        self.root.unplug(slot);
        self.events.report(MachineEvent::Ejected(slot));
    }
}

/// The block device of a disk.
pub(super) fn block_device(disk: &OpenDisk) -> Blk {
    let config = BlkConfig {
        name: disk.name.clone(),
        serial: disk.spec.serial.clone(),
        throttle: throttle(&disk.spec.limits),
    };
    Blk::new(config, &*disk.disk, Arc::clone(&disk.engines))
}

/// The network device of an interface.
pub(super) fn net_device(nic: &OpenNic) -> Net {
    let config = NetConfig { name: nic.name.clone(), mac: nic.spec.mac, mtu: nic.spec.mtu };
    let net = Net::new(config, Arc::clone(&nic.backend) as Arc<dyn NicBackend>);
    net.with_limits(throttle(&nic.spec.limits), throttle(&nic.spec.limits))
}

impl Machine {
    /// A slot for another device. One whose device the guest has just let go of is free once that device has
    /// been forgotten: until then its number still means the old one.
    pub fn free_slot(&self) -> Option<u8> {
        let free = self.root.free_slots();
        let known = |slot: u8| self.functions.iter().any(|plugged| plugged.slot == slot);
        (0u8..).take(SLOT_COUNT).find(|&slot| free & 1 << slot != 0 && !known(slot))
    }

    /// Plugs in a disk and tells the guest.
    pub fn attach_disk(&mut self, disk: &OpenDisk) -> Result<(), PlugError> {
        let blk = block_device(disk);
        let capacity = Some(blk.capacity());
        self.attach(disk.slot, Box::new(blk), capacity)
    }

    /// Plugs in a network interface and tells the guest.
    pub fn attach_nic(&mut self, nic: &OpenNic) -> Result<(), PlugError> {
        self.attach(nic.slot, Box::new(net_device(nic)), None)
    }

    fn attach(
        &mut self,
        slot: u8,
        device: Box<dyn VirtioDevice>,
        capacity: Option<Capacity>,
    ) -> Result<(), PlugError> {
        let function = VirtioPci::new(device, self.services.clone())?;
        let function = Arc::new(Mutex::new(function));
        self.root.plug(slot, Arc::clone(&function) as _)?;
        self.functions.push(Plugged { slot, function, capacity });
        lock(&self.hotplug).arrive(slot);
        lock(&self.power).hotplug_changed();
        Ok(())
    }

    /// Asks the guest to let go of what is in `slot`.
    pub fn ask_back(&self, slot: u8) {
        lock(&self.hotplug).ask_back(slot);
        lock(&self.power).hotplug_changed();
    }

    /// Takes what is behind the device in `slot` away from it, by `take`, and tells the driver that its
    /// configuration may have changed. Blocks until its workers have stopped; they go on without it, unless the
    /// machine is `paused`.
    pub fn hollow_out(&self, slot: u8, paused: bool, take: impl Fn()) {
        for plugged in self.functions.iter().filter(|plugged| plugged.slot == slot) {
            let mut function = plugged.lock();
            if !paused {
                function.pause();
            }
            take();
            if !paused && let Err(e) = function.resume() {
                tracing::error!("{} did not go on alone: {e}", function.name());
            }
            function.config_changed();
        }
    }

    /// Drops the device of a slot that is empty.
    pub fn forget(&mut self, slot: u8) {
        self.functions.retain(|plugged| plugged.slot != slot);
    }

    /// Tells the driver of the disk in `slot` that it has `bytes` bytes now.
    pub fn resized(&self, slot: u8, bytes: u64) {
        for plugged in self.functions.iter().filter(|plugged| plugged.slot == slot) {
            let mut function = plugged.lock();
            if let Some(capacity) = &plugged.capacity {
                capacity.set(bytes);
            }
            function.config_changed();
        }
    }
}
