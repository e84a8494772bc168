//! Single packets between interfaces and from outside, and whether they arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use kiln_hostnet::NicPlan;
use kiln_model::security::{Direction, Member, Message, NetworkPolicy, Packet, Peer, Rule, Traffic};
use kiln_model::{InterfaceId, SecurityGroupId, SecurityGroupRuleId};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recv, sendto, socket,
};

use super::{DEADLINE, TapDevice, inside, ipv6, member, plan};

/// Protocol that the group [`sentinels`] lets pass everywhere ("use for experimentation").
pub const SENTINEL: u8 = 253;
/// The group that every interface of a [`World`] is in.
const SENTINEL_GROUP: u64 = 0xffff;

pub fn group(n: u64) -> SecurityGroupId {
    SecurityGroupId::from_bits(n)
}

/// A rule with an id made of what it says.
pub fn rule(direction: Direction, traffic: Traffic, peer: Peer) -> Rule {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (direction, traffic, peer).hash(&mut hasher);
    let id = SecurityGroupRuleId::from_bits(hasher.finish());
    Rule { id, direction, traffic, peer, description: None }
}

/// A rule from text: `tcp 22-23 10.0.0.0/8`, `icmp 8-0 group 3`, `all 0-0 …`.
pub fn allow(direction: Direction, text: &str) -> Rule {
    let words: Vec<_> = text.split(' ').collect();
    let (from, to) = words[1].split_once('-').unwrap();
    let traffic = Traffic::from_fields(words[0], from.parse().ok(), to.parse().ok()).unwrap();
    let peer = match words[2] {
        "group" => Peer::Group(group(words[3].parse().unwrap())),
        range => range.parse().map_or_else(|_| Peer::Ipv6(range.parse().unwrap()), Peer::Ipv4),
    };
    rule(direction, traffic, peer)
}

pub fn ingress(text: &str) -> Rule {
    allow(Direction::Ingress, text)
}

pub fn all_out() -> Rule {
    allow(Direction::Egress, "all 0-0 0.0.0.0/0")
}

pub fn all_out_ipv6() -> Rule {
    allow(Direction::Egress, "all 0-0 ::/0")
}

/// A VPC with interfaces whose taps the test holds.
pub struct World {
    pub dir: tempfile::TempDir,
    pub policy: NetworkPolicy,
    pub plans: BTreeMap<Ipv4Addr, NicPlan>,
    pub taps: BTreeMap<Ipv4Addr, TapDevice>,
    /// Packets into the VPC from outside, and all that come out of it.
    outside: (OwnedFd, OwnedFd),
    /// The same over IPv6.
    outside6: (OwnedFd, OwnedFd),
    id: u16,
}

impl World {
    /// Interfaces 172.31.0.`last`, in no group.
    pub fn new(lasts: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut policy = NetworkPolicy::default();
        let everything = [Direction::Ingress, Direction::Egress].map(|direction| {
            ["0.0.0.0/0", "::/0"].map(|range| allow(direction, &format!("{SENTINEL} 0-0 {range}")))
        });
        policy.groups.insert(group(SENTINEL_GROUP), everything.concat());
        let plans: BTreeMap<_, _> =
            lasts.iter().map(|last| plan(1, *last)).map(|plan| (plan.address, plan)).collect();
        for plan in plans.values() {
            policy.interfaces.insert(plan.interface, member(plan, &[group(SENTINEL_GROUP)]));
        }
        let mut taps = BTreeMap::new();
        for plan in plans.values() {
            let mut nic = kiln_hostnet::attach(dir.path(), plan, &|| Ok(policy.clone())).unwrap();
            taps.insert(plan.address, TapDevice::new(nic.queues.remove(0)));
        }
        let sockets = |family, kind| {
            inside("kiln-000000000001-gw", || {
                let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
                let raw = socket(family, SockType::Raw, flags, SockProtocol::Raw).unwrap();
                let all = socket(AddressFamily::Packet, SockType::Raw, flags, kind).unwrap();
                (raw, all)
            })
        };
        let outside = sockets(AddressFamily::Inet, SockProtocol::EthIp);
        let outside6 = sockets(AddressFamily::Inet6, SockProtocol::EthIpv6);
        World { dir, policy, plans, taps, outside, outside6, id: 0 }
    }

    pub fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(172, 31, 0, last)
    }

    pub fn id_of(&self, last: u8) -> InterfaceId {
        self.plans[&World::address(last)].interface
    }

    pub fn member(&mut self, last: u8) -> &mut Member {
        let id = self.id_of(last);
        self.policy.interfaces.get_mut(&id).unwrap()
    }

    /// Puts an interface into these groups.
    pub fn join(&mut self, last: u8, groups: &[u64]) {
        self.member(last).groups = groups.iter().chain([&SENTINEL_GROUP]).map(|n| group(*n)).collect();
    }

    /// Gives a group these rules, with ids of its own.
    pub fn set_rules(&mut self, n: u64, mut rules: Vec<Rule>) {
        for rule in &mut rules {
            let bits = u64::from_str_radix(&rule.id.short(), 16).unwrap();
            rule.id = SecurityGroupRuleId::from_bits(bits.wrapping_add(n << 32));
        }
        self.policy.groups.insert(group(n), rules);
    }

    pub fn apply(&self) -> bool {
        let vpc = self.plans.values().next().unwrap().vpc;
        kiln_hostnet::apply(self.dir.path(), vpc, &|| Ok(self.policy.clone())).unwrap()
    }

    /// The key of the interface that has an address.
    fn owner(&self, address: IpAddr) -> Option<Ipv4Addr> {
        let has = |plan: &&NicPlan| match address {
            IpAddr::V4(address) => plan.address == address,
            IpAddr::V6(address) => plan.ipv6.is_some_and(|ipv6| ipv6.address == address),
        };
        self.plans.values().find(has).map(|plan| plan.address)
    }

    /// Sends one packet as a guest does, or from outside where no interface has its source. Answers
    /// what it can be known by.
    pub fn send(&mut self, packet: Packet, source_port: u16) -> u16 {
        self.id = self.id.wrapping_add(1).max(1);
        match self.owner(packet.source) {
            Some(owner) => {
                let plan = &self.plans[&owner];
                let kind = if packet.source.is_ipv4() { 0x0800 } else { 0x86dd };
                let bytes = ip(self.id, packet, source_port);
                let frame = ethernet(plan.router_mac.octets(), plan.mac.octets(), kind, &bytes);
                self.taps.get_mut(&owner).unwrap().write_frame(&frame);
            }
            None => self.send_from_outside(packet, source_port),
        }
        self.id
    }

    fn send_from_outside(&self, packet: Packet, source_port: u16) {
        self.send_bytes_from_outside(packet.destination, &ip(self.id, packet, source_port));
    }

    /// Sends an IP packet into the VPC.
    pub fn send_bytes_from_outside(&self, to: impl Into<IpAddr>, bytes: &[u8]) {
        match to.into() {
            IpAddr::V4(destination) => {
                let [a, b, c, d] = destination.octets();
                let to = SockaddrIn::new(a, b, c, d, 0);
                sendto(self.outside.0.as_raw_fd(), bytes, &to, MsgFlags::empty()).unwrap();
            }
            IpAddr::V6(destination) => {
                let to = SockaddrIn6::from(SocketAddrV6::new(destination, 0, 0, 0));
                sendto(self.outside6.0.as_raw_fd(), bytes, &to, MsgFlags::empty()).unwrap();
            }
        }
    }

    /// Packets that have arrived at an address, by what they are known by, each with its protocol.
    /// Where no interface has the address: that have come out of the VPC.
    fn arrived(&mut self, at: IpAddr) -> Vec<(u16, u8)> {
        let mut arrived = Vec::new();
        let mut note = |frame: &[u8]| {
            if frame.len() >= 34 && frame[12..14] == [8, 0] {
                arrived.push((u16::from_be_bytes([frame[18], frame[19]]), frame[23]));
            } else if frame.len() >= 54 && frame[12..14] == [0x86, 0xdd] {
                arrived.push((u16::from_be_bytes([frame[16], frame[17]]), frame[20]));
            }
        };
        let tap = self.owner(at).map(|owner| self.taps.get_mut(&owner).unwrap());
        match tap {
            Some(tap) => {
                while let Some(frame) = tap.read_frame() {
                    note(&frame);
                }
            }
            None => {
                let mut bytes = vec![0; 70_000];
                let socket = if at.is_ipv4() { &self.outside.1 } else { &self.outside6.1 };
                while let Ok(len) = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                    note(&bytes[..len]);
                }
            }
        }
        arrived
    }

    /// Sends all packets; answers which of them arrive.
    pub fn deliver(&mut self, packets: &[Packet]) -> Vec<bool> {
        let ids: Vec<_> = (20_000..).zip(packets).map(|(port, packet)| self.send(*packet, port)).collect();
        // Whatever was sent before a packet that always passes has arrived when that has.
        let sentinel = |from, to| Packet {
            source: from,
            destination: to,
            message: Message::Other { protocol: SENTINEL },
        };
        let mut missing = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let ipv4: Vec<_> = self.plans.keys().map(|address| IpAddr::V4(*address)).collect();
        let ipv6 = self.plans.values().filter_map(|plan| Some(IpAddr::V6(plan.ipv6?.address))).collect();
        let families: [(Vec<IpAddr>, IpAddr); 2] =
            [(ipv4, [192, 0, 2, 77].into()), (ipv6, [0x2001, 0xdb8, 0, 0, 0, 0, 0, 77].into())];
        let everywhere: Vec<_> = families
            .iter()
            .flat_map(|(insiders, outside)| insiders.iter().chain([outside]))
            .copied()
            .collect();
        for (insiders, outside) in &families {
            for to in insiders.iter().chain([outside]) {
                let one = insiders.iter().find(|from| *from != to).unwrap();
                let senders = if to == outside { vec![one] } else { vec![one, outside] };
                for from in senders {
                    let sentinel = sentinel(*from, *to);
                    // No entry of a network ACL lets IPv6 pass.
                    if to.is_ipv4() || self.policy.verdict(sentinel).passes() {
                        let id = self.send(sentinel, 0);
                        missing.insert((self.owner(*to), id));
                    }
                }
            }
        }
        let end = Instant::now() + DEADLINE;
        while !missing.is_empty() {
            assert!(Instant::now() < end, "packets that always pass did not: {missing:?}");
            for at in &everywhere {
                for (id, protocol) in self.arrived(*at) {
                    if protocol == SENTINEL {
                        missing.remove(&(self.owner(*at), id));
                    } else {
                        seen.insert(id);
                    }
                }
            }
            self.wait();
        }
        ids.iter().map(|id| seen.contains(id)).collect()
    }

    fn wait(&self) {
        let mut fds: Vec<_> =
            self.taps.values().map(|tap| PollFd::new(tap.fd(), PollFlags::POLLIN)).collect();
        for socket in [&self.outside.1, &self.outside6.1] {
            fds.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        }
        poll(&mut fds, PollTimeout::from(20u8)).unwrap();
    }

    /// Whether a packet with the source of an interface arrives that comes from outside.
    pub fn passes_from_outside(&mut self, packet: Packet) -> bool {
        self.id = self.id.wrapping_add(1).max(1);
        let id = self.id;
        self.send_from_outside(packet, 1234);
        let owner = self.owner(packet.destination).unwrap();
        self.taps[&owner].wait(super::QUIET);
        self.arrived(packet.destination).iter().any(|(seen, _)| *seen == id)
    }

    /// Whether one packet arrives.
    pub fn passes(
        &mut self,
        source: impl Into<IpAddr>,
        destination: impl Into<IpAddr>,
        message: Message,
    ) -> bool {
        let packet = Packet { source: source.into(), destination: destination.into(), message };
        self.deliver(&[packet])[0]
    }

    /// As [`World::passes`], for TCP between two interfaces.
    pub fn tcp(&mut self, from: u8, to: u8, port: u16) -> bool {
        self.passes(World::address(from), World::address(to), Message::Tcp { port })
    }

    /// As [`World::tcp`], over IPv6.
    pub fn tcp_ipv6(&mut self, from: u8, to: u8, port: u16) -> bool {
        self.passes(ipv6(from), ipv6(to), Message::Tcp { port })
    }

    /// A guest with a TCP/IP stack on the tap of an interface.
    pub fn guest(&mut self, last: u8) -> super::Guest {
        let address = World::address(last);
        super::Guest::on(&self.plans[&address], self.taps.remove(&address).unwrap())
    }

    /// Lets [`super::inside`] of the gateway's namespace connect to interfaces from 198.51.100.7.
    pub fn connect_from_outside(&self) {
        super::sh(
            "ip -n kiln-000000000001-gw addr add 198.51.100.7/32 dev lo
            ip -n kiln-000000000001-gw route replace 172.31.0.0/16 via 169.254.255.2 dev vpc0 src 198.51.100.7
            ip netns exec kiln-000000000001-gw nft add rule ip kiln input ct state established accept",
        );
    }

    /// What the filter has counted.
    pub fn counters(&self) -> kiln_hostnet::Counters {
        let vpc = self.plans.values().next().unwrap().vpc;
        kiln_hostnet::counters(self.dir.path(), vpc).unwrap()
    }

    /// Takes all interfaces away.
    pub fn end(self) {
        for plan in self.plans.values() {
            kiln_hostnet::detach(self.dir.path(), plan.interface).unwrap();
        }
    }
}

pub fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// The Internet checksum of even or odd many bytes.
pub fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

/// A packet of the family of its addresses.
pub fn ip(id: u16, packet: Packet, source_port: u16) -> Vec<u8> {
    match (packet.source, packet.destination) {
        (IpAddr::V4(_), _) => ipv4(id, packet, source_port),
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ipv6_packet(id, (source, destination), packet.message, source_port)
        }
        _ => unreachable!("two families in one packet"),
    }
}

/// An IPv6 packet whose flow label is `id`.
pub fn ipv6_packet(id: u16, ends: (Ipv6Addr, Ipv6Addr), message: Message, source_port: u16) -> Vec<u8> {
    let ports = |port: u16| [source_port.to_be_bytes(), port.to_be_bytes()].concat();
    let (protocol, sum_at, mut payload) = match message {
        Message::Tcp { port } => {
            let rest = [0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 16, 0, 0, 0, 0, 0];
            (6, Some(16), [ports(port), rest.to_vec()].concat())
        }
        Message::Udp { port } => (17, Some(6), [ports(port), vec![0, 8, 0, 0]].concat()),
        Message::Icmpv6 { kind, code } => {
            let rest = [source_port.to_be_bytes(), [0, 1]].concat();
            (58, Some(2), [vec![kind, code, 0, 0], rest].concat())
        }
        Message::Other { protocol } => (protocol, None, vec![0; 8]),
        Message::Icmp { .. } => unreachable!("IPv6 only"),
    };
    let len = u16::try_from(payload.len()).unwrap();
    if let Some(at) = sum_at {
        let (source, destination) = ends;
        let length = [&[0, 0][..], &len.to_be_bytes(), &[0, 0, 0, protocol]].concat();
        let pseudo = [&source.octets()[..], &destination.octets(), &length, &payload].concat();
        payload[at..at + 2].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    }
    ipv6_header(id, ends, protocol, &payload)
}

/// An IPv6 packet of a header and what follows it.
pub fn ipv6_header(id: u16, ends: (Ipv6Addr, Ipv6Addr), protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let [len_high, len_low] = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let start = [0x60, 0, high, low, len_high, len_low, protocol, 64];
    [&start[..], &ends.0.octets(), &ends.1.octets(), payload].concat()
}

/// An IPv4 packet.
pub fn ipv4(id: u16, packet: Packet, source_port: u16) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (packet.source, packet.destination) else {
        unreachable!("IPv4 only")
    };
    let ports = |port: u16| [source_port.to_be_bytes(), port.to_be_bytes()].concat();
    let (protocol, mut payload) = match packet.message {
        Message::Tcp { port } => {
            // SYN, with a sequence number and a window.
            let rest = [0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 16, 0, 0, 0, 0, 0];
            (6, [ports(port), rest.to_vec()].concat())
        }
        // Without a checksum.
        Message::Udp { port } => (17, [ports(port), vec![0, 8, 0, 0]].concat()),
        Message::Icmp { kind, code } => {
            (1, [vec![kind, code, 0, 0], source_port.to_be_bytes().to_vec(), vec![0, 1]].concat())
        }
        Message::Other { protocol } => (protocol, vec![0; 8]),
        Message::Icmpv6 { .. } => unreachable!("IPv4 only"),
    };
    let len = u16::try_from(payload.len()).unwrap();
    match packet.message {
        Message::Tcp { .. } => {
            let pseudo =
                [&source.octets()[..], &destination.octets(), &[0, 6], &len.to_be_bytes(), &payload].concat();
            payload[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        }
        Message::Icmp { .. } => {
            let sum = checksum(&payload);
            payload[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        _ => {}
    }
    let mut header = vec![0x45, 0];
    header.extend((20 + len).to_be_bytes());
    header.extend(id.to_be_bytes());
    header.extend([0, 0, 64, protocol, 0, 0]);
    header.extend(source.octets());
    header.extend(destination.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, payload].concat()
}
