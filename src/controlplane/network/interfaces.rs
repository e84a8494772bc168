//! Interfaces by themselves, and what changes of one while it lives: secondary addresses,
//! source/destination check, and whether it outlives its instance.

use kiln_model::{AttachmentState, InstanceId, InterfaceId, VpcId};

use super::addresses::reserve;
use super::groups::{self, touch};
use super::service::find_subnet;
use super::{Also, Interface, Membership, NetworkError, Networks, Placement};
use crate::state::{StoreError, Transaction, transact};

/// Private addresses of one interface, the primary one included: as many as EC2 gives to large
/// instances.
pub const MAX_ADDRESSES: usize = 15;

/// Interfaces of one state directory that are of no instance.
pub const MAX_AVAILABLE: usize = 500;

/// Gives an instance an interface that is there already and of no other, as part of `tx`.
pub(super) fn take(
    tx: &mut Transaction<'_>,
    id: InterfaceId,
    (instance, device): (InstanceId, u32),
    stays: bool,
) -> Result<Interface, NetworkError> {
    let mut row = tx.get::<Membership>(&id)?.ok_or(NetworkError::NoInterface(id))?;
    if let Some(instance) = row.instance {
        return Err(NetworkError::InterfaceAttached { interface: id, instance });
    }
    (row.instance, row.device, row.stays, row.attached) = (Some(instance), device, stays, None);
    super::elastic::follow(tx, id, Some(instance))?;
    tx.put(&row)?;
    Ok(row.interface)
}

/// The interfaces of an instance in the order of their devices.
pub(crate) fn interfaces_of(
    tx: &Transaction<'_>,
    instance: InstanceId,
) -> Result<Vec<Membership>, StoreError> {
    let all = tx.rows::<Membership>()?;
    let mut own: Vec<_> = all.held_by(&instance.to_string()).map(|row| Membership::clone(row)).collect();
    own.sort_by_key(|row| row.device);
    Ok(own)
}

/// Takes an interface from its instance, as part of `tx`; what it is and has stays.
pub(crate) fn let_go(tx: &mut Transaction<'_>, mut row: Membership) -> Result<(), StoreError> {
    let owner = row.instance.take();
    (row.device, row.attached, row.state) = (0, None, AttachmentState::Attached);
    // A group that was made for the instance goes with it.
    for id in row.groups.clone() {
        if let Some(group) = tx.get::<super::SecurityGroup>(&id)?
            && group.owner.is_some()
            && group.owner == owner
        {
            row.groups.remove(&id);
            groups::remove(tx, &group)?;
        }
    }
    super::elastic::follow(tx, row.interface.id, None)?;
    tx.put(&row)
}

impl Networks<'_> {
    /// Makes an interface that is of no instance: subnet, addresses, groups and description of `placement`.
    pub fn create_interface(
        &self,
        placement: &Placement,
        also: &mut Also<'_>,
    ) -> Result<Membership, NetworkError> {
        let default = self.default_subnet()?;
        transact(self.store, |tx| {
            let subnet = match &placement.subnet {
                Some(wanted) => find_subnet(tx, wanted)?,
                None => default.clone(),
            };
            touch(tx, &subnet.id)?;
            if tx.list::<Membership>()?.iter().filter(|m| m.instance.is_none()).count() >= MAX_AVAILABLE {
                return Err(NetworkError::Limit { what: "network interfaces", limit: MAX_AVAILABLE });
            }
            let groups = match placement.groups.as_slice() {
                [] => [groups::ensure_default_group(tx, subnet.vpc)?].into(),
                wanted => groups::find_for_interface(tx, subnet.vpc, wanted)?,
            };
            let interface = reserve(tx, &subnet, placement.address, placement.ipv6)?;
            let row = Membership {
                secondary: placement.secondary.take(tx, &interface, 1)?,
                interface,
                instance: None,
                device: 0,
                groups,
                host_access: false,
                forwards: false,
                stays: true,
                description: placement.description.clone(),
                attached: None,
                state: AttachmentState::Attached,
            };
            tx.put(&row)?;
            also(tx, &row.interface.id.to_string())?;
            Ok(row)
        })
    }

    /// Deletes an interface that is of no instance.
    pub fn delete_interface(&self, id: InterfaceId) -> Result<(), NetworkError> {
        let vpc = transact(self.store, |tx| {
            let row = tx.get::<Membership>(&id)?.ok_or(NetworkError::NoInterface(id))?;
            if let Some(instance) = row.instance {
                return Err(NetworkError::InterfaceAttached { interface: id, instance });
            }
            tx.put(&Membership { stays: false, ..row.clone() })?;
            Self::give_back(tx, &row.interface)?;
            Ok(row.interface.subnet.vpc)
        })?;
        // A machine that ended while it was given it may have left something.
        self.fabric.detach(id)?;
        // Routes may have led to it.
        self.apply(vpc)
    }

    /// Whether an interface stays when its instance goes.
    pub fn set_stays(&self, interface: InterfaceId, stays: bool) -> Result<(), NetworkError> {
        self.change_interface(interface, |_, row| {
            row.stays = stays;
            Ok(())
        })
    }

    /// Says what an interface is for.
    pub fn describe_interface(&self, interface: InterfaceId, text: &str) -> Result<(), NetworkError> {
        self.change_interface(interface, |_, row| {
            text.clone_into(&mut row.description);
            Ok(())
        })
    }

    /// Whether an interface may send only what comes from its own addresses (the default), or also
    /// what it forwards for others.
    pub fn set_source_dest_check(&self, interface: InterfaceId, check: bool) -> Result<(), NetworkError> {
        self.change_interface(interface, |_, row| {
            row.forwards = !check;
            Ok(())
        })
    }

    pub(super) fn change_interface<T>(
        &self,
        interface: InterfaceId,
        change: impl Fn(&mut Transaction<'_>, &mut Membership) -> Result<T, NetworkError>,
    ) -> Result<T, NetworkError> {
        let (vpc, result): (VpcId, T) = transact(self.store, |tx| {
            let mut row = tx.get::<Membership>(&interface)?.ok_or(NetworkError::NoInterface(interface))?;
            let result = change(tx, &mut row)?;
            tx.put(&row)?;
            Ok::<_, NetworkError>((row.interface.subnet.vpc, result))
        })?;
        self.apply(vpc)?;
        Ok(result)
    }
}
