//! What the control plane asks for.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use kiln_model::{InterfaceId, Ipv4Cidr, Ipv6Cidr, MacAddr, VpcId};

use crate::error::HostNetError;
use crate::nft::Rate;
use crate::publish::{OneToOne, Public};

/// Most queues of one tap.
pub const MAX_QUEUES: u16 = 8;
/// Smallest and largest packet of an interface: IPv4's least, and EC2's jumbo frames.
pub const MTU_RANGE: std::ops::RangeInclusive<u16> = 576..=9001;
/// Place of the host in a VPC's range: the fourth address, which EC2 reserves "for future use".
const HOST_OFFSET: u32 = 3;

/// Smallest packet that every link of IPv6 carries whole (RFC 8200 section 5).
const MIN_IPV6_MTU: u16 = 1280;

/// IPv6 of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Plan {
    /// Range of its VPC, /48 to /64. Addresses of a unique local range are translated to the host's own
    /// where they leave it; others are taken for routed to this host, and reached from beyond it.
    pub vpc_cidr: Ipv6Cidr,
    /// Router of its subnet.
    pub router: Ipv6Addr,
    /// Address of the guest's side.
    pub address: Ipv6Addr,
}

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
    /// As the above, over IPv6; only IPv4 if not said.
    pub ipv6: Option<Ipv6Plan>,
    /// Number of queue pairs, 1 to [`MAX_QUEUES`].
    pub queue_pairs: u16,
    /// Largest IP packet in bytes, in [`MTU_RANGE`].
    pub mtu: u16,
    /// How much it may send.
    pub rate: Rate,
    /// A public address, and ports of the host that lead to it.
    pub public: Option<Public>,
    /// Public addresses of its secondary private addresses.
    pub more_public: Vec<OneToOne>,
}

/// The host's own address in a VPC of this range: what instances see when the host connects to them,
/// and where they reach the host.
pub fn host_address(vpc_cidr: Ipv4Cidr) -> Option<Ipv4Addr> {
    vpc_cidr.nth(HOST_OFFSET)
}

/// As [`host_address`], over IPv6.
pub fn host_ipv6(vpc_cidr: Ipv6Cidr) -> Option<Ipv6Addr> {
    vpc_cidr.nth(HOST_OFFSET.into())
}

/// The host's own addresses in a VPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostAddresses {
    pub ipv4: Ipv4Addr,
    pub ipv6: Option<Ipv6Addr>,
}

impl Ipv6Plan {
    fn check(&self, mtu: u16) -> Result<Ipv6Addr, HostNetError> {
        let refuse = |what: String| Err(HostNetError::Plan(what));
        let Ipv6Plan { vpc_cidr, router, address } = *self;
        let usable = vpc_cidr.is_unique_local()
            || !(vpc_cidr.network().is_multicast()
                || vpc_cidr.network().is_unicast_link_local()
                || vpc_cidr.network().segments()[0] == 0);
        let host = match host_ipv6(vpc_cidr) {
            Some(host) if (48..=64).contains(&vpc_cidr.prefix_len()) && usable => host,
            _ => return refuse(format!("IPv6 range {vpc_cidr} is none of a VPC, /48 to /64")),
        };
        for address in [address, router] {
            if !vpc_cidr.contains(address) {
                return refuse(format!("address {address} is outside of the VPC's {vpc_cidr}"));
            }
        }
        if address == router || address == host {
            return refuse(format!("address {address} belongs to the VPC's router or to the host"));
        }
        if mtu < MIN_IPV6_MTU {
            return refuse(format!("MTU {mtu} is too little for IPv6, which needs {MIN_IPV6_MTU}"));
        }
        Ok(host)
    }
}

impl NicPlan {
    /// Refuses what could not work or would harm others.
    pub(crate) fn check(&self) -> Result<HostAddresses, HostNetError> {
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
        for OneToOne { private, .. } in &self.more_public {
            if !self.vpc_cidr.contains(*private) || [self.address, self.router, host].contains(private) {
                return refuse(format!("address {private} is no secondary one of the interface"));
            }
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
        let ipv6 = self.ipv6.map(|ipv6| ipv6.check(self.mtu)).transpose()?;
        Ok(HostAddresses { ipv4: host, ipv6 })
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
            ipv6: Some(Ipv6Plan {
                vpc_cidr: "fd00:31::/56".parse().unwrap(),
                router: "fd00:31::1".parse().unwrap(),
                address: "fd00:31::4".parse().unwrap(),
            }),
            queue_pairs: 1,
            mtu: 1500,
            rate: Rate::default(),
            public: None,
            more_public: Vec::new(),
        }
    }

    #[test]
    fn host_has_the_fourth_address() {
        let HostAddresses { ipv4, ipv6 } = plan().check().unwrap();
        assert_eq!((ipv4, ipv6), (Ipv4Addr::new(172, 31, 0, 3), Some("fd00:31::3".parse().unwrap())));
    }

    #[test]
    fn impossible_plans_are_refused() {
        type Change = fn(&mut NicPlan);
        fn pair(private: Ipv4Addr) -> OneToOne {
            OneToOne { private, public: [198, 19, 0, 1].into() }
        }
        fn ipv6(plan: &mut NicPlan, address: &str) {
            plan.ipv6.as_mut().unwrap().address = address.parse().unwrap();
        }
        let cases: [(&str, Change); 16] = [
            ("IPv6 range", |p| p.ipv6.as_mut().unwrap().vpc_cidr = "fd00:31::/65".parse().unwrap()),
            ("IPv6 range", |p| p.ipv6.as_mut().unwrap().vpc_cidr = "fe80::/56".parse().unwrap()),
            ("outside", |p| ipv6(p, "fd00:32::4")),
            ("router", |p| ipv6(p, "fd00:31::1")),
            ("host", |p| ipv6(p, "fd00:31::3")),
            ("IPv6", |p| p.mtu = 1279),
            ("range", |p| p.vpc_cidr = "172.31.0.0/29".parse().unwrap()),
            ("outside", |p| p.address = Ipv4Addr::new(172, 30, 0, 4)),
            ("router", |p| p.address = p.router),
            ("host", |p| p.address = Ipv4Addr::new(172, 31, 0, 3)),
            ("secondary", |p| p.more_public = vec![pair(p.address)]),
            ("secondary", |p| p.more_public = vec![pair([10, 0, 0, 4].into())]),
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
