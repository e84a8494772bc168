//! IPv6 between interfaces, with the host and beyond it, with real packets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::Instant;

use kiln_hostnet::{Ipv6Plan, NicPlan};
use kiln_model::security::{Direction, Message, NetworkPolicy, Packet, Rule};
use support::packets::{
    World, all_out, all_out_ipv6, allow, checksum, ethernet, group, ingress, ipv6_header, ipv6_packet,
};
use support::{DEADLINE, HOST_IPV6, QUIET, TapDevice, inside, ipv6, member, on_own_host, plan, sh};

const VPC: &str = "kiln-000000000001";
const OUTSIDE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 7);

fn egress(text: &str) -> Rule {
    allow(Direction::Egress, text)
}

fn tcp(port: u16) -> Message {
    Message::Tcp { port }
}

#[test]
fn three_examples_hold_over_ipv6() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5, 6, 7]);
        world.set_rules(1, vec![ingress("tcp 80-80 ::/0"), all_out_ipv6()]);
        world.set_rules(2, vec![ingress("tcp 22-22 2001:db8:99::133/128"), all_out_ipv6()]);
        world.set_rules(3, vec![ingress("tcp 22-22 group 2"), all_out_ipv6()]);
        for (last, group) in [(4, 1), (5, 2), (6, 3), (7, 1)] {
            world.join(last, &[group]);
        }
        world.apply();
        let person: Ipv6Addr = "2001:db8:99::133".parse().unwrap();
        assert!(world.passes(OUTSIDE, ipv6(4), tcp(80)) && world.tcp_ipv6(5, 4, 80));
        assert!(!world.passes(OUTSIDE, ipv6(4), tcp(8080)) && !world.tcp_ipv6(5, 4, 8080));
        assert!(!world.tcp(5, 4, 80), "::/0 is IPv6");
        assert!(world.passes(person, ipv6(5), tcp(22)));
        assert!(!world.passes(OUTSIDE, ipv6(5), tcp(22)) && !world.tcp_ipv6(4, 5, 22));
        assert!(world.tcp_ipv6(5, 6, 22), "a member of the other group");
        assert!(!world.tcp_ipv6(7, 6, 22) && !world.passes(person, ipv6(6), tcp(22)));

        let counters = world.counters();
        let packets = |n: u64| counters.rule(&world.policy.groups[&group(n)][0]).unwrap().packets;
        assert_eq!([1, 2, 3].map(packets), [2, 1, 1]);
        // Who leaves the group is not let in with the next packet, who joins is.
        world.join(5, &[1]);
        world.join(7, &[2]);
        world.apply();
        assert!(!world.tcp_ipv6(5, 6, 22) && world.tcp_ipv6(7, 6, 22));
        world.end();
    });
}

#[test]
fn protocols_ranges_and_egress_hold_over_ipv6() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5, 6]);
        world.set_rules(1, vec![ingress("udp 5000-5010 fd00:31::/56"), ingress("icmpv6 128-0 ::/0")]);
        world.set_rules(2, vec![ingress("47 0-0 fd00:31::/126"), ingress("50 0-0 ::/0")]);
        world.set_rules(3, vec![all_out_ipv6()]);
        world.set_rules(4, vec![egress("tcp 443-443 2001:db8:99::/64"), egress("udp 53-53 group 1")]);
        world.join(4, &[1, 2]);
        world.join(5, &[3]);
        world.join(6, &[4]);
        world.apply();
        let udp = |port| Message::Udp { port };
        for (message, passes) in [
            (udp(4999), false),
            (udp(5000), true),
            (udp(5010), true),
            (udp(5011), false),
            (Message::ECHO_REQUEST_V6, true),
            (Message::Icmpv6 { kind: 128, code: 1 }, false),
            (Message::Icmpv6 { kind: 139, code: 0 }, false),
            (Message::Other { protocol: 50 }, true),
            (Message::Other { protocol: 47 }, false),
        ] {
            assert_eq!(world.passes(ipv6(5), ipv6(4), message), passes, "{message:?}");
        }
        assert!(world.passes(ipv6(6), OUTSIDE, tcp(443)) && !world.passes(ipv6(6), OUTSIDE, tcp(80)));
        assert!(!world.passes(ipv6(6), ipv6(4), udp(5000)), "its own end does not let it");
        // Link-local addresses and those of the services on the link lead nowhere.
        for to in ["fe80::1", "fd00:ec2::254", "ff0e::1"] {
            let to: Ipv6Addr = to.parse().unwrap();
            let bytes = ipv6_packet(1, (ipv6(5), to), udp(9), 9);
            let plan = world.plans[&World::address(5)].clone();
            let frame = ethernet(plan.router_mac.octets(), plan.mac.octets(), 0x86dd, &bytes);
            world.taps.get_mut(&World::address(5)).unwrap().write_frame(&frame);
        }
        assert!(world.passes(ipv6(5), OUTSIDE, udp(9)));
        world.end();
    });
}

#[test]
fn untracked_conversations_over_ipv6_end_with_their_rule_and_tracked_ones_do_not() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5]);
        world.set_rules(1, vec![ingress("udp 80-80 2001:db8:99::7/128"), all_out_ipv6()]);
        world.set_rules(2, vec![ingress("udp 80-80 ::/0"), all_out_ipv6()]);
        world.join(4, &[1]);
        world.join(5, &[2]);
        world.apply();
        let begun = [4, 5].map(|last| Packet {
            source: OUTSIDE.into(),
            destination: ipv6(last).into(),
            message: Message::Udp { port: 80 },
        });
        assert_eq!(world.deliver(&begun), [true, true]);
        // Answered, to the ports that `deliver` uses, they are conversations.
        for (last, port) in [(4, 20_000), (5, 20_001)] {
            let message = Message::Udp { port };
            let answer = Packet { source: ipv6(last).into(), destination: OUTSIDE.into(), message };
            world.send(answer, 80);
        }
        assert_eq!(world.deliver(&begun), [true, true]);
        for n in [1, 2] {
            world.set_rules(n, vec![all_out_ipv6()]);
        }
        world.apply();
        // The same ports again: the first is remembered, the second was forgotten.
        assert_eq!(world.deliver(&begun), [true, false]);
        // An address that goes takes its conversations along.
        let first = world.member(4).ipv6.clone();
        world.member(4).ipv6 = vec![ipv6(40)];
        world.apply();
        assert!(!sh(&format!("ip -n {VPC} -6 route")).contains("fd00:31::4 "));
        world.member(4).ipv6 = first;
        world.apply();
        assert_eq!(world.deliver(&begun), [false, false]);
        world.end();
    });
}

#[test]
fn conversations_over_ipv6_have_their_allowance() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5, 6]);
        world.set_rules(1, vec![ingress("all 0-0 ::/0"), all_out_ipv6()]);
        for last in [4, 5, 6] {
            world.join(last, &[1]);
            // As in service, in parts.
            world.member(last).connections = 32_768;
        }
        world.member(6).connections = 20;
        world.apply();
        let flood = |from: u8, to: u8| -> Vec<Packet> {
            let message = |n: u16| Message::Udp { port: 1000 + n };
            let packet =
                |n| Packet { source: ipv6(from).into(), destination: ipv6(to).into(), message: message(n) };
            (0..40).map(packet).collect()
        };
        let count = |arrived: Vec<bool>| arrived.into_iter().filter(|arrived| *arrived).count();
        assert_eq!(count(world.deliver(&flood(4, 5))), 40);
        let arrived = count(world.deliver(&flood(6, 5)));
        assert!((16..=20).contains(&arrived), "{arrived} of 40 began");
        world.end();
    });
}

#[test]
fn foreign_ipv6_addresses_of_the_vpc_do_not_come_in_from_outside() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5]);
        world
            .set_rules(1, vec![ingress("tcp 22-22 fd00:31::/56"), ingress("tcp 23-23 ::/0"), all_out_ipv6()]);
        world.join(4, &[1]);
        world.join(5, &[1]);
        world.apply();
        assert!(world.tcp_ipv6(5, 4, 22) && world.passes(OUTSIDE, ipv6(4), tcp(23)));
        for source in [ipv6(5), ipv6(99), ipv6(1)] {
            let packet = Packet { source: source.into(), destination: ipv6(4).into(), message: tcp(22) };
            assert!(!world.passes_from_outside(packet), "{source}");
        }
        // What nobody has goes nowhere.
        let nobody = Packet { source: ipv6(4).into(), destination: ipv6(99).into(), message: tcp(23) };
        assert_eq!(world.deliver(&[nobody]), [false]);
        world.end();
    });
}

/// The first ICMPv6 message of this type that a tap gets.
fn icmpv6(tap: &mut TapDevice, kind: u8) -> Option<Vec<u8>> {
    let end = Instant::now() + QUIET * 3;
    while Instant::now() < end {
        while let Some(frame) = tap.read_frame() {
            if frame.len() > 54 && frame[12..14] == [0x86, 0xdd] && frame[20] == 58 && frame[54] == kind {
                return Some(frame);
            }
        }
        tap.wait(QUIET);
    }
    None
}

#[test]
fn sender_learns_that_a_packet_is_too_big_whatever_the_rules() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5]);
        world.set_rules(1, vec![ingress("udp 9-9 fd00:31::/56"), all_out_ipv6()]);
        world.join(4, &[1]);
        world.join(5, &[1]);
        world.apply();
        // From the router, which has a smaller link behind it.
        sh(&format!("ip -n {VPC} link set kt000000000105 mtu 1280"));
        let plan = world.plans[&World::address(4)].clone();
        let big = [&[0, 9, 0, 9][..], &1308u16.to_be_bytes(), &[0, 0], &[7; 1300]].concat();
        let mut big = ipv6_header(1, (ipv6(4), ipv6(5)), 17, &big);
        let pseudo = [&big[8..40], &[0, 0, 5, 28, 0, 0, 0, 17], &big[40..]].concat();
        let sum = checksum(&pseudo).to_be_bytes();
        big[46..48].copy_from_slice(&sum);
        let tap = world.taps.get_mut(&World::address(4)).unwrap();
        tap.write_frame(&ethernet(plan.router_mac.octets(), plan.mac.octets(), 0x86dd, &big));
        let told = icmpv6(tap, 2).unwrap();
        assert_eq!(told[22..38], ipv6(1).octets(), "the router says so");
        assert_eq!(told[58..62], 1280u32.to_be_bytes());

        // From beyond, about a conversation that there is; about none it does not come in.
        let too_big = |about: u16| {
            let quoted = ipv6_packet(1, (ipv6(4), OUTSIDE), Message::Udp { port: 53 }, about);
            let mut message = [&[2, 0, 0, 0][..], &1400u32.to_be_bytes(), &quoted].concat();
            let router: Ipv6Addr = "2001:db8:99::1".parse().unwrap();
            let len = u32::try_from(message.len()).unwrap().to_be_bytes();
            let pseudo = [&router.octets()[..], &ipv6(4).octets(), &len, &[0, 0, 0, 58], &message].concat();
            message[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());
            ipv6_header(1, (router, ipv6(4)), 58, &message)
        };
        let ask = Packet {
            source: ipv6(4).into(),
            destination: OUTSIDE.into(),
            message: Message::Udp { port: 53 },
        };
        // `deliver` uses 20000 for the first packet.
        assert_eq!(world.deliver(&[ask]), [true]);
        world.send_bytes_from_outside(ipv6(4), &too_big(20_001));
        assert_eq!(icmpv6(world.taps.get_mut(&World::address(4)).unwrap(), 2), None);
        world.send_bytes_from_outside(ipv6(4), &too_big(20_000));
        assert!(icmpv6(world.taps.get_mut(&World::address(4)).unwrap(), 2).is_some());
        world.end();
    });
}

#[test]
fn ipv6_of_an_interface_without_it_ends_at_the_tap() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let plan = NicPlan { ipv6: None, ..plan(1, 44) };
        let mut nic = support::attach(dir.path(), &plan).unwrap();
        let mut tap = TapDevice::new(nic.queues.remove(0));
        let packet = ipv6_packet(1, (ipv6(44), ipv6(5)), Message::Udp { port: 9 }, 9);
        tap.write_frame(&ethernet(plan.router_mac.octets(), plan.mac.octets(), 0x86dd, &packet));
        let counters = kiln_hostnet::counters(dir.path(), plan.vpc).unwrap().interface(plan.interface);
        assert_eq!(counters.other_kinds.packets, 1);
        assert_eq!(inside(VPC, || sh("sysctl -n net.ipv6.conf.kt00000000012c.disable_ipv6")), "1\n");
        kiln_hostnet::detach(dir.path(), plan.interface).unwrap();
    });
}

/// Attaches with one group in which all may come and go, as the host may; answers the tap.
fn attach_open(dir: &Path, plan: &NicPlan) -> TapDevice {
    let mut policy = NetworkPolicy::default();
    let open = ["0.0.0.0/0", "::/0"].map(|range| ingress(&format!("all 0-0 {range}")));
    policy.groups.insert(group(1), [&open[..], &[all_out(), all_out_ipv6()]].concat());
    policy.interfaces.insert(plan.interface, member(plan, &[group(1)]));
    let mut nic = kiln_hostnet::attach(dir, plan, &|| Ok(policy.clone())).unwrap();
    TapDevice::new(nic.queues.remove(0))
}

/// A namespace beyond the host: 2001:db8:ff::2, the host is ::1 on the same link.
fn outside() {
    sh("ip netns add outside
        ip link add eth0 type veth peer name eth0 netns outside
        sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0
        ip netns exec outside sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0
        ip addr add 2001:db8:ff::1/64 dev eth0 nodad
        ip -n outside addr add 2001:db8:ff::2/64 dev eth0 nodad
        ip link set eth0 up
        ip -n outside link set eth0 up
        ip -n outside route add fd00:31::/56 via 2001:db8:ff::1
        ip -n outside route add 2001:db8:31::/56 via 2001:db8:ff::1");
    // The kernel takes even these addresses for tentative until a worker of its own has been at them, and
    // nobody binds to a tentative one. Tests beside this one hold the lock that the worker waits for.
    let end = Instant::now() + DEADLINE;
    while !sh("ip -6 addr show tentative && ip -n outside -6 addr show tentative").is_empty() {
        assert!(Instant::now() < end, "addresses stay tentative");
    }
}

/// Sends a datagram from a guest to a server in the namespace `outside`; answers the source that the server sees.
fn source_seen(plan: &NicPlan, tap: &mut TapDevice, address: Ipv6Addr) -> Ipv6Addr {
    let server: Ipv6Addr = "2001:db8:ff::2".parse().unwrap();
    let socket = inside("outside", || UdpSocket::bind((server, 53)).unwrap());
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let packet = ipv6_packet(1, (address, server), Message::Udp { port: 53 }, 1234);
    tap.write_frame(&ethernet(plan.router_mac.octets(), plan.mac.octets(), 0x86dd, &packet));
    let (_, from) = socket.recv_from(&mut [0; 64]).unwrap();
    // What comes back reaches the guest.
    socket.send_to(b"answer", from).unwrap();
    let end = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < end, "no answer at the guest");
        tap.wait(QUIET);
        while let Some(frame) = tap.read_frame() {
            if frame.len() > 60 && frame[38..54] == address.octets() && frame.ends_with(b"answer") {
                let std::net::SocketAddr::V6(from) = from else { unreachable!() };
                return *from.ip();
            }
        }
    }
}

/// Whether a datagram from beyond the host arrives.
fn comes_in(tap: &mut TapDevice, to: Ipv6Addr, port: u16) -> bool {
    inside("outside", || {
        let socket = UdpSocket::bind(("::", 0)).unwrap();
        socket.send_to(b"unasked", SocketAddrV6::new(to, port, 0, 0)).unwrap();
    });
    let end = Instant::now() + QUIET * 2;
    while Instant::now() < end {
        tap.wait(QUIET);
        while let Some(frame) = tap.read_frame() {
            if frame.ends_with(b"unasked") {
                return true;
            }
        }
    }
    false
}

#[test]
fn unique_local_addresses_leave_behind_the_hosts_and_routed_ones_as_they_are() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        outside();
        let state = || ["ip netns list", "nft list ruleset", "ip -6 route | grep -v fe80"].map(sh);
        let before = state();
        let local = plan(1, 4);
        let routed = "2001:db8:31::4".parse().unwrap();
        let range = Ipv6Plan {
            vpc_cidr: "2001:db8:31::/56".parse().unwrap(),
            router: "2001:db8:31::1".parse().unwrap(),
            address: routed,
        };
        let other = NicPlan { ipv6: Some(range), vpc_cidr: "172.30.0.0/16".parse().unwrap(), ..plan(2, 4) };
        let other = NicPlan { router: [172, 30, 0, 1].into(), address: [172, 30, 0, 4].into(), ..other };
        let mut taps = [&local, &other].map(|plan| attach_open(dir.path(), plan));
        assert_eq!(source_seen(&local, &mut taps[0], ipv6(4)), "2001:db8:ff::1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(source_seen(&other, &mut taps[1], routed), routed);
        assert!(!comes_in(&mut taps[0], ipv6(4), 53), "nobody beyond this host means it");
        assert!(comes_in(&mut taps[1], routed, 53), "its group lets everybody in");
        for plan in [&local, &other] {
            kiln_hostnet::detach(dir.path(), plan.interface).unwrap();
        }
        assert_eq!(state(), before);
    });
}

/// Answers one ping.
fn answer_ping(plan: &NicPlan, mut tap: TapDevice) -> TapDevice {
    let mut frame = icmpv6(&mut tap, 128).unwrap();
    let (source, destination) = (frame[22..38].to_vec(), frame[38..54].to_vec());
    frame[22..38].copy_from_slice(&destination);
    frame[38..54].copy_from_slice(&source);
    frame[54] = 129;
    frame[56..58].fill(0);
    let len = u32::try_from(frame.len() - 54).unwrap().to_be_bytes();
    let pseudo = [&frame[22..54], &len, &[0, 0, 0, 58], &frame[54..]].concat();
    let sum = checksum(&pseudo).to_be_bytes();
    frame[56..58].copy_from_slice(&sum);
    tap.write_frame(&ethernet(plan.router_mac.octets(), plan.mac.octets(), 0x86dd, &frame[14..]));
    tap
}

#[test]
fn host_pings_the_instance_by_its_own_address_in_the_vpc() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(1, 4);
        let mut nic = support::attach(dir.path(), &plan).unwrap();
        let tap = TapDevice::new(nic.queues.remove(0));
        let (first, mut tap) = thread::scope(|scope| {
            let guest = scope.spawn(|| answer_ping(&plan, tap));
            (sh(&format!("ping -6 -c 1 -W 10 {}", ipv6(4))), guest.join().unwrap())
        });
        assert!(first.contains("1 received"), "{first}");
        assert!(sh(&format!("ip -6 route get {}", ipv6(4))).contains(&format!("src {HOST_IPV6}")));
        // And nobody else may begin, for all that the group says.
        let counters = || kiln_hostnet::counters(dir.path(), plan.vpc).unwrap().interface(plan.interface);
        assert_eq!(counters().from_host.packets, 1);
        assert!(icmpv6(&mut tap, 128).is_none());
        kiln_hostnet::detach(dir.path(), plan.interface).unwrap();
    });
}

#[test]
fn host_that_listens_to_routers_goes_on_while_it_forwards() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        sh("ip link add lan0 type veth peer name lan1
            sysctl -qw net.ipv6.conf.lan0.accept_ra=1 net.ipv6.conf.lan1.accept_ra=0");
        let settings = || {
            sh(
                "sysctl -n net.ipv6.conf.all.forwarding net.ipv6.conf.lan0.accept_ra net.ipv6.conf.lan1.accept_ra",
            )
        };
        let plans = [plan(1, 4), plan(2, 4)];
        let nics = plans.each_ref().map(|plan| support::attach(dir.path(), plan).unwrap());
        assert_eq!(settings(), "1\n2\n0\n");
        // Nothing but instances is forwarded for.
        assert!(sh("nft list chain ip6 kiln forwarding").contains("iifname != \"kg*\" counter"));
        kiln_hostnet::detach(dir.path(), plans[0].interface).unwrap();
        assert_eq!(settings(), "1\n2\n0\n", "another instance is left");
        drop(nics);
        kiln_hostnet::detach(dir.path(), plans[1].interface).unwrap();
        assert_eq!(settings(), "0\n1\n0\n");
        // Where the host forwards anyhow, it is left as it is.
        sh("sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv6.conf.lan0.accept_ra=1");
        let _nic = support::attach(dir.path(), &plans[0]).unwrap();
        assert_eq!(settings(), "1\n1\n0\n");
        assert!(!sh("nft list chain ip6 kiln forwarding").contains("iifname != \"kg*\" counter"));
        kiln_hostnet::detach(dir.path(), plans[0].interface).unwrap();
        assert_eq!(settings(), "1\n1\n0\n");
    });
}
