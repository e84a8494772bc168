//! A driver of the modern PCI transport, as simple as one can be.

use super::{GuestQueue, TestMachine, VERSION_1, common, status};

/// Local APIC window, where MSI messages go.
const MSI_ADDRESS: u64 = 0xfee0_0000;

/// One device as its driver sees it: where its structures are.
#[derive(Debug, Clone)]
pub struct GuestDriver {
    /// Slot of the device.
    pub slot: u8,
    /// Address of its BAR.
    pub bar: u64,
    /// Size of the BAR.
    pub bar_len: u64,
    /// Address of the common configuration.
    pub common: u64,
    /// Address of the notification area.
    pub notify: u64,
    /// Distance of notification addresses.
    pub notify_multiplier: u32,
    /// Address of the ISR status.
    pub isr: u64,
    /// Address of the device configuration.
    pub device: u64,
    /// Address of the MSI-X table.
    pub table: u64,
    /// Address of the MSI-X pending bits.
    pub pba: u64,
    /// Vectors of MSI-X.
    pub vectors: u16,
    /// Register of the MSI-X capability.
    pub msix_cap: u8,
    /// Register of `struct virtio_pci_cfg_cap`.
    pub pci_cfg_cap: u8,
}

impl GuestDriver {
    /// Finds the device in `slot`, sizes its BAR, walks its capabilities and turns decoding on.
    pub fn probe(machine: &TestMachine, slot: u8) -> Self {
        let vendor = machine.config_read(slot, 0);
        assert_eq!(vendor & 0xffff, 0x1af4, "slot {slot} holds {vendor:#x}");
        let bar = machine.config_read(slot, 0x10);
        machine.config_write(slot, 0x10, &[0xff; 4]);
        let mask = machine.config_read(slot, 0x10) & !0xf;
        machine.config_write(slot, 0x10, &bar.to_le_bytes());
        machine.config_write(slot, 4, &[6, 0]);

        let bar = u64::from(bar & !0xf);
        let bar_len = u64::from(!mask) + 1;
        let mut driver = Self {
            slot,
            bar,
            bar_len,
            common: 0,
            notify: 0,
            notify_multiplier: 0,
            isr: 0,
            device: 0,
            table: 0,
            pba: 0,
            vectors: 0,
            msix_cap: 0,
            pci_cfg_cap: 0,
        };
        let mut cap = machine.config_read(slot, 0x34) as u8;
        for _ in 0..48 {
            if cap == 0 {
                break;
            }
            let head = machine.config_read(slot, cap);
            driver.take_capability(machine, cap, head);
            cap = (head >> 8) as u8;
        }
        assert!(![driver.common, driver.notify, driver.isr, driver.table].contains(&0), "{driver:x?}");
        driver
    }

    fn take_capability(&mut self, machine: &TestMachine, cap: u8, head: u32) {
        let dword = |at: u8| machine.config_read(self.slot, cap + at);
        match (head as u8, (head >> 24) as u8) {
            (0x11, _) => {
                self.msix_cap = cap;
                self.vectors = (head >> 16) as u16 % 0x800 + 1;
                self.table = self.bar + u64::from(dword(4) & !7);
                self.pba = self.bar + u64::from(dword(8) & !7);
            }
            (0x09, kind) => {
                let at = self.bar + u64::from(dword(8));
                match kind {
                    1 => self.common = at,
                    2 => (self.notify, self.notify_multiplier) = (at, dword(16)),
                    3 => self.isr = at,
                    4 => self.device = at,
                    5 => self.pci_cfg_cap = cap,
                    other => panic!("capability of kind {other}"),
                }
            }
            (other, _) => panic!("capability {other:#x}"),
        }
    }

    /// Reads a little-endian field of `N` bytes of the common configuration.
    pub fn read_common<const N: usize>(&self, machine: &TestMachine, field: u64) -> u64 {
        let mut data = [0; 8];
        machine.mmio_read(self.common + field, &mut data[..N]);
        u64::from_le_bytes(data)
    }

    /// Writes a field of `N` bytes of the common configuration.
    pub fn write_common<const N: usize>(&self, machine: &TestMachine, field: u64, value: u64) {
        machine.mmio_write(self.common + field, &value.to_le_bytes()[..N]);
    }

    /// The device status.
    pub fn status(&self, machine: &TestMachine) -> u8 {
        self.read_common::<1>(machine, common::DEVICE_STATUS) as u8
    }

    /// Writes the device status.
    pub fn set_status(&self, machine: &TestMachine, value: u8) {
        self.write_common::<1>(machine, common::DEVICE_STATUS, value.into());
    }

    /// Feature bits on offer.
    pub fn device_features(&self, machine: &TestMachine) -> u64 {
        (0..2).fold(0, |features, word| {
            self.write_common::<4>(machine, common::DEVICE_FEATURE_SELECT, word);
            features | self.read_common::<4>(machine, common::DEVICE_FEATURE) << (32 * word)
        })
    }

    /// Writes feature bits.
    pub fn set_driver_features(&self, machine: &TestMachine, features: u64) {
        for word in 0..2 {
            self.write_common::<4>(machine, common::DRIVER_FEATURE_SELECT, word);
            self.write_common::<4>(machine, common::DRIVER_FEATURE, features >> (32 * word) & 0xffff_ffff);
        }
    }

    /// Resets the device and negotiates what of `wanted` and `VERSION_1` is on offer; returns it.
    pub fn negotiate(&self, machine: &TestMachine, wanted: u64) -> u64 {
        self.set_status(machine, 0);
        assert_eq!(self.status(machine), 0);
        self.set_status(machine, status::ACKNOWLEDGE);
        self.set_status(machine, status::ACKNOWLEDGE | status::DRIVER);
        let features = self.device_features(machine) & (wanted | VERSION_1);
        self.set_driver_features(machine, features);
        let value = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.set_status(machine, value);
        assert_eq!(self.status(machine), value, "features were refused");
        features
    }

    /// Largest size of queue `index`; 0 where there is none.
    pub fn queue_max_size(&self, machine: &TestMachine, index: u16) -> u16 {
        self.write_common::<2>(machine, common::QUEUE_SELECT, index.into());
        self.read_common::<2>(machine, common::QUEUE_SIZE) as u16
    }

    /// Tells the device where `queue` is, gives it the MSI-X vector after its index, and enables it.
    pub fn enable_queue(&self, machine: &TestMachine, queue: &GuestQueue) {
        self.write_common::<2>(machine, common::QUEUE_SELECT, queue.index.into());
        self.write_common::<2>(machine, common::QUEUE_SIZE, queue.size.into());
        self.write_common::<8>(machine, common::QUEUE_DESC, queue.desc);
        for (field, address) in [(common::QUEUE_DRIVER, queue.avail), (common::QUEUE_DEVICE, queue.used)] {
            self.write_common::<4>(machine, field, address & 0xffff_ffff);
            self.write_common::<4>(machine, field + 4, address >> 32);
        }
        self.write_common::<2>(machine, common::QUEUE_MSIX_VECTOR, u64::from(queue.index) + 1);
        self.write_common::<2>(machine, common::QUEUE_ENABLE, 1);
    }

    /// Turns MSI-X on and gives vector `i` the message `0x40 + i`, all unmasked; vector 0 is for
    /// configuration changes.
    pub fn enable_msix(&self, machine: &TestMachine) {
        machine.config_write(self.slot, self.msix_cap + 2, &0xc000u16.to_le_bytes());
        for vector in 0..self.vectors {
            let entry = self.table + u64::from(vector) * 16;
            machine.mmio_write(entry, &(MSI_ADDRESS as u32).to_le_bytes());
            machine.mmio_write(entry + 4, &0u32.to_le_bytes());
            machine.mmio_write(entry + 8, &(0x40 + u32::from(vector)).to_le_bytes());
            machine.mmio_write(entry + 12, &0u32.to_le_bytes());
        }
        machine.config_write(self.slot, self.msix_cap + 2, &0x8000u16.to_le_bytes());
        self.write_common::<2>(machine, common::CONFIG_MSIX_VECTOR, 0);
    }

    /// Sets DRIVER_OK.
    pub fn driver_ok(&self, machine: &TestMachine) {
        self.set_status(machine, self.status(machine) | status::DRIVER_OK);
    }

    /// The whole of what a driver does at start: reset, features, interrupts, every queue at its
    /// largest size, DRIVER_OK. Queues lie from `memory` on, which must be free.
    pub fn start(&self, machine: &TestMachine, wanted: u64, memory: u64) -> (u64, Vec<GuestQueue>) {
        let features = self.negotiate(machine, wanted);
        self.enable_msix(machine);
        let count = self.read_common::<2>(machine, common::NUM_QUEUES) as u16;
        let mut next = memory;
        let queues = (0..count).map(|index| {
            let queue = GuestQueue::new(machine, index, self.queue_max_size(machine, index), next);
            next = queue.end;
            self.enable_queue(machine, &queue);
            queue
        });
        let queues = queues.collect();
        self.driver_ok(machine);
        (features, queues)
    }

    /// Notifies queue `index`.
    pub fn kick(&self, machine: &TestMachine, index: u16) {
        let at = self.notify + u64::from(index) * u64::from(self.notify_multiplier);
        machine.mmio_write(at, &index.to_le_bytes());
    }

    /// Message data of the interrupts delivered since the last call.
    pub fn interrupts(&self, machine: &TestMachine) -> Vec<u32> {
        machine.msi.take_delivered().into_iter().map(|message| message.data).collect()
    }
}
