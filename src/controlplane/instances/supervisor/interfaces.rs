//! Network interfaces that stopped instances get and lose.

use kiln_model::{InstanceId, InstanceState, InterfaceId};

use super::SupervisorError;
use crate::instances::{ControlPlane, Instance};
use crate::network::{MAX_INTERFACES, Membership, NetworkError, Networks, Placement};
use crate::state::transact;

impl ControlPlane {
    /// Gives a stopped instance an interface of its VPC as its next one. It stays when the instance goes.
    pub fn attach_interface(
        &self,
        id: InstanceId,
        interface: InterfaceId,
        device: u32,
    ) -> Result<(), SupervisorError> {
        let now = self.clock().unix_seconds();
        transact(self.parts.store.as_ref(), |tx| {
            let mut row = tx.get::<Instance>(&id)?.ok_or(SupervisorError::NotFound(id))?;
            if row.state != InstanceState::Stopped {
                return Err(NetworkError::NotStopped(id).into());
            }
            let next = row.interfaces().count();
            if next >= MAX_INTERFACES {
                let what = "interfaces of an instance";
                return Err(NetworkError::Limit { what, limit: MAX_INTERFACES }.into());
            }
            let expected = u32::try_from(next).unwrap_or(u32::MAX);
            if device != expected {
                return Err(NetworkError::Place { device, instance: id, expected }.into());
            }
            let placement = Placement { interface: Some(interface), stays: true, ..Placement::default() };
            let own = Networks::place(tx, &row.interface.subnet, (id, device), &placement, false)?;
            if own.subnet.vpc != row.interface.subnet.vpc {
                let (subnet, vpc) = (own.subnet.id, row.interface.subnet.vpc);
                return Err(NetworkError::OtherVpc { subnet, vpc }.into());
            }
            if let Some(mut member) = tx.get::<Membership>(&interface)? {
                member.attached = Some(now);
                tx.put(&member)?;
            }
            row.more_interfaces.push(own);
            row.metadata.wanted += 1;
            Ok(tx.put(&row)?)
        })
    }

    /// Takes the last interface from a stopped instance. It stays, of no instance.
    pub fn detach_interface(&self, interface: InterfaceId) -> Result<(), SupervisorError> {
        transact(self.parts.store.as_ref(), |tx| {
            let member = tx.get::<Membership>(&interface)?.ok_or(NetworkError::NoInterface(interface))?;
            let id = member.instance.ok_or(NetworkError::InterfaceNotAttached(interface))?;
            let mut row = tx.get::<Instance>(&id)?.ok_or(SupervisorError::NotFound(id))?;
            if row.state != InstanceState::Stopped {
                return Err(NetworkError::NotStopped(id).into());
            }
            let last = row.more_interfaces.pop();
            if last.as_ref().map(|own| own.id) != Some(interface) {
                let expected = u32::try_from(row.more_interfaces.len().saturating_add(1)).unwrap_or(u32::MAX);
                return Err(NetworkError::Place { device: member.device, instance: id, expected }.into());
            }
            tx.put(&Membership { stays: true, ..member.clone() })?;
            Networks::give_back(tx, &member.interface)?;
            row.metadata.wanted += 1;
            Ok(tx.put(&row)?)
        })
    }
}
