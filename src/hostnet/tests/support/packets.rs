//! Single packets between interfaces and from outside, and whether they arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use kiln_hostnet::NicPlan;
use kiln_model::security::{Direction, Member, Message, NetworkPolicy, Packet, Peer, Rule, Traffic};
use kiln_model::{InterfaceId, SecurityGroupId, SecurityGroupRuleId};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, socket,
};

use super::{DEADLINE, TapDevice, inside, member, plan};

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
        range => Peer::Ipv4(range.parse().unwrap()),
    };
    rule(direction, traffic, peer)
}

pub fn ingress(text: &str) -> Rule {
    allow(Direction::Ingress, text)
}

pub fn all_out() -> Rule {
    allow(Direction::Egress, "all 0-0 0.0.0.0/0")
}

/// A VPC with interfaces whose taps the test holds.
pub struct World {
    pub dir: tempfile::TempDir,
    pub policy: NetworkPolicy,
    pub plans: BTreeMap<Ipv4Addr, NicPlan>,
    pub taps: BTreeMap<Ipv4Addr, TapDevice>,
    /// Packets into the VPC from outside, and all that come out of it.
    outside: (OwnedFd, OwnedFd),
    id: u16,
}

impl World {
    /// Interfaces 172.31.0.`last`, in no group.
    pub fn new(lasts: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut policy = NetworkPolicy::default();
        let everything = [Direction::Ingress, Direction::Egress]
            .map(|direction| allow(direction, &format!("{SENTINEL} 0-0 0.0.0.0/0")));
        policy.groups.insert(group(SENTINEL_GROUP), everything.to_vec());
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
        let outside = inside("kiln-000000000001-gw", || {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let raw = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw).unwrap();
            let all = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthIp).unwrap();
            (raw, all)
        });
        World { dir, policy, plans, taps, outside, id: 0 }
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

    /// Sends one packet as a guest does, or from outside where no interface has its source. Answers
    /// what it can be known by.
    pub fn send(&mut self, packet: Packet, source_port: u16) -> u16 {
        self.id = self.id.wrapping_add(1).max(1);
        let bytes = ipv4(self.id, packet, source_port);
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (packet.source, packet.destination) else {
            unreachable!("IPv4 only")
        };
        match self.plans.get(&source) {
            Some(plan) => {
                let frame = ethernet(plan.router_mac.octets(), plan.mac.octets(), 0x0800, &bytes);
                self.taps.get_mut(&source).unwrap().write_frame(&frame);
            }
            None => {
                let [a, b, c, d] = destination.octets();
                let to = SockaddrIn::new(a, b, c, d, 0);
                sendto(self.outside.0.as_raw_fd(), &bytes, &to, MsgFlags::empty()).unwrap();
            }
        }
        self.id
    }

    /// Packets that have arrived at an address, by what they are known by, each with its protocol.
    /// Where no interface has the address: that have come out of the VPC.
    fn arrived(&mut self, at: Ipv4Addr) -> Vec<(u16, u8, Ipv4Addr)> {
        let mut arrived = Vec::new();
        let mut note = |frame: &[u8]| {
            if frame.len() >= 34 && frame[12..14] == [8, 0] {
                let source = Ipv4Addr::new(frame[26], frame[27], frame[28], frame[29]);
                arrived.push((u16::from_be_bytes([frame[18], frame[19]]), frame[23], source));
            }
        };
        match self.taps.get_mut(&at) {
            Some(tap) => {
                while let Some(frame) = tap.read_frame() {
                    note(&frame);
                }
            }
            None => {
                let mut bytes = vec![0; 70_000];
                while let Ok(len) = recv(self.outside.1.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                    note(&bytes[..len]);
                }
            }
        }
        arrived
    }

    /// Sends all packets; answers which of them arrive.
    pub fn deliver(&mut self, packets: &[Packet]) -> Vec<bool> {
        let outside = Ipv4Addr::new(192, 0, 2, 77);
        let ids: Vec<_> = (20_000..).zip(packets).map(|(port, packet)| self.send(*packet, port)).collect();
        // Whatever was sent before a packet that always passes has arrived when that has.
        let sentinel = |from: Ipv4Addr, to: Ipv4Addr| Packet {
            source: from.into(),
            destination: to.into(),
            message: Message::Other { protocol: SENTINEL },
        };
        let insiders: Vec<_> = self.plans.keys().copied().collect();
        let mut missing = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for to in insiders.iter().copied().chain([outside]) {
            let one = *insiders.iter().find(|from| **from != to).unwrap();
            let senders = if to == outside { vec![one] } else { vec![one, outside] };
            for from in senders {
                let id = self.send(sentinel(from, to), 0);
                missing.insert((to, id));
            }
        }
        let end = Instant::now() + DEADLINE;
        while !missing.is_empty() {
            assert!(Instant::now() < end, "packets that always pass did not: {missing:?}");
            for at in insiders.iter().copied().chain([outside]) {
                for (id, protocol, _) in self.arrived(at) {
                    if protocol == SENTINEL {
                        missing.remove(&(at, id));
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
        fds.push(PollFd::new(self.outside.1.as_fd(), PollFlags::POLLIN));
        poll(&mut fds, PollTimeout::from(20u8)).unwrap();
    }

    /// Whether a packet with the source of an interface arrives that comes from outside.
    pub fn passes_from_outside(&mut self, packet: Packet) -> bool {
        let IpAddr::V4(destination) = packet.destination else { unreachable!("IPv4 only") };
        self.id = self.id.wrapping_add(1).max(1);
        let id = self.id;
        let [a, b, c, d] = destination.octets();
        let to = SockaddrIn::new(a, b, c, d, 0);
        let bytes = ipv4(id, packet, 1234);
        sendto(self.outside.0.as_raw_fd(), &bytes, &to, MsgFlags::empty()).unwrap();
        self.taps[&destination].wait(super::QUIET);
        self.arrived(destination).iter().any(|(seen, _, _)| *seen == id)
    }

    /// Whether one packet arrives.
    pub fn passes(&mut self, source: Ipv4Addr, destination: Ipv4Addr, message: Message) -> bool {
        let packet = Packet { source: source.into(), destination: destination.into(), message };
        self.deliver(&[packet])[0]
    }

    /// As [`World::passes`], for TCP between two interfaces.
    pub fn tcp(&mut self, from: u8, to: u8, port: u16) -> bool {
        self.passes(World::address(from), World::address(to), Message::Tcp { port })
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
