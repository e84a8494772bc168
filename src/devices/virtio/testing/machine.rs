//! The machine: memory, buses, and what stands in for KVM.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{FakeDoorbells, FakeMsi, GuestDriver, InlineWorkers};
use crate::bus::Bus;
use crate::pci::{PCI_CONFIG_PORTS, PciEcam, PciPorts, PciRoot, PciWindow};
use crate::virtio::{VirtioDevice, VirtioPci, VirtioServices};

/// Guest memory, from address 0.
pub const MEM_LEN: usize = 16 << 20;
/// Where BARs go.
pub const WINDOW: Range<u64> = 0xc000_0000..0xe000_0000;
/// Configuration mechanism #1.
pub const PORT_BASE: u64 = 0xcf8;
const ECAM: u64 = 0xe000_0000;

/// A PCI bus with virtio devices and nothing else. Devices are in slots from 1 on.
pub struct TestMachine {
    /// Guest memory.
    pub mem: GuestMemoryMmap,
    /// Interrupts.
    pub msi: Arc<FakeMsi>,
    /// Doorbells.
    pub doorbells: Arc<FakeDoorbells>,
    /// Workers.
    pub workers: Arc<InlineWorkers>,
    /// The devices, in slot order.
    pub devices: Vec<Arc<Mutex<VirtioPci>>>,
    /// The PCI bus.
    pub root: Arc<PciRoot>,
    ports: Bus,
    mmio: Bus,
}

impl TestMachine {
    /// Memory for [`TestMachine::assemble`], for devices that want to see it first.
    pub fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEM_LEN)]).unwrap()
    }

    /// A machine with memory of its own.
    pub fn new(devices: Vec<Box<dyn VirtioDevice>>) -> Self {
        Self::assemble(Self::memory(), devices)
    }

    /// A machine with this memory.
    pub fn assemble(mem: GuestMemoryMmap, devices: Vec<Box<dyn VirtioDevice>>) -> Self {
        let (msi, doorbells, workers) = (
            Arc::new(FakeMsi::default()),
            Arc::new(FakeDoorbells::default()),
            Arc::new(InlineWorkers::default()),
        );
        let root = PciRoot::new(WINDOW);
        let devices: Vec<_> = devices
            .into_iter()
            .map(|device| {
                let services = VirtioServices {
                    mem: mem.clone(),
                    msi: msi.clone(),
                    doorbells: doorbells.clone(),
                    workers: workers.clone(),
                };
                let device = Arc::new(Mutex::new(VirtioPci::new(device, services).unwrap()));
                root.add(device.clone()).unwrap();
                device
            })
            .collect();
        let root = Arc::new(root);
        let (mut ports, mut mmio) = (Bus::new(), Bus::new());
        let config_ports = Arc::new(Mutex::new(PciPorts::new(root.clone())));
        ports.insert(PORT_BASE, PCI_CONFIG_PORTS, config_ports).unwrap();
        mmio.insert(WINDOW.start, WINDOW.end - WINDOW.start, Arc::new(PciWindow(root.clone()))).unwrap();
        mmio.insert(ECAM, 1 << 20, Arc::new(PciEcam(root.clone()))).unwrap();
        Self { mem, msi, doorbells, workers, devices, root, ports, mmio }
    }

    /// A machine with one device, and a driver that has found it.
    pub fn with_device(device: impl VirtioDevice + 'static) -> (Self, GuestDriver) {
        let machine = Self::new(vec![Box::new(device)]);
        let driver = GuestDriver::probe(&machine, 1);
        (machine, driver)
    }

    /// Runs workers until none has anything to do.
    pub fn run(&self) {
        self.workers.run();
    }

    /// A guest read at a guest-physical address outside of RAM.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.mmio.read(address, data);
    }

    /// A guest write at a guest-physical address outside of RAM; doorbells come first.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if !self.doorbells.ring(address) {
            self.mmio.write(address, data);
        }
    }

    /// `in`.
    pub fn port_read(&self, port: u64, data: &mut [u8]) {
        self.ports.read(port, data);
    }

    /// `out`.
    pub fn port_write(&self, port: u64, data: &[u8]) {
        self.ports.write(port, data);
    }

    /// Reads configuration space through the ports.
    pub fn config_read(&self, slot: u8, register: u8) -> u32 {
        self.select(slot, register);
        let mut data = [0; 4];
        self.port_read(PORT_BASE + 4, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes configuration space through the ports: 1, 2 or 4 bytes.
    pub fn config_write(&self, slot: u8, register: u8, data: &[u8]) {
        self.select(slot, register);
        self.port_write(PORT_BASE + 4 + u64::from(register & 3), data);
    }

    /// Address of `register` in the enhanced configuration space.
    pub fn ecam(slot: u8, register: u16) -> u64 {
        ECAM + (u64::from(slot) << 15) + u64::from(register)
    }

    fn select(&self, slot: u8, register: u8) {
        let address = 1 << 31 | u32::from(slot) << 11 | u32::from(register & 0xfc);
        self.port_write(PORT_BASE, &address.to_le_bytes());
    }
}
