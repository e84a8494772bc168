//! Ways out of a VPC, by the subnet that a packet comes from.
//!
//! ```text
//!  interface ─▶ its subnet ─▶ table ─▶ the longest range that the destination is in ─▶ way
//! ```
//! What is for the VPC's own range never asks a table: every interface reaches every other one, as far as
//! groups and network ACLs let it.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::NetworkPolicy;
use crate::{InterfaceId, Ipv4Cidr, NatGatewayId, SubnetId};

/// Number of a table, of its own in the VPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableNumber(pub u16);

/// A subnet and the table that it goes by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetRouting {
    /// Addresses of the subnet.
    pub cidr: Ipv4Cidr,
    /// Its table.
    pub table: TableNumber,
}

/// Where packets to a range go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Their destinations, outside of the VPC's own range.
    pub destination: Ipv4Cidr,
    /// Where they go.
    pub way: Way,
}

/// A way out of a VPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// The gateway, for everybody: who has no public address gets the host's.
    Open,
    /// The gateway, for those with a public address alone.
    Internet,
    /// The gateway, with this source address.
    Nat {
        /// Names of links derive from it.
        gateway: NatGatewayId,
        /// The address.
        address: Ipv4Addr,
    },
    /// An interface of the VPC, which forwards what is not its own. Nowhere while it is not attached.
    Interface(InterfaceId),
    /// Dropped in silence.
    Nowhere,
}

impl NetworkPolicy {
    /// The table of the subnet that an interface with this primary address is in, where it has one.
    pub fn routing_of(&self, primary: Ipv4Addr) -> Option<(SubnetId, &SubnetRouting)> {
        self.routing
            .iter()
            .find(|(_, subnet)| subnet.cidr.contains(primary))
            .map(|(id, subnet)| (*id, subnet))
    }

    /// Which way a packet takes to a destination outside of the VPC that an interface with this primary
    /// address sends.
    pub fn way(&self, primary: Ipv4Addr, destination: Ipv4Addr) -> Way {
        let Some((_, subnet)) = self.routing_of(primary) else { return Way::Open };
        let routes = self.tables.get(&subnet.table).map(Vec::as_slice).unwrap_or_default();
        let matching = routes.iter().filter(|route| route.destination.contains(destination));
        matching.max_by_key(|route| route.destination.prefix_len()).map_or(Way::Nowhere, |route| route.way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_range_decides_and_what_none_has_goes_nowhere() {
        let route = |range: &str, way| Route { destination: range.parse().unwrap(), way };
        let mut policy = NetworkPolicy::default();
        let routed = SubnetRouting { cidr: "10.0.1.0/24".parse().unwrap(), table: TableNumber(2) };
        policy.routing.insert(SubnetId::from_bits(1), routed);
        let forwarder = Way::Interface(InterfaceId::from_bits(7));
        let routes = vec![route("192.0.0.0/8", Way::Internet), route("192.0.2.0/24", forwarder)];
        policy.tables.insert(TableNumber(2), routes);
        let way = |from: [u8; 4], to: [u8; 4]| policy.way(from.into(), to.into());
        assert_eq!(way([10, 0, 1, 4], [192, 0, 2, 1]), forwarder);
        assert_eq!(way([10, 0, 1, 4], [192, 1, 2, 1]), Way::Internet);
        assert_eq!(way([10, 0, 1, 4], [8, 8, 8, 8]), Way::Nowhere);
        assert_eq!(way([10, 0, 2, 4], [8, 8, 8, 8]), Way::Open, "a subnet without a table");
    }
}
