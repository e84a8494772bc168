//! What clients ask about the network interfaces of a running machine. Errors are one line for a person.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_model::MacAddr;
use kiln_vmspec::{AttachedNic, MetadataSnapshot, NicSpec, Reply};

use crate::disks::Force;
use crate::host::{Detached, Host, OpenNic};
use crate::machine::Machine;
use crate::process::chain;

/// Takes over an interface and plugs it in, or changes nothing.
pub(crate) fn attach(
    machine: &mut Machine,
    host: &mut Host,
    spec: NicSpec,
    fds: Vec<OwnedFd>,
    metadata: &Arc<MetadataSnapshot>,
) -> Result<(), String> {
    let slot = machine.free_slot().ok_or("all slots of the PCI bus are taken")?;
    let nic = host.attach_nic(spec, fds, slot, Arc::clone(metadata)).map_err(|e| chain(&e))?;
    machine.attach_nic(nic).map_err(|e| {
        host.detach(slot);
        chain(&e)
    })
}

/// Asks the guest to let go of an interface. By force its tap is closed before, which is answered then.
pub(crate) fn detach(
    machine: &Machine,
    host: &mut Host,
    mac: MacAddr,
    force: Option<Force>,
) -> Result<Option<Detached>, String> {
    let place = host.nics.iter().position(|nic| nic.spec.mac == mac && !nic.cut);
    let nic = place.and_then(|place| host.nics.get(place));
    let nic = nic.ok_or_else(|| format!("the machine has no network interface {mac}"))?;
    if host.is_primary(nic) {
        return Err("the guest lives on its first network interface".to_owned());
    }
    let (slot, backend) = (nic.slot, Arc::clone(&nic.backend));
    if let Some(Force { paused }) = &force {
        machine.hollow_out(slot, *paused, || backend.cut());
    }
    if let Some(nic) = place.and_then(|place| host.nics.get_mut(place)) {
        nic.leaving = true;
        nic.cut = force.is_some();
    }
    machine.ask_back(slot);
    Ok(force.map(|_| Detached::Nic(mac)))
}

/// What there is.
pub(crate) fn list(host: &Host) -> Reply {
    let shown = |nic: &OpenNic| AttachedNic { mac: nic.spec.mac, leaving: nic.leaving };
    let nics = host.nics.iter().filter(|nic| !nic.cut).map(shown).collect();
    Reply::Nics { nics, spare: host.spare_nics() }
}
