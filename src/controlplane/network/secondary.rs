//! Secondary private addresses: an interface gets them, gives them back, or takes them over from another with the
//! Elastic addresses that lead to them.

use std::net::Ipv4Addr;

use kiln_model::InterfaceId;

use super::addresses::{self, release};
use super::elastic::{self, Moving};
use super::groups::Membership;
use super::{Interface, MAX_ADDRESSES, NetworkError, Networks};
use crate::state::{StoreError, Transaction};

/// Secondary addresses that an interface shall have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secondary {
    /// So many that are free.
    Any(usize),
    /// These.
    These(Vec<Ipv4Addr>),
}

impl Default for Secondary {
    fn default() -> Self {
        Secondary::Any(0)
    }
}

impl Secondary {
    /// Takes them for an interface that has `held` addresses already, as part of `tx`.
    pub(super) fn take(
        &self,
        tx: &mut Transaction<'_>,
        interface: &Interface,
        held: usize,
    ) -> Result<Vec<Ipv4Addr>, NetworkError> {
        let wanted = match self {
            Secondary::Any(count) => vec![None; (*count).min(MAX_ADDRESSES)],
            Secondary::These(addresses) => addresses.iter().copied().map(Some).collect(),
        };
        if held + wanted.len() > MAX_ADDRESSES {
            let what = "private addresses of a network interface";
            return Err(NetworkError::Limit { what, limit: MAX_ADDRESSES });
        }
        let take = |one| addresses::take(tx, &interface.subnet, interface.id, one);
        wanted.into_iter().map(take).collect()
    }
}

impl Networks<'_> {
    /// Gives an interface more private addresses of its subnet, with `reassign` also secondary ones of other
    /// interfaces. Answers the new ones.
    pub fn assign_addresses(
        &self,
        interface: InterfaceId,
        wanted: &Secondary,
        reassign: bool,
    ) -> Result<Vec<Ipv4Addr>, NetworkError> {
        let (new, moving) = self.change_interface(interface, |tx, row| {
            let mut moving = Vec::new();
            if let Secondary::These(addresses) = wanted
                && reassign
            {
                for address in addresses {
                    moving.extend(take_over(tx, row, *address)?);
                }
            }
            let new = wanted.take(tx, &row.interface, 1 + row.secondary.len())?;
            row.secondary.extend(&new);
            Ok((new, moving))
        })?;
        // An address leads to one interface at a time.
        for moving in &moving {
            self.lead(moving.from, None)?;
            self.lead(moving.to, Some(moving.address))?;
        }
        Ok(new)
    }

    /// Takes secondary addresses back, with the conversations that go by them and the Elastic addresses that lead
    /// to them. All of them, or none if one is not a secondary address of the interface.
    pub fn unassign_addresses(
        &self,
        interface: InterfaceId,
        addresses: &[Ipv4Addr],
    ) -> Result<(), NetworkError> {
        let ended = self.change_interface(interface, |tx, row| {
            for address in addresses {
                if !let_go(tx, row, *address) {
                    return Err(NetworkError::NotAssigned { address: *address, interface });
                }
            }
            Ok(elastic::forget_secondary(tx, interface, addresses)?)
        })?;
        ended.into_iter().try_for_each(|association| self.lead(association, None).map(drop))
    }
}

/// Frees a secondary address, as part of `tx`. False if it is none of the interface.
fn let_go(tx: &mut Transaction<'_>, row: &mut Membership, address: Ipv4Addr) -> bool {
    let at = row.secondary.iter().position(|own| *own == address);
    if let Some(at) = at {
        row.secondary.remove(at);
        release(tx, row.interface.subnet.id, address);
    }
    at.is_some()
}

/// Frees an address that is a secondary one of another interface, as part of `tx`, for `row`, which its Elastic
/// address will lead to.
fn take_over(
    tx: &mut Transaction<'_>,
    row: &Membership,
    address: Ipv4Addr,
) -> Result<Option<Moving>, StoreError> {
    let subnet = row.interface.subnet.id;
    let holds = |other: &&Membership| {
        (other.interface.subnet.id, other.interface.id != row.interface.id) == (subnet, true)
            && other.secondary.contains(&address)
    };
    let all = tx.list::<Membership>()?;
    let Some(mut other) = all.iter().find(holds).cloned() else { return Ok(None) };
    let_go(tx, &mut other, address);
    tx.put(&other)?;
    elastic::hand_over(tx, (other.interface.id, address), row)
}
