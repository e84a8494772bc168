//! One rule of a security group.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Traffic;
use crate::{Ipv4Cidr, Ipv6Cidr, PrefixListId, SecurityGroupId, SecurityGroupRuleId};

/// Who starts the conversation that a rule allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The peer, towards the interface.
    Ingress,
    /// The interface, towards the peer.
    Egress,
}

/// The other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// A range of IPv4 addresses.
    Ipv4(Ipv4Cidr),
    /// A range of IPv6 addresses.
    Ipv6(Ipv6Cidr),
    /// The private addresses of the interfaces in a group. None of that group's rules come along.
    Group(SecurityGroupId),
    /// The ranges of a prefix list.
    PrefixList(PrefixListId),
}

/// One rule. It allows; there are none that deny.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Its id.
    pub id: SecurityGroupRuleId,
    /// Which way.
    pub direction: Direction,
    /// What.
    pub traffic: Traffic,
    /// With whom.
    pub peer: Peer,
    /// What it is for, in the words of whoever made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

impl Peer {
    /// Every address of one family (`0.0.0.0/0` or `::/0`).
    pub fn is_anywhere(&self) -> bool {
        match self {
            Peer::Ipv4(range) => range.prefix_len() == 0,
            Peer::Ipv6(range) => range.prefix_len() == 0,
            Peer::Group(_) | Peer::PrefixList(_) => false,
        }
    }

    /// Whether `address` is in the range; `None` where that takes more than the rule itself.
    pub(super) fn range_contains(&self, address: IpAddr) -> Option<bool> {
        match (self, address) {
            (Peer::Ipv4(range), IpAddr::V4(address)) => Some(range.contains(address)),
            (Peer::Ipv6(range), IpAddr::V6(address)) => Some(range.contains(address)),
            (Peer::Ipv4(_) | Peer::Ipv6(_), _) => Some(false),
            (Peer::Group(_) | Peer::PrefixList(_), _) => None,
        }
    }
}

impl Rule {
    /// Whether the two mean the same, whatever they are called.
    pub fn same_meaning(&self, other: &Rule) -> bool {
        (self.direction, self.traffic, self.peer) == (other.direction, other.traffic, other.peer)
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Ipv4(range) => range.fmt(f),
            Peer::Ipv6(range) => range.fmt(f),
            Peer::Group(group) => group.fmt(f),
            Peer::PrefixList(list) => list.fmt(f),
        }
    }
}

impl fmt::Display for Rule {
    /// As `--allow` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.traffic, self.peer)
    }
}
