//! Network interfaces that instances get and lose, stopped ones and those that run.
//!
//! ```text
//!   available ─ attaching ─▶ policy, tap ─▶ machine has it: attached ─ detaching ─▶ guest lets go, or force
//!                  │ refused                                │ machine ends              ▼
//!                  └──▶ available                           └──▶ available ◀── tap goes ┘
//! ```
//!
//! What is wanted stands in the rows first: whoever dies in between leaves it there, and the next daemon
//! concludes it ([`resume`]). While it is under way the instance has the interface, so that whatever ends the
//! machine meanwhile undoes the host's side of it too. An interface is one at a time, by its lock: what one
//! has found out of machine and host holds until its row says so.
//!
//! A tap is there as long as somebody holds it open. So one that was made for a machine that took it no more
//! goes by itself, and what else the host knew of it is replaced when it is made again.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_model::{AttachmentState, InstanceId, InstanceState, InterfaceId, MacAddr};
use kiln_vmspec::{AttachedNic, Command, FdIndex, Reply};

use super::machine::Machine;
use super::{ControlPlane, Instance, NetworkMode, Parts, launch, spec};
use crate::network::{
    Interface, MAX_INTERFACES, Membership, NetworkError, Networks, Placement, interfaces_of, let_go,
};
use crate::state::{StoreError, Transaction, transact};
use crate::vmm_process::{Commands, VmmError};

const ATTACHING: &str = "attaching a network interface";
const DETACHING: &str = "detaching a network interface";

fn failed(action: &'static str) -> impl FnOnce(VmmError) -> NetworkError {
    move |source| NetworkError::Machine { action, source: Box::new(source) }
}

/// What interfaces a machine has, and room for how many more.
async fn nics(commands: &dyn Commands) -> Result<(Vec<AttachedNic>, usize), VmmError> {
    match commands.request(Command::ListNics).await? {
        Reply::Nics { nics, spare } => Ok((nics, spare)),
        _ => Err(VmmError::NoAnswer),
    }
}

fn has(nics: &[AttachedNic], mac: MacAddr) -> bool {
    nics.iter().any(|nic| nic.mac == mac)
}

/// Whether the machine has an interface.
async fn machine_has(commands: &dyn Commands, mac: MacAddr) -> Result<bool, VmmError> {
    Ok(has(&nics(commands).await?.0, mac))
}

/// Does something with an interface while nobody else does.
fn alone<T>(
    parts: &Parts,
    interface: InterfaceId,
    what: impl FnOnce() -> Result<T, NetworkError>,
) -> Result<T, NetworkError> {
    let lock = parts.dir.lock_interface(interface)?;
    let result = what();
    lock.remove();
    result
}

/// Connects an interface to its network, and gives it to the machine.
async fn give(
    parts: &Parts,
    row: &Instance,
    interface: &Interface,
    commands: &dyn Commands,
) -> Result<(), NetworkError> {
    let taps: Vec<OwnedFd> = match row.network {
        NetworkMode::Vpc => launch::connect::<NetworkError>(parts, row, interface)?.taps,
        NetworkMode::LinkLocalOnly => Vec::new(),
    };
    let queues = (0..).map(FdIndex).take(taps.len()).collect();
    let nic = spec::nic(row, interface, queues);
    commands.hand_over(Command::AttachNic(Box::new(nic)), taps).await.map_err(failed(ATTACHING))?;
    Ok(())
}

/// Takes the host's side of an interface away. Succeeds when nothing is there.
fn disconnect(parts: &Parts, row: &Instance, interface: InterfaceId) -> Result<(), NetworkError> {
    match row.network {
        NetworkMode::Vpc => Ok(parts.fabric.detach(interface)?),
        NetworkMode::LinkLocalOnly => Ok(()),
    }
}

/// Takes it away because a machine has not got it, whatever comes of that: what stays is replaced when it is
/// connected again.
fn disconnect_in_vain(parts: &Parts, row: &Instance, interface: InterfaceId) {
    if let Err(e) = disconnect(parts, row, interface) {
        tracing::warn!(%interface, "something of it is left on this host: {e}");
    }
}

/// Takes an interface out of the rows of its instance, as part of `tx`, which must write `row`.
fn release(tx: &mut Transaction<'_>, row: &mut Instance, member: Membership) -> Result<(), StoreError> {
    row.more_interfaces.retain(|own| own.id != member.interface.id);
    row.metadata.wanted += 1;
    let_go(tx, member)
}

/// Writes down how something that was `from` has ended: the instance has the interface, or it has not. What is
/// not so any more stays as it is. Answers the interface as it is then.
fn conclude(
    parts: &Parts,
    id: InterfaceId,
    instance: InstanceId,
    from: AttachmentState,
    has_it: bool,
) -> Result<Membership, NetworkError> {
    transact(parts.store.as_ref(), |tx| {
        let mut member = tx.get::<Membership>(&id)?.ok_or(NetworkError::NoInterface(id))?;
        if member.instance == Some(instance) && member.state == from {
            if has_it {
                member.state = AttachmentState::Attached;
                tx.put(&member)?;
            } else if let Some(mut row) = tx.get::<Instance>(&instance)? {
                release(tx, &mut row, member)?;
                tx.put(&row)?;
            }
            member = tx.get::<Membership>(&id)?.ok_or(NetworkError::NoInterface(id))?;
        }
        Ok(member)
    })
}

/// The machine of an instance is gone, as part of `tx`, which must write `row`: what it was being given is the
/// instance's, and what it was to let go of is not any more.
pub(super) fn settle(tx: &mut Transaction<'_>, row: &mut Instance) -> Result<(), StoreError> {
    for own in interfaces_of(tx, row.id)? {
        let Some(mut member) = tx.get::<Membership>(&own.interface.id)? else { continue };
        match member.state {
            AttachmentState::Attached => {}
            AttachmentState::Attaching => {
                member.state = AttachmentState::Attached;
                tx.put(&member)?;
            }
            AttachmentState::Detaching => release(tx, row, member)?,
        }
    }
    Ok(())
}

impl ControlPlane {
    /// Gives an interface to an instance of its VPC that runs or is stopped. It stays when the instance goes. A
    /// running guest finds it at once. Answers it as it is then.
    pub fn attach_interface(
        &self,
        instance: InstanceId,
        id: InterfaceId,
        device: u32,
    ) -> Result<Membership, NetworkError> {
        use AttachmentState::{Attached, Attaching};
        let row = self.instance_row(instance)?;
        if row.state != InstanceState::Running {
            return self.note_attach(id, instance, device, InstanceState::Stopped, Attached);
        }
        alone(&self.parts, id, || {
            let machine = Machine::connect(self, row).map_err(failed(ATTACHING))?;
            let commands = &machine.connection;
            let (_, spare) = machine.wait(nics(commands)).map_err(failed(ATTACHING))?;
            if spare == 0 {
                return Err(NetworkError::NoSpare(instance));
            }
            let member = self.note_attach(id, instance, device, InstanceState::Running, Attaching)?;
            let Err(e) = machine.wait(give(&self.parts, &machine.row, &member.interface, commands)) else {
                return conclude(&self.parts, id, instance, Attaching, true);
            };
            match machine.wait(machine_has(commands, member.interface.mac)) {
                // The answer was lost.
                Ok(true) => conclude(&self.parts, id, instance, Attaching, true),
                Ok(false) => {
                    disconnect_in_vain(&self.parts, &machine.row, id);
                    conclude(&self.parts, id, instance, Attaching, false)?;
                    Err(e)
                }
                // The machine has ended, which says what becomes of it; or the next daemon tries again.
                Err(_) => Err(e),
            }
        })
    }

    /// Takes an interface that is not the first from its instance; it stays, of no instance. Answers it as it is
    /// then: a running guest is asked to let go of it, and it is `detaching` until it has. With `force` its
    /// tap is closed at once, and the guest finds an interface without a link.
    pub fn detach_interface(&self, id: InterfaceId, force: bool) -> Result<Membership, NetworkError> {
        let member = self.membership(id)?;
        let instance = member.instance.ok_or(NetworkError::InterfaceNotAttached(id))?;
        let row = self.instance_row(instance)?;
        if row.state != InstanceState::Running {
            return self.detach_stopped(id, instance);
        }
        alone(&self.parts, id, || {
            let mac = self.note_detaching(id, instance)?.interface.mac;
            let machine = Machine::connect(self, row).map_err(failed(DETACHING))?;
            let commands = &machine.connection;
            let there = || machine.wait(machine_has(commands, mac)).map_err(failed(DETACHING));
            let mut asked = Ok(());
            let mut gone = !there()?;
            if !gone {
                let command = Command::DetachNic { mac, force };
                asked = machine.wait(commands.request(command)).map(drop).map_err(failed(DETACHING));
                // The guest may have let go just now.
                gone = asked.is_ok() && force || !there()?;
            }
            if gone || force {
                disconnect(&self.parts, &machine.row, id)?;
            }
            if gone {
                return conclude(&self.parts, id, instance, AttachmentState::Detaching, false);
            }
            asked?;
            self.membership(id)
        })
    }

    fn instance_row(&self, id: InstanceId) -> Result<Instance, NetworkError> {
        let row = transact(self.parts.store.as_ref(), |tx| tx.get::<Instance>(&id))?;
        row.ok_or(NetworkError::NoInstance(id))
    }

    fn membership(&self, id: InterfaceId) -> Result<Membership, NetworkError> {
        let row = transact(self.parts.store.as_ref(), |tx| tx.get::<Membership>(&id))?;
        row.ok_or(NetworkError::NoInterface(id))
    }

    /// Writes down that an instance in `state` has an interface, or is being given it.
    fn note_attach(
        &self,
        id: InterfaceId,
        instance: InstanceId,
        device: u32,
        state: InstanceState,
        how_far: AttachmentState,
    ) -> Result<Membership, NetworkError> {
        let now = self.clock().unix_seconds();
        transact(self.parts.store.as_ref(), |tx| {
            let mut row = in_state(tx, instance, state, ATTACHING)?;
            let others = interfaces_of(tx, instance)?;
            if others.len() >= MAX_INTERFACES {
                let what = "interfaces of an instance";
                return Err(NetworkError::Limit { what, limit: MAX_INTERFACES });
            }
            if device == 0 || usize::try_from(device).is_ok_and(|device| device >= MAX_INTERFACES) {
                return Err(NetworkError::Device(device));
            }
            if others.iter().any(|other| other.device == device) {
                return Err(NetworkError::DeviceTaken { instance, device });
            }
            let placement = Placement { interface: Some(id), stays: true, ..Placement::default() };
            let own = Networks::place(tx, &row.interface.subnet, (instance, device), &placement, false)?;
            if own.subnet.vpc != row.interface.subnet.vpc {
                let (subnet, vpc) = (own.subnet.id, row.interface.subnet.vpc);
                return Err(NetworkError::OtherVpc { subnet, vpc });
            }
            let mut member = tx.get::<Membership>(&id)?.ok_or(NetworkError::NoInterface(id))?;
            (member.attached, member.state) = (Some(now), how_far);
            tx.put(&member)?;
            // The first of all is not among them.
            let place = others.iter().filter(|other| (1..device).contains(&other.device)).count();
            row.more_interfaces.insert(place.min(row.more_interfaces.len()), own);
            row.metadata.wanted += 1;
            tx.put(&row)?;
            Ok(member)
        })
    }

    /// Writes down that a running instance is to let go of an interface. It may be said again.
    fn note_detaching(&self, id: InterfaceId, instance: InstanceId) -> Result<Membership, NetworkError> {
        transact(self.parts.store.as_ref(), |tx| {
            let mut member = detachable(tx, id, instance)?;
            let row = in_state(tx, instance, InstanceState::Running, DETACHING)?;
            member.state = AttachmentState::Detaching;
            tx.put(&member)?;
            tx.put(&row)?;
            Ok(member)
        })
    }

    fn detach_stopped(&self, id: InterfaceId, instance: InstanceId) -> Result<Membership, NetworkError> {
        transact(self.parts.store.as_ref(), |tx| {
            let member = detachable(tx, id, instance)?;
            let mut row = in_state(tx, instance, InstanceState::Stopped, DETACHING)?;
            release(tx, &mut row, member)?;
            tx.put(&row)?;
            tx.get::<Membership>(&id)?.ok_or(NetworkError::NoInterface(id))
        })
    }
}

/// An instance that must be in `wanted`. Whoever starts or ends it meanwhile writes its row too: the caller
/// does so as well, and one of the two begins again.
fn in_state(
    tx: &mut Transaction<'_>,
    id: InstanceId,
    wanted: InstanceState,
    action: &'static str,
) -> Result<Instance, NetworkError> {
    let row = tx.get::<Instance>(&id)?.ok_or(NetworkError::NoInstance(id))?;
    if row.state != wanted {
        return Err(NetworkError::State { action, instance: id, state: row.state });
    }
    Ok(row)
}

/// An interface that the instance has and may lose.
fn detachable(
    tx: &mut Transaction<'_>,
    id: InterfaceId,
    instance: InstanceId,
) -> Result<Membership, NetworkError> {
    let member = tx.get::<Membership>(&id)?.ok_or(NetworkError::NoInterface(id))?;
    if member.instance != Some(instance) {
        return Err(NetworkError::InterfaceNotAttached(id));
    }
    if member.device == 0 {
        return Err(NetworkError::PrimaryInterface(id));
    }
    Ok(member)
}

/// Notes that the guest has let go of an interface, and takes away the host's side of it.
pub(super) async fn note_detached(
    parts: &Arc<Parts>,
    instance: InstanceId,
    mac: MacAddr,
    commands: Arc<dyn Commands>,
) {
    let parts = Arc::clone(parts);
    let noted = tokio::task::spawn_blocking(move || -> Result<(), NetworkError> {
        let runtime = tokio::runtime::Handle::current();
        let all = transact(parts.store.as_ref(), |tx| interfaces_of(tx, instance))?;
        let Some(id) = all.iter().map(|own| &own.interface).find(|own| own.mac == mac).map(|own| own.id)
        else {
            return Ok(());
        };
        alone(&parts, id, || {
            let (row, member) = transact(parts.store.as_ref(), |tx| {
                Ok::<_, StoreError>((tx.get::<Instance>(&instance)?, tx.get::<Membership>(&id)?))
            })?;
            let leaving = |member: &Membership| {
                member.instance == Some(instance) && member.state == AttachmentState::Detaching
            };
            let (Some(row), true) = (row, member.as_ref().is_some_and(leaving)) else { return Ok(()) };
            // It may have come back and be leaving again.
            if !runtime.block_on(machine_has(commands.as_ref(), mac)).map_err(failed(DETACHING))? {
                disconnect(&parts, &row, id)?;
                conclude(&parts, id, instance, AttachmentState::Detaching, false)?;
            }
            Ok(())
        })
    });
    match noted.await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::warn!(%instance, "an interface that was let go of could not be noted: {e}"),
        Err(e) => tracing::error!("noting an interface panicked: {e}"),
    }
}

/// Goes on with what an earlier process had begun with the interfaces of a machine that has been taken over.
pub(super) async fn resume(
    parts: &Parts,
    row: &Instance,
    commands: &dyn Commands,
) -> Result<(), NetworkError> {
    const ACTION: &str = "taking over a machine's network interfaces";
    let all = transact(parts.store.as_ref(), |tx| interfaces_of(tx, row.id))?;
    for member in all.iter().filter(|member| member.state != AttachmentState::Attached) {
        let (id, mac) = (member.interface.id, member.interface.mac);
        let lock = parts.dir.lock_interface(id)?;
        let there = machine_has(commands, mac).await.map_err(failed(ACTION))?;
        let has_it = match member.state {
            AttachmentState::Attaching if !there => {
                let given = give(parts, row, &member.interface, commands).await;
                if let Err(e) = &given {
                    tracing::warn!(interface = %id, "it could not be attached: {e}");
                    disconnect_in_vain(parts, row, id);
                }
                given.is_ok()
            }
            AttachmentState::Detaching if there => {
                let command = Command::DetachNic { mac, force: false };
                commands.request(command).await.map_err(failed(ACTION))?;
                lock.remove();
                continue;
            }
            AttachmentState::Detaching => {
                disconnect(parts, row, id)?;
                false
            }
            _ => there,
        };
        conclude(parts, id, row.id, member.state, has_it)?;
        lock.remove();
    }
    Ok(())
}
