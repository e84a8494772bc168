//! What clients ask about the disks of a running machine. Errors are one line for a person.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_vmspec::{AttachedDisk, DiskSpec, Reply};

use crate::host::{Detached, Host, OpenDisk};
use crate::machine::Machine;
use crate::process::chain;

fn find<'h>(host: &'h mut Host, serial: &str) -> Result<(usize, &'h mut OpenDisk), String> {
    let found = host.disks.iter_mut().enumerate().find(|(_, disk)| disk.spec.serial == serial);
    found.ok_or_else(|| format!("the machine has no disk {serial}"))
}

/// Opens a disk and plugs it in, or changes nothing.
pub(crate) fn attach(
    machine: &mut Machine,
    host: &mut Host,
    spec: DiskSpec,
    fds: Vec<OwnedFd>,
) -> Result<(), String> {
    let slot = machine.free_slot().ok_or("all slots of the PCI bus are taken")?;
    let disk = host.attach(spec, fds, slot).map_err(|e| chain(&e))?;
    machine.attach_disk(disk).map_err(|e| {
        host.detach(slot);
        chain(&e)
    })
}

/// Not to wait for the guest.
pub(crate) struct Force {
    /// The machine stands still.
    pub(crate) paused: bool,
}

/// Asks the guest to let go of a disk. By force it is taken and closed before, which is answered then.
pub(crate) fn detach(
    machine: &Machine,
    host: &mut Host,
    serial: &str,
    force: Option<Force>,
) -> Result<Option<Detached>, String> {
    let (place, disk) = find(host, serial)?;
    if place == 0 {
        return Err("the guest lives on its first disk".to_owned());
    }
    disk.leaving = true;
    let (slot, engines) = (disk.slot, Arc::clone(&disk.engines));
    let taken = force.and_then(|Force { paused }| {
        machine.hollow_out(slot, paused, || engines.park());
        host.take_disk(slot)
    });
    machine.ask_back(slot);
    Ok(taken)
}

/// Makes a disk larger.
pub(crate) fn resize(machine: &Machine, host: &mut Host, serial: &str, size: u64) -> Result<(), String> {
    let (_, disk) = find(host, serial)?;
    if disk.disk.size() != size {
        disk.disk.grow(size).map_err(|e| chain(&e))?;
        machine.resized(disk.slot, size);
    }
    Ok(())
}

/// What there is.
pub(crate) fn list(host: &Host) -> Reply {
    let shown = |disk: &OpenDisk| AttachedDisk {
        serial: disk.spec.serial.clone(),
        size: disk.disk.size(),
        leaving: disk.leaving,
    };
    Reply::Disks { disks: host.disks.iter().map(shown).collect(), spare: host.spares.len() }
}
