//! Disks and network interfaces that come and go while the guest runs. Somebody outside attaches, resizes and
//! detaches them when the lines with `waiting` appear.

use crate::io;
use crate::memory;
use crate::pci::Function;
use crate::report::{Outcome, ensure, ensure_eq, println};
use crate::virtio::blk::{Blk, F_FLUSH, S_IOERR, S_OK, SECTOR, T_FLUSH, T_GET_ID, T_IN, T_OUT};
use crate::virtio::common;
use crate::virtio::net::Net;
use crate::{clock, runtime};

use super::packet::Ip;
use super::{imds, net};

/// Of the event register: the hot-plug registers have news.
pub const EVENT_HOTPLUG: u32 = 1 << 2;
const ARRIVED: u16 = 0x620;
const LEAVING: u16 = 0x624;
const EJECT: u16 = 0x628;
const PATIENCE: u64 = 120_000;

/// Lets go at once of whatever is asked for.
pub fn let_go() {
    let _ = io::in32(ARRIVED);
    io::out32(EJECT, io::in32(LEAVING));
}

/// Waits for the event and for a slot in `register`, as the event method does.
fn wait(register: u16) -> Outcome<Function> {
    let mut slots = 0;
    let seen = clock::poll(PATIENCE, || {
        if runtime::power_events() & EVENT_HOTPLUG != 0 {
            slots = io::in32(register);
        }
        (slots != 0).then_some(())
    });
    ensure!(seen.is_some(), "nothing happened in {register:#x}");
    ensure_eq!(slots.count_ones(), 1, "slots in {register:#x}");
    ensure_eq!(io::in32(register), 0, "slots after they were read");
    Ok(Function { device: slots.trailing_zeros() as u8, function: 0 })
}

fn arrival() -> Outcome<(Function, Blk)> {
    println!("  waiting for a disk");
    let function = wait(ARRIVED)?;
    ensure_eq!(function.read32(0x10) & !0xf, 0, "the BAR before anybody has placed it");
    let mut blk = Blk::start_at(function)?;
    let text = memory::allocate(20);
    ensure_eq!(blk.request(T_GET_ID, 0, Some(text))?, S_OK, "asking for the serial number");
    let end = text.bytes().iter().position(|b| *b == 0).unwrap_or(20);
    println!("  slot {} has {:?}", function.device, core::str::from_utf8(&text.bytes()[..end]));
    Ok((function, blk))
}

/// Sectors tell their number, as those of the harness do.
fn check(blk: &mut Blk, sector: u64) -> Outcome {
    let data = memory::allocate(SECTOR);
    ensure_eq!(blk.request(T_IN, sector, Some(data))?, S_OK, "reading sector {sector}");
    ensure!(data.bytes()[..8] == sector.to_le_bytes(), "sector {sector} holds {:x?}", &data.bytes()[..8]);
    Ok(())
}

fn gone(function: Function, status: u64) -> Outcome {
    ensure_eq!(function.read32(0), !0, "configuration space of an empty slot");
    ensure_eq!(io::read8(status), 0xff, "status register of an empty slot");
    // What an old driver still does goes nowhere.
    io::write8(status, 0xf);
    function.write16(4, 0xffff);
    ensure_eq!(function.read32(0), !0, "configuration space after that");
    Ok(())
}

/// A disk comes, is read and written, grows, is let go of; what was not asked for stays.
pub fn disk() -> Outcome {
    let before = crate::pci::functions().count();
    io::out32(EJECT, !0);
    ensure_eq!(crate::pci::functions().count(), before, "functions after ejecting what nobody asked for");
    let (function, mut blk) = arrival()?;
    let last = blk.capacity - 1;
    check(&mut blk, 0)?;
    check(&mut blk, last)?;
    let mark = memory::allocate(SECTOR);
    mark.fill(0x5a);
    ensure_eq!(blk.request(T_OUT, 1, Some(mark))?, S_OK, "writing");
    ensure!(blk.features & F_FLUSH != 0, "no flush");
    ensure_eq!(blk.request(T_FLUSH, 0, None)?, S_OK, "flushing");

    let (old, generation) = (blk.capacity, blk.transport.config_generation());
    let data = memory::allocate(SECTOR);
    ensure_eq!(blk.request(T_IN, old, Some(data))?, S_IOERR, "reading past the end");
    println!("  waiting for growth");
    let grown = clock::poll(PATIENCE, || {
        (blk.transport.config_generation() != generation).then(|| blk.read_capacity())
    });
    let Some(grown) = grown else { crate::report::fail!("the disk did not grow") };
    println!("  {old} sectors became {grown}");
    ensure!(grown > old, "the disk has {grown} sectors");
    ensure_eq!(blk.request(T_IN, grown - 1, Some(data))?, S_OK, "reading what is new");
    ensure!(data.bytes().iter().all(|b| *b == 0), "what is new is not zero");
    ensure_eq!(blk.request(T_OUT, grown - 1, Some(mark))?, S_OK, "writing what is new");

    println!("  waiting for the end of it");
    ensure_eq!(wait(LEAVING)?.device, function.device, "slot that is to be let go of");
    check(&mut blk, 0)?;
    let status = blk.transport.common + common::DEVICE_STATUS;
    io::out32(EJECT, 1 << function.device);
    gone(function, status)
}

/// A disk comes and is taken: its device answers with errors until it is let go of.
pub fn surprise() -> Outcome {
    let (function, mut blk) = arrival()?;
    let status = blk.transport.common + common::DEVICE_STATUS;
    println!("  waiting for a surprise");
    let data = memory::allocate(SECTOR);
    let mut failed = Ok(());
    let taken = clock::poll(PATIENCE, || match blk.request(T_IN, 0, Some(data)) {
        Ok(S_OK) => None,
        Ok(status) => Some(status),
        Err(e) => {
            failed = Err(e);
            Some(S_OK)
        }
    });
    failed?;
    ensure_eq!(taken, Some(S_IOERR), "status of a request without a disk");
    ensure_eq!(blk.request(T_OUT, 0, Some(data))?, S_IOERR, "status of a write without a disk");
    ensure_eq!(wait(LEAVING)?.device, function.device, "slot that is to be let go of");
    blk.transport.reset()?;
    io::out32(EJECT, 1 << function.device);
    gone(function, status)?;
    println!("  it is gone");
    Ok(())
}

fn arrived_interface() -> Outcome<(Function, Net)> {
    println!("  waiting for an interface");
    let function = wait(ARRIVED)?;
    let net = Net::start_at(function)?;
    println!("  slot {} has {:02x?}", function.device, net.mac);
    ensure!(net.link_up(), "it has no link");
    Ok((function, net))
}

/// An interface comes, its services answer, and is let go of.
pub fn interface() -> Outcome {
    let (function, mut net) = arrived_interface()?;
    imds::ask(&mut net)?;
    println!("  waiting for the end of it");
    ensure_eq!(wait(LEAVING)?.device, function.device, "slot that is to be let go of");
    let lease = net::lease(&mut net)?;
    println!("  until then it has {:?}", lease.ip);
    let status = net.transport.common + common::DEVICE_STATUS;
    io::out32(EJECT, 1 << function.device);
    gone(function, status)
}

/// An interface comes with a wire to somebody, who answers as long as it is there.
pub fn interface_on_a_wire() -> Outcome {
    const NEIGHBOUR: Ip = [10, 0, 1, 200];
    let (function, mut net) = arrived_interface()?;
    let lease = net::lease(&mut net)?;
    println!("  the neighbour is at {:02x?}", net::resolve(&mut net, lease.ip, NEIGHBOUR)?);
    println!("  waiting for the end of it");
    ensure_eq!(wait(LEAVING)?.device, function.device, "slot that is to be let go of");
    net::resolve(&mut net, lease.ip, NEIGHBOUR)?;
    let status = net.transport.common + common::DEVICE_STATUS;
    io::out32(EJECT, 1 << function.device);
    gone(function, status)
}

/// An interface comes and is cut off: its device takes frames that nobody answers until it is let go of.
pub fn interface_cut() -> Outcome {
    let (function, mut net) = arrived_interface()?;
    net::lease(&mut net)?;
    let generation = net.transport.config_generation();
    println!("  waiting for a surprise");
    ensure!(clock::poll(PATIENCE, || (!net.link_up()).then_some(())).is_some(), "the link stays");
    ensure!(net.transport.config_generation() != generation, "the configuration has no new generation");
    ensure_eq!(wait(LEAVING)?.device, function.device, "slot that is to be let go of");
    ensure!(net::lease(&mut net).is_err(), "somebody answers without a link");
    let status = net.transport.common + common::DEVICE_STATUS;
    net.transport.reset()?;
    io::out32(EJECT, 1 << function.device);
    gone(function, status)?;
    println!("  it is gone");
    Ok(())
}
