//! What the control plane asks for.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use kiln_model::{InterfaceId, Ipv4Cidr, MacAddr, VpcId};

use crate::error::HostNetError;
use crate::nft::Rate;
use crate::publish::Public;

/// Most queues of one tap.
pub const MAX_QUEUES: u16 = 8;
/// Smallest and largest packet of an interface: IPv4's least, and EC2's jumbo frames.
pub const MTU_RANGE: std::ops::RangeInclusive<u16> = 576..=9001;
/// Place of the host in a VPC's range: the fourth address, which EC2 reserves "for future use".
const HOST_OFFSET: u32 = 3;

/// One network interface as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicPlan {
    /// Names of tap and chains derive from it.
    pub interface: InterfaceId,
    /// The network it belongs to; namespaces and host link derive from it.
    pub vpc: VpcId,
    /// Address range of that network, /16 to /28.
    pub vpc_cidr: Ipv4Cidr,
    /// Router of its subnet, an address that the VPC namespace takes for itself.
    pub router: Ipv4Addr,
    /// Hardware address of the router's side of the tap.
    pub router_mac: MacAddr,
    /// Hardware address of the guest's side.
    pub mac: MacAddr,
    /// Address of the guest's side.
    pub address: Ipv4Addr,
    /// Number of queue pairs, 1 to [`MAX_QUEUES`].
    pub queue_pairs: u16,
    /// Largest IP packet in bytes, in [`MTU_RANGE`].
    pub mtu: u16,
    /// How much it may send.
    pub rate: Rate,
    /// A public address, and ports of the host that lead to it.
    pub public: Option<Public>,
}

/// The host's own address in a VPC of this range: what instances see when the host connects to them,
/// and where they reach the host.
pub fn host_address(vpc_cidr: Ipv4Cidr) -> Option<Ipv4Addr> {
    vpc_cidr.nth(HOST_OFFSET)
}

impl NicPlan {
    /// Refuses what could not work or would harm others.
    pub(crate) fn check(&self) -> Result<Ipv4Addr, HostNetError> {
        let refuse = |what: String| Err(HostNetError::Plan(what));
        let host = match host_address(self.vpc_cidr) {
            Some(host) if (16..=28).contains(&self.vpc_cidr.prefix_len()) => host,
            _ => return refuse(format!("VPC range {} is not between /16 and /28", self.vpc_cidr)),
        };
        for address in [self.address, self.router] {
            if !self.vpc_cidr.contains(address) {
                return refuse(format!("address {address} is outside of the VPC's {}", self.vpc_cidr));
            }
        }
        if self.address == self.router || self.address == host {
            return refuse(format!("address {} belongs to the VPC's router or to the host", self.address));
        }
        if !(1..=MAX_QUEUES).contains(&self.queue_pairs) {
            return refuse(format!("{} queue pairs are not 1 to {MAX_QUEUES}", self.queue_pairs));
        }
        if !MTU_RANGE.contains(&self.mtu) {
            return refuse(format!("MTU {} is not {} to {}", self.mtu, MTU_RANGE.start(), MTU_RANGE.end()));
        }
        for mac in [self.mac, self.router_mac] {
            let [first, ..] = mac.octets();
            if first & 1 != 0 || mac.octets() == [0; 6] {
                return refuse(format!("{mac} is not the address of one station"));
            }
        }
        Ok(host)
    }
}

/// The host's side of an attached interface.
#[derive(Debug)]
pub struct Nic {
    /// Name of the tap in the VPC's namespace.
    pub tap: String,
    /// Its open queues, one per queue pair, each with a 12-byte virtio-net header before a frame.
    /// When the last is closed the tap vanishes.
    pub queues: Vec<OwnedFd>,
    /// Its public address, if it was to have one.
    pub public: Option<Ipv4Addr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> NicPlan {
        NicPlan {
            interface: InterfaceId::from_bits(1),
            vpc: VpcId::from_bits(2),
            vpc_cidr: "172.31.0.0/16".parse().unwrap(),
            router: Ipv4Addr::new(172, 31, 0, 1),
            router_mac: "02:00:00:00:00:01".parse().unwrap(),
            mac: "02:00:00:00:00:02".parse().unwrap(),
            address: Ipv4Addr::new(172, 31, 0, 4),
            queue_pairs: 1,
            mtu: 1500,
            rate: Rate::default(),
            public: None,
        }
    }

    #[test]
    fn host_has_the_fourth_address() {
        assert_eq!(plan().check().unwrap(), Ipv4Addr::new(172, 31, 0, 3));
    }

    #[test]
    fn impossible_plans_are_refused() {
        type Change = fn(&mut NicPlan);
        let cases: [(&str, Change); 8] = [
            ("range", |p| p.vpc_cidr = "172.31.0.0/29".parse().unwrap()),
            ("outside", |p| p.address = Ipv4Addr::new(172, 30, 0, 4)),
            ("router", |p| p.address = p.router),
            ("host", |p| p.address = Ipv4Addr::new(172, 31, 0, 3)),
            ("queue", |p| p.queue_pairs = 0),
            ("queue", |p| p.queue_pairs = 9),
            ("MTU", |p| p.mtu = 10_000),
            ("station", |p| p.mac = MacAddr::BROADCAST),
        ];
        for (word, change) in cases {
            let mut plan = plan();
            change(&mut plan);
            let error = plan.check().unwrap_err().to_string();
            assert!(error.contains(word), "{error:?} does not name the {word}");
        }
    }
}
