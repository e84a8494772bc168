//! What changes of an interface while it lives: secondary addresses, source/destination check.

use std::net::Ipv4Addr;

use kiln_model::{InterfaceId, VpcId};

use super::addresses::{release, take};
use super::{Membership, NetworkError, Networks};
use crate::state::{Transaction, transact};

/// Private addresses of one interface, the primary one included: as many as EC2 gives to large
/// instances.
pub const MAX_ADDRESSES: usize = 15;

impl Networks<'_> {
    /// Gives an interface more private addresses of its subnet: those that are wanted, or `count` that
    /// are free. Answers the new ones.
    pub fn assign_addresses(
        &self,
        interface: InterfaceId,
        wanted: &[Ipv4Addr],
        count: usize,
    ) -> Result<Vec<Ipv4Addr>, NetworkError> {
        let number = if wanted.is_empty() { count } else { wanted.len() };
        self.change_interface(interface, |tx, row| {
            if 1 + row.secondary.len() + number > MAX_ADDRESSES {
                let what = "private addresses of a network interface";
                return Err(NetworkError::Limit { what, limit: MAX_ADDRESSES });
            }
            let mut new = Vec::new();
            for n in 0..number {
                new.push(take(tx, &row.interface.subnet, interface, wanted.get(n).copied())?);
            }
            row.secondary.extend(&new);
            Ok(new)
        })
    }

    /// Takes secondary addresses back, with the conversations that go by them. All of them, or none if
    /// one is not a secondary address of the interface.
    pub fn unassign_addresses(
        &self,
        interface: InterfaceId,
        addresses: &[Ipv4Addr],
    ) -> Result<(), NetworkError> {
        self.change_interface(interface, |tx, row| {
            for address in addresses {
                let at = row.secondary.iter().position(|own| own == address);
                row.secondary.remove(at.ok_or(NetworkError::NotAssigned { address: *address, interface })?);
                release(tx, row.interface.subnet.id, *address);
            }
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

    fn change_interface<T>(
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
