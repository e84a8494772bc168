//! Turns bytes into what a hostile guest does to a device. One body for fuzzing and for property
//! tests.

use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{
    Buffer, GuestDriver, GuestQueue, Loopback, PORT_BASE, RawDescriptor, TestMachine, common, status,
};
use crate::virtio::{VirtioDevice, VirtioPci};

/// Where queues of a victim lie; hostile writes to memory stay close by.
const QUEUES: u64 = 0x10_0000;
const BUFFERS: u64 = 0x80_0000;
/// Registers that are worth hitting more often than chance would.
const INTERESTING: [u64; 24] = [
    common::DEVICE_FEATURE_SELECT,
    common::DRIVER_FEATURE_SELECT,
    common::DRIVER_FEATURE,
    common::CONFIG_MSIX_VECTOR,
    common::DEVICE_STATUS,
    common::QUEUE_SELECT,
    common::QUEUE_SIZE,
    common::QUEUE_MSIX_VECTOR,
    common::QUEUE_ENABLE,
    common::QUEUE_DESC,
    common::QUEUE_DESC + 4,
    common::QUEUE_DRIVER,
    common::QUEUE_DEVICE,
    0x1000, // ISR
    0x2000, // device configuration
    0x2ffc,
    0x3000, // notifications
    0x3004,
    0x3006,
    0x4000, // MSI-X table
    0x400c,
    0x401c,
    0x5000, // pending bits
    0x7ff8,
];
/// Values that mean something somewhere.
const VALUES: [u64; 16] =
    [0, 1, 2, 3, 4, 8, 0xb, 0xf, 0x80, 0x400, 0x8000, 0xffff, QUEUES, 0xc000_0000, 0xfee0_0000, u64::MAX];

/// Reads values off a byte string; zeroes when it has ended.
struct Tape<'a>(&'a [u8]);

impl Tape<'_> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        bytes.fill_with(|| self.byte());
        u64::from_le_bytes(bytes)
    }

    fn value(&mut self) -> u64 {
        match self.byte() {
            pick @ 0..0xc0 => VALUES[usize::from(pick) % VALUES.len()],
            _ => self.number(),
        }
    }

    fn offset(&mut self, len: u64) -> u64 {
        match self.byte() {
            pick @ 0..0xc0 => INTERESTING[usize::from(pick) % INTERESTING.len()] % len,
            _ => self.number() % len,
        }
    }

    /// Mostly the lengths that a processor makes; sometimes others.
    fn len(&mut self) -> usize {
        match self.byte() {
            pick @ 0..0xf0 => [1, 2, 4, 8][usize::from(pick) % 4],
            pick => usize::from(pick % 16),
        }
    }

    fn ended(&self) -> bool {
        self.0.is_empty()
    }
}

/// Makes the device under attack for a machine with this memory.
pub trait Victim: FnOnce(&GuestMemoryMmap) -> Box<dyn VirtioDevice> {}

impl<F: FnOnce(&GuestMemoryMmap) -> Box<dyn VirtioDevice>> Victim for F {}

/// A machine with a bystander in slot 1, which runs, and a victim in slot 2.
struct Scene {
    machine: TestMachine,
    bystander: GuestDriver,
    bystander_queue: GuestQueue,
    victim: GuestDriver,
    device: Arc<Mutex<VirtioPci>>,
}

impl Scene {
    fn new(victim: impl Victim) -> Self {
        let mem = TestMachine::memory();
        let victim = victim(&mem);
        let machine = TestMachine::assemble(mem, vec![Box::new(Loopback::new("bystander", &[8])), victim]);
        let bystander = GuestDriver::probe(&machine, 1);
        let (_, mut queues) = bystander.start(&machine, 0, 0x1_0000);
        let victim = GuestDriver::probe(&machine, 2);
        let device = machine.devices[1].clone();
        Self { bystander, bystander_queue: queues.remove(0), victim, device, machine }
    }

    /// The bystander still answers, once nobody sits on its addresses.
    fn check_bystander(mut self) {
        self.machine.config_write(2, 4, &[0, 0]);
        let (machine, queue) = (&self.machine, &mut self.bystander_queue);
        assert_eq!(self.bystander.status(machine), 0xf);
        machine.mem.write_slice(b"still here", GuestAddress(0x8000)).unwrap();
        queue.add(&[Buffer::readable(0x8000, 10), Buffer::writable(0x9000, 10)]);
        self.bystander.kick(machine, 0);
        machine.run();
        assert_eq!(queue.poll_used(), Some((0, 10)));
        let mut answer = [0; 10];
        machine.mem.read_slice(&mut answer, GuestAddress(0x9000)).unwrap();
        assert_eq!(&answer, b"still here");
        let interrupts = self.bystander.interrupts(machine);
        assert!(interrupts.contains(&0x41), "{interrupts:x?}");
    }
}

/// Accesses of any kind, place, length and order to `victim`, which is first brought up as far as
/// the first byte says. Panics when a register changes that must not, when a worker is started
/// twice, or when the device's neighbour suffers.
pub fn hammer_registers(victim: impl Victim, data: &[u8]) {
    let mut tape = Tape(data);
    let scene = Scene::new(victim);
    let (machine, driver) = (&scene.machine, &scene.victim);
    match tape.byte() % 4 {
        0 => {}
        1 => drop(driver.negotiate(machine, u64::MAX)),
        2 => {
            driver.negotiate(machine, u64::MAX);
            driver.enable_queue(machine, &GuestQueue::new(machine, 0, 4, QUEUES));
        }
        _ => drop(driver.start(machine, u64::MAX, QUEUES)),
    }
    while !tape.ended() {
        let before = scene.device.lock().unwrap().frozen();
        one_access(&scene, &mut tape);
        let after = scene.device.lock().unwrap().frozen();
        before.assert_kept(&after);
        machine.run();
    }
    drop(machine.msi.take_delivered());
    scene.check_bystander();
}

fn one_access(scene: &Scene, tape: &mut Tape<'_>) {
    let (machine, driver) = (&scene.machine, &scene.victim);
    let kind = tape.byte() % 16;
    let (value, len) = (tape.value(), tape.len());
    let mut data = [0; 16];
    data[..8].copy_from_slice(&value.to_le_bytes());
    let data = &mut data[..len.min(16)];
    let common = |field| machine.mmio_write(driver.common + field, &value.to_le_bytes()[..2]);
    match kind {
        0..=3 => machine.mmio_write(driver.bar + tape.offset(driver.bar_len), data),
        4 | 5 => machine.mmio_read(driver.bar + tape.offset(driver.bar_len), data),
        6 => machine.config_write(2, tape.byte(), &data[..len.min(4)]),
        7 => machine.mmio_write(TestMachine::ecam(2, tape.number() as u16 % 0x1000), data),
        8 => machine.mmio_read(TestMachine::ecam(2, tape.number() as u16 % 0x1000), data),
        9 => machine.port_write(PORT_BASE + u64::from(tape.byte() % 8), data),
        10 => machine.port_read(PORT_BASE + u64::from(tape.byte() % 8), data),
        11 => machine.mmio_write(driver.common + common::DEVICE_STATUS, &[value as u8]),
        12 => common(common::QUEUE_SELECT),
        // One legal step after the other gets further than chance.
        13 => {
            let status = driver.status(machine);
            let next = [status::ACKNOWLEDGE, status::DRIVER, status::FEATURES_OK, status::DRIVER_OK];
            if status == status::ACKNOWLEDGE | status::DRIVER {
                driver.set_driver_features(machine, driver.device_features(machine));
            }
            let bit = next.into_iter().find(|bit| status & bit == 0).unwrap_or(0);
            driver.set_status(machine, status | bit);
        }
        14 if value & 1 == 0 => {
            let mut device = scene.device.lock().unwrap();
            device.pause();
            let _ = device.resume();
        }
        14 => scene.device.lock().unwrap().config_changed(),
        _ => machine.doorbells.refuse(value & 1 == 0),
    }
}

/// Rings and descriptors of any content for `victim`, which runs with all its queues. Panics when
/// the device does, when it never comes to rest, or when its neighbour suffers.
pub fn hammer_rings(victim: impl Victim, data: &[u8]) {
    let mut tape = Tape(data);
    let mut scene = Scene::new(victim);
    let (_, mut queues) = scene.victim.start(&scene.machine, u64::MAX, QUEUES);
    while !tape.ended() {
        ring_step(&scene, &mut queues, &mut tape);
        scene.machine.run();
        if scene.victim.status(&scene.machine) & status::DEVICE_NEEDS_RESET != 0 {
            (_, queues) = scene.victim.start(&scene.machine, u64::MAX, QUEUES);
        }
    }
    scene.machine.config_write(2, 4, &[0, 0]);
    // Buffers may have pointed at the bystander's memory: it starts over.
    (_, queues) = scene.bystander.start(&scene.machine, 0, 0x1_0000);
    scene.bystander_queue = queues.remove(0);
    scene.check_bystander();
}

fn ring_step(scene: &Scene, queues: &mut [GuestQueue], tape: &mut Tape<'_>) {
    let count = queues.len();
    let Some(queue) = queues.get_mut(usize::from(tape.byte()) % count.max(1)) else { return };
    let slot = u16::from(tape.byte()) % queue.size;
    let address = |tape: &mut Tape<'_>| match tape.byte() {
        0..0xa0 => BUFFERS + tape.number() % 0x1_0000,
        0xa0..0xc0 => queue.desc + tape.number() % 0x1000,
        _ => tape.value(),
    };
    match tape.byte() % 8 {
        0..=2 => {
            let addr = address(tape);
            let len = if tape.byte() < 0xc0 { tape.number() as u32 % 0x2000 } else { tape.value() as u32 };
            let (flags, next) = (u16::from(tape.byte() & 7), u16::from(tape.byte()));
            let next = if next < 0xf0 { next % queue.size } else { next };
            queue.set_descriptor(slot, RawDescriptor { addr, len, flags, next });
        }
        3 => {
            let at = BUFFERS + u64::from(tape.byte()) * 16;
            let (addr, len) = (address(tape), tape.number() as u32 % 0x2000);
            let (flags, next) = (u16::from(tape.byte() & 7), u16::from(tape.byte() % 16));
            queue.set_descriptor_at(at, RawDescriptor { addr, len, flags, next });
        }
        4 => {
            let at = BUFFERS + tape.number() % 0x1_0000;
            let _ = scene.machine.mem.write_obj(tape.value(), GuestAddress(at));
        }
        5 | 6 => {
            let head = if tape.byte() < 0xf0 { slot } else { tape.value() as u16 };
            queue.publish(head);
            if tape.byte() < 0xc0 {
                scene.victim.kick(&scene.machine, queue.index);
            }
        }
        _ => {
            match tape.byte() {
                0..0x20 => queue.set_avail_idx(tape.value() as u16),
                _ => queue.set_used_event(tape.value() as u16),
            }
            scene.victim.kick(&scene.machine, queue.index);
        }
    }
}
