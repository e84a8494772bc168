//! Bus 0: finds functions by slot and by BAR.
//!
//! ```text
//!  0xcf8/0xcfc ─▶ PciPorts ─┐ slot, register             BAR window ─▶ PciWindow
//!  ECAM ─▶ PciEcam ─────────┴▶ PciRoot::{read,write}_config │ address
//!                                 │ function's mutex         │ map: where BARs decode now
//!                                 ▼                          ▼ function's mutex
//!                              PciFunction::{read,write}_{config,bar}
//! ```
//!
//! The map of decoded BARs is updated under the mutex of the function whose registers changed, and
//! looked up without it: a function that takes long (stopping its workers) delays only its own
//! accesses. When BARs overlap, the lower slot answers.
//!
//! Functions come and go while vCPUs run. One that has been unplugged is marked so under its mutex: an
//! access that had found it before finds it gone, and cannot bring its BARs or workers back.
//!
//! Lock order: function, then bus. The bus is not locked while a function is called.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::config::{BAR_COUNT, ConfigSpace, Identity};
use crate::bus::{BusDevice, BusTarget};

/// Slots of bus 0, one function each.
pub const SLOT_COUNT: usize = 32;

/// Ports of configuration mechanism #1: address and data.
pub const PCI_CONFIG_PORTS: u64 = 8;

/// A PCI function. Every access may have any offset and length; what does not exist in a BAR stays
/// all ones.
pub trait PciFunction: Send {
    /// The configuration space.
    fn config(&self) -> &ConfigSpace;

    /// To place BARs at assembly.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// Reads configuration space.
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// Writes configuration space.
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config_mut().write(offset, data);
    }

    /// Reads BAR `bar` from `offset` on. `data` is preset to all ones.
    fn read_bar(&mut self, bar: usize, offset: u64, data: &mut [u8]) {
        let _ = (bar, offset, data);
    }

    /// Writes BAR `bar`.
    fn write_bar(&mut self, bar: usize, offset: u64, data: &[u8]) {
        let _ = (bar, offset, data);
    }

    /// Machine reset.
    fn reset(&mut self) {
        self.config_mut().reset();
    }
}

type Function = Arc<Mutex<dyn PciFunction>>;

/// No room for a function.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PciError {
    /// All slots are taken.
    #[error("all {SLOT_COUNT} PCI slots are taken")]
    NoSlot,
    /// The window has no room for its BARs.
    #[error("the PCI memory window has no room for a BAR of {0:#x} bytes")]
    WindowFull(u32),
}

struct Decoded {
    slot: usize,
    bar: usize,
    range: Range<u64>,
}

/// A function in its slot.
#[derive(Clone)]
struct Plugged {
    function: Function,
    /// Changes under the mutex of the function.
    gone: Arc<AtomicBool>,
}

impl Plugged {
    fn new(function: Function) -> Self {
        Plugged { function, gone: Arc::default() }
    }

    /// The function, as long as it is there.
    fn lock(&self) -> Option<MutexGuard<'_, dyn PciFunction + 'static>> {
        let function = lock(&self.function);
        (!self.gone.load(Ordering::Acquire)).then_some(function)
    }
}

#[derive(Default)]
struct Bus {
    slots: [Option<Plugged>; SLOT_COUNT],
    /// Sorted by slot, then BAR.
    map: Vec<Decoded>,
}

/// Bus 0 with a host bridge at slot 0.
pub struct PciRoot {
    bus: RwLock<Bus>,
    window: Range<u64>,
    /// Where the next BAR goes that is placed.
    next_bar: Mutex<u64>,
}

impl PciRoot {
    /// `window` is where BARs may decode; it lies below 4 GiB.
    pub fn new(window: Range<u64>) -> Self {
        assert!(window.end <= 1 << 32, "BARs are 32 bits wide");
        let bridge: Function = Arc::new(Mutex::new(HostBridge::new()));
        let mut bus = Bus::default();
        bus.slots[0] = Some(Plugged::new(bridge));
        Self { bus: RwLock::new(bus), next_bar: Mutex::new(window.start), window }
    }

    fn bus(&self) -> RwLockReadGuard<'_, Bus> {
        self.bus.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_bus(&self) -> RwLockWriteGuard<'_, Bus> {
        self.bus.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn plugged(&self, slot: usize) -> Option<Plugged> {
        self.bus().slots.get(slot)?.clone()
    }

    /// Puts `function` into the first free slot, places its BARs and returns the slot (1 to 31). For machines
    /// that are being assembled.
    pub fn add(&self, function: Function) -> Result<u8, PciError> {
        let slot = self.free_slots().trailing_zeros();
        let slot = u8::try_from(slot).ok().filter(|slot| usize::from(*slot) < SLOT_COUNT);
        let slot = slot.ok_or(PciError::NoSlot)?;
        self.add_at(slot, function)?;
        Ok(slot)
    }

    /// The same with a certain slot.
    pub fn add_at(&self, slot: u8, function: Function) -> Result<(), PciError> {
        let mut next_bar = self.next_bar.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = *next_bar;
        let mut locked = lock(&function);
        let config = locked.config_mut();
        for (index, size) in config.bar_sizes().to_owned().into_iter().enumerate().filter(|(_, s)| *s > 0) {
            let start = next.next_multiple_of(u64::from(size));
            next = start + u64::from(size);
            let address = u32::try_from(start).ok().filter(|_| next <= self.window.end);
            config.place_bar(index, address.ok_or(PciError::WindowFull(size))?);
        }
        drop(locked);
        self.plug(slot, function)?;
        *next_bar = next;
        Ok(())
    }

    /// Puts `function` into a free slot of a machine that runs. Its BARs are zero: the guest places them
    /// where it has room.
    pub fn plug(&self, slot: u8, function: Function) -> Result<(), PciError> {
        lock(&function).config_mut().set_window(self.window.clone());
        match self.change_bus().slots.get_mut(usize::from(slot)) {
            Some(place @ None) => *place = Some(Plugged::new(function)),
            _ => return Err(PciError::NoSlot),
        }
        Ok(())
    }

    /// Takes the function out of `slot`, which then reads as all ones. It has been reset. Blocks until its
    /// workers have stopped. The host bridge stays.
    pub fn unplug(&self, slot: u8) {
        let slot = usize::from(slot);
        let Some(plugged) = self.plugged(slot).filter(|_| slot != 0) else { return };
        let Some(mut function) = plugged.lock() else { return };
        function.reset();
        plugged.gone.store(true, Ordering::Release);
        let mut bus = self.change_bus();
        bus.map.retain(|d| d.slot != slot);
        bus.slots[slot] = None;
    }

    /// Slots without a function, as bits.
    pub fn free_slots(&self) -> u32 {
        let bus = self.bus();
        (0u32..).zip(&bus.slots).filter(|(_, slot)| slot.is_none()).fold(0, |bits, (n, _)| bits | 1 << n)
    }

    /// Reads configuration space of `slot`. Absent functions leave `data` as it is.
    pub fn read_config(&self, slot: usize, offset: usize, data: &mut [u8]) {
        if let Some(plugged) = self.plugged(slot)
            && let Some(mut function) = plugged.lock()
        {
            function.read_config(offset, data);
        }
    }

    /// Writes configuration space of `slot`, and moves its BARs if that is what it means.
    pub fn write_config(&self, slot: usize, offset: usize, data: &[u8]) {
        if let Some(plugged) = self.plugged(slot)
            && let Some(mut function) = plugged.lock()
        {
            function.write_config(offset, data);
            self.remap(slot, function.config());
        }
    }

    /// Machine reset of every function. Blocks until their workers have stopped.
    pub fn reset(&self) {
        for slot in 0..SLOT_COUNT {
            if let Some(plugged) = self.plugged(slot)
                && let Some(mut function) = plugged.lock()
            {
                function.reset();
                self.remap(slot, function.config());
            }
        }
    }

    fn remap(&self, slot: usize, config: &ConfigSpace) {
        let decoded = (0..BAR_COUNT).filter_map(|bar| Some((bar, config.decoded_bar(bar)?)));
        let unchanged = {
            let bus = self.bus();
            let old = bus.map.iter().filter(|d| d.slot == slot).map(|d| (d.bar, d.range.clone()));
            old.eq(decoded.clone())
        };
        if unchanged {
            return;
        }
        let mut bus = self.change_bus();
        bus.map.retain(|d| d.slot != slot);
        bus.map.extend(decoded.map(|(bar, range)| Decoded { slot, bar, range }));
        bus.map.sort_by_key(|d| (d.slot, d.bar));
    }

    /// The function whose BAR covers the whole access, the BAR and the offset in it.
    fn find(&self, address: u64, len: usize) -> Option<(Plugged, usize, u64)> {
        let end = address.checked_add(len as u64)?;
        let bus = self.bus();
        let hit = bus.map.iter().find(|d| d.range.contains(&address) && end <= d.range.end)?;
        Some((bus.slots.get(hit.slot)?.clone()?, hit.bar, address - hit.range.start))
    }
}

fn lock(function: &Function) -> MutexGuard<'_, dyn PciFunction + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Configuration mechanism #1 (PCI 3.0 §3.2.2.3.2), on eight ports: address, data.
pub struct PciPorts {
    root: Arc<PciRoot>,
    address: u32,
}

const ADDRESS_ENABLE: u32 = 1 << 31;

impl PciPorts {
    /// Ports of `root`.
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self { root, address: 0 }
    }

    /// Machine reset.
    pub fn reset(&mut self) {
        self.address = 0;
    }

    /// Slot and register that an access of `len` bytes at port offset `offset` means, if it stays
    /// inside the data register and the address names function 0 of a device on bus 0.
    fn target(&self, offset: u64, len: usize) -> Option<(usize, usize)> {
        let within = usize::try_from(offset.checked_sub(4)?).ok()?;
        let bus_and_function = self.address & 0x00ff_0700;
        if self.address & ADDRESS_ENABLE == 0 || bus_and_function != 0 || within.checked_add(len)? > 4 {
            return None;
        }
        Some(((self.address >> 11 & 0x1f) as usize, (self.address & 0xfc) as usize + within))
    }
}

impl BusDevice for PciPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.address.to_le_bytes());
        } else if let Some((slot, register)) = self.target(offset, data.len()) {
            self.root.read_config(slot, register, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // Only a double word reaches the address register; others are for devices behind it.
        if let (0, Ok(address)) = (offset, <[u8; 4]>::try_from(data)) {
            self.address = u32::from_le_bytes(address) & (ADDRESS_ENABLE | 0x00ff_fffc);
        } else if let Some((slot, register)) = self.target(offset, data.len()) {
            self.root.write_config(slot, register, data);
        }
    }
}

/// Enhanced configuration access (PCI Express 3.0 §7.2.2): 4 KiB per function, bus 0 only.
pub struct PciEcam(pub Arc<PciRoot>);

impl PciEcam {
    /// Slot and register, if function 0 of a device on bus 0 is meant.
    fn target(offset: u64, len: usize) -> Option<(usize, usize)> {
        let register = (offset & 0xfff) as usize;
        let fits = register.checked_add(len)? <= 0x1000;
        (fits && offset >> 12 & 0x7 == 0 && offset < 1 << 20)
            .then_some(((offset >> 15 & 0x1f) as usize, register))
    }
}

impl BusTarget for PciEcam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((slot, register)) = Self::target(offset, data.len()) {
            self.0.read_config(slot, register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((slot, register)) = Self::target(offset, data.len()) {
            self.0.write_config(slot, register, data);
        }
    }
}

/// The window of memory BARs. Register it at the start of the root's window.
pub struct PciWindow(pub Arc<PciRoot>);

impl BusTarget for PciWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let address = self.0.window.start.saturating_add(offset);
        if let Some((plugged, bar, offset)) = self.0.find(address, data.len())
            && let Some(mut function) = plugged.lock()
        {
            function.read_bar(bar, offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let address = self.0.window.start.saturating_add(offset);
        if let Some((plugged, bar, offset)) = self.0.find(address, data.len())
            && let Some(mut function) = plugged.lock()
        {
            function.write_bar(bar, offset, data);
        }
    }
}

/// Slot 0: what tells software that this is a PCI bus. It does nothing.
struct HostBridge(ConfigSpace);

impl HostBridge {
    fn new() -> Self {
        // The id of a generic PCI Express host bridge that needs no driver.
        Self(ConfigSpace::new(&Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: 0x06_00_00,
            subsystem_vendor: 0,
            subsystem: 0,
        }))
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Range<u64> = 0xc000_0000..0xc010_0000;
    const DATA: u64 = 4;

    /// A function with one BAR that reads as its name.
    struct Named {
        name: u8,
        config: ConfigSpace,
        written: Vec<(u64, Vec<u8>)>,
    }

    impl Named {
        fn new(name: u8, bar: u32) -> Arc<Mutex<Self>> {
            let mut config = ConfigSpace::new(&Identity {
                vendor: 0x1234,
                device: name.into(),
                revision: 0,
                class: 0xff_00_00,
                subsystem_vendor: 0,
                subsystem: 0,
            });
            config.add_memory_bar(0, bar);
            Arc::new(Mutex::new(Self { name, config, written: Vec::new() }))
        }
    }

    impl PciFunction for Named {
        fn config(&self) -> &ConfigSpace {
            &self.config
        }
        fn config_mut(&mut self) -> &mut ConfigSpace {
            &mut self.config
        }
        fn read_bar(&mut self, _bar: usize, _offset: u64, data: &mut [u8]) {
            data.fill(self.name);
        }
        fn write_bar(&mut self, _bar: usize, offset: u64, data: &[u8]) {
            self.written.push((offset, data.to_vec()));
        }
    }

    struct Bench {
        root: Arc<PciRoot>,
        ports: PciPorts,
        functions: Vec<Arc<Mutex<Named>>>,
    }

    /// Functions 1 and 2 with BARs of 4 and 16 KiB.
    fn bench() -> Bench {
        let root = PciRoot::new(WINDOW);
        let functions = vec![Named::new(1, 0x1000), Named::new(2, 0x4000)];
        for (slot, function) in (1..).zip(&functions) {
            assert_eq!(root.add(function.clone()), Ok(slot));
        }
        let root = Arc::new(root);
        Bench { ports: PciPorts::new(root.clone()), root, functions }
    }

    impl Bench {
        fn port_read<const N: usize>(&mut self, offset: u64) -> [u8; N] {
            let mut data = [0xff; N];
            self.ports.read(offset, &mut data);
            data
        }
        fn select(&mut self, slot: u32, register: u32) {
            self.ports.write(0, &(1 << 31 | slot << 11 | register).to_le_bytes());
        }
        fn config_write(&mut self, slot: u32, register: u32, data: &[u8]) {
            self.select(slot, register);
            self.ports.write(DATA, data);
        }
        fn window_read(&self, address: u64) -> [u8; 4] {
            let mut data = [0xff; 4];
            PciWindow(self.root.clone()).read(address - WINDOW.start, &mut data);
            data
        }
        fn ecam_read<const N: usize>(&self, offset: u64) -> [u8; N] {
            let mut data = [0xff; N];
            PciEcam(self.root.clone()).read(offset, &mut data);
            data
        }
    }

    #[test]
    fn ports_pass_the_probe_of_linux_and_find_functions() {
        let mut bench = bench();
        bench.ports.write(3, &[1]);
        bench.ports.write(0, &0x8000_0000u32.to_le_bytes());
        assert_eq!(u32::from_le_bytes(bench.port_read(0)), 0x8000_0000);
        bench.select(0, 8);
        assert_eq!(bench.port_read(DATA + 2), [0x00, 0x06], "a host bridge");
        for (slot, vendor) in [(0, 0x0008_1b36), (1, 0x0001_1234), (2, 0x0002_1234), (3, !0), (31, !0)] {
            bench.select(slot, 0);
            assert_eq!(u32::from_le_bytes(bench.port_read(DATA)), vendor, "{slot}");
        }
        bench.select(1, 0);
        assert_eq!(bench.port_read(DATA + 1), [0x12]);
        assert_eq!(bench.port_read(DATA + 2), [0x01, 0x00]);
    }

    #[test]
    fn ports_refuse_other_buses_functions_and_odd_accesses() {
        let mut bench = bench();
        for address in [0u32, 0x0000_0800, 0x8001_0800, 0x8000_0900, 0x80ff_ff00] {
            bench.ports.write(0, &address.to_le_bytes());
            assert_eq!(bench.port_read::<4>(DATA), [0xff; 4], "{address:#x}");
        }
        bench.select(1, 0);
        assert_eq!(bench.port_read::<4>(DATA + 1), [0xff; 4]);
        assert_eq!(bench.port_read::<8>(DATA), [0xff; 8]);
        assert_eq!(bench.port_read::<8>(0), [0xff; 8]);
        assert_eq!(bench.port_read::<2>(0), [0xff; 2]);
        assert_eq!(bench.port_read::<3>(DATA), [0x34, 0x12, 0x01]);
        assert_eq!(bench.port_read::<1>(u64::MAX), [0xff]);
    }

    #[test]
    fn ecam_covers_bus_0_function_0_only() {
        let bench = bench();
        assert_eq!(bench.ecam_read(0), [0x36, 0x1b, 0x08, 0x00]);
        assert_eq!(bench.ecam_read(1 << 15), [0x34, 0x12, 0x01, 0x00]);
        assert_eq!(bench.ecam_read(2 << 15), [0x34, 0x12, 0x02, 0x00, 0x00, 0x00, 0x00, 0x00]);
        assert_eq!(bench.ecam_read((1 << 15) + 0x100), [0; 4], "no extended capabilities");
        assert_eq!(bench.ecam_read(1 << 12), [0xff; 4]);
        assert_eq!(bench.ecam_read(3 << 15), [0xff; 4]);
        assert_eq!(bench.ecam_read((1 << 15) + 0xffe), [0xff; 4], "crosses into the next function");
        assert_eq!(bench.ecam_read(1 << 20), [0xff; 4]);
        assert_eq!(bench.ecam_read(u64::MAX), [0xff; 1]);
    }

    #[test]
    fn bars_answer_where_they_are_and_only_when_decoding() {
        let mut bench = bench();
        let (first, second) = (0xc000_0000, 0xc000_4000);
        assert_eq!(bench.window_read(first), [0xff; 4]);
        bench.config_write(1, 4, &[2]);
        bench.config_write(2, 4, &[2]);
        assert_eq!(bench.window_read(first), [1; 4]);
        assert_eq!(bench.window_read(second + 0x3ffc), [2; 4]);
        assert_eq!(bench.window_read(first + 0xffe), [0xff; 4], "crosses the end of the BAR");
        assert_eq!(bench.window_read(first + 0x1000), [0xff; 4]);
        PciWindow(bench.root.clone()).write(0x4008, &[1, 2]);
        assert_eq!(bench.functions[1].lock().unwrap().written, [(8, vec![1, 2])]);

        bench.config_write(1, 0x10, &0xc008_0000u32.to_le_bytes());
        assert_eq!(bench.window_read(first), [0xff; 4]);
        assert_eq!(bench.window_read(0xc008_0000), [1; 4]);
        // Sized with decoding on: gone for the time being.
        bench.config_write(1, 0x10, &[0xff; 4]);
        assert_eq!(bench.window_read(0xc008_0000), [0xff; 4]);
        bench.config_write(1, 0x10, &0xc008_0000u32.to_le_bytes());
        assert_eq!(bench.window_read(0xc008_0000), [1; 4]);
        bench.config_write(1, 4, &[0]);
        assert_eq!(bench.window_read(0xc008_0000), [0xff; 4]);
        bench.root.reset();
        assert_eq!(bench.window_read(second), [0xff; 4]);
        bench.config_write(1, 4, &[2]);
        assert_eq!(bench.window_read(first), [1; 4], "home again");
    }

    #[test]
    fn lower_slot_answers_where_bars_overlap() {
        let mut bench = bench();
        bench.config_write(2, 4, &[2]);
        bench.config_write(1, 4, &[2]);
        bench.config_write(1, 0x10, &0xc000_5000u32.to_le_bytes());
        assert_eq!(bench.window_read(0xc000_4ffc), [2; 4]);
        assert_eq!(bench.window_read(0xc000_5000), [1; 4]);
        assert_eq!(bench.window_read(0xc000_6000), [2; 4]);
    }

    #[test]
    fn full_window_and_full_bus_refuse() {
        let root = PciRoot::new(WINDOW);
        assert_eq!(root.add(Named::new(1, 0x20_0000)), Err(PciError::WindowFull(0x20_0000)));
        for slot in 1..32 {
            assert_eq!(root.add(Named::new(slot, 0x1000)), Ok(slot));
        }
        assert_eq!(root.add(Named::new(32, 0x1000)), Err(PciError::NoSlot));
    }

    #[test]
    fn functions_come_and_go_while_the_machine_runs() {
        let mut bench = bench();
        let late = Named::new(3, 0x1000);
        assert_eq!(bench.root.free_slots(), !0b111);
        assert_eq!(bench.root.plug(2, late.clone()), Err(PciError::NoSlot));
        assert_eq!(bench.root.plug(32, late.clone()), Err(PciError::NoSlot));
        bench.root.plug(7, late.clone()).unwrap();
        assert_eq!(bench.ecam_read(7 << 15), [0x34, 0x12, 0x03, 0x00]);
        assert_eq!(bench.ecam_read((7 << 15) + 0x10), [0; 4], "the guest places it");
        bench.config_write(7, 0x10, &0xc00f_0000u32.to_le_bytes());
        bench.config_write(7, 4, &[2]);
        assert_eq!(bench.window_read(0xc00f_0000), [3; 4]);

        bench.root.unplug(7);
        assert_eq!(late.lock().unwrap().config.word(4) & 2, 0, "it has been reset");
        assert_eq!(bench.ecam_read(7 << 15), [0xff; 4]);
        assert_eq!(bench.window_read(0xc00f_0000), [0xff; 4]);
        bench.config_write(7, 4, &[2]);
        assert_eq!(late.lock().unwrap().config.word(4) & 2, 0, "nothing reaches it any more");

        bench.root.plug(7, Named::new(4, 0x1000)).unwrap();
        assert_eq!(bench.window_read(0xc00f_0000), [0xff; 4], "the BAR of the one before");
        assert_eq!(bench.ecam_read(7 << 15), [0x34, 0x12, 0x04, 0x00]);
        bench.root.unplug(0);
        bench.root.unplug(9);
        bench.root.unplug(255);
        assert_eq!(bench.ecam_read(0), [0x36, 0x1b, 0x08, 0x00], "the bridge stays");
    }

    #[test]
    fn access_that_found_a_function_before_it_was_unplugged_does_nothing() {
        let bench = bench();
        let found = bench.root.plugged(1).unwrap();
        bench.root.unplug(1);
        assert!(found.lock().is_none());
    }
}
