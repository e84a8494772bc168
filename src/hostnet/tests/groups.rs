//! What security groups mean, each point with real packets between namespaces.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, TcpStream};
use std::time::Duration;

use kiln_model::security::{Message, Packet};
use support::packets::{
    World, all_out, all_out_ipv6, allow, ethernet, ingress, ipv4, ipv6_header, ipv6_packet,
};
use support::{HOST_IPV6, QUIET, host_state, inside, ipv6, on_own_host};

const GATEWAY: &str = "kiln-000000000001-gw";
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

fn at(last: u8) -> Ipv4Addr {
    World::address(last)
}

fn egress(text: &str) -> kiln_model::security::Rule {
    allow(kiln_model::security::Direction::Egress, text)
}

/// A connection from outside that a guest echoes on.
fn connect(last: u8, port: u16) -> Option<TcpStream> {
    inside(GATEWAY, || {
        let stream = TcpStream::connect_timeout(&SocketAddrV4::new(at(last), port).into(), QUIET * 3).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        Some(stream)
    })
}

/// Whether what is said on a connection comes back.
fn alive(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 5];
    stream.write_all(b"hello").is_ok() && stream.read_exact(&mut answer).is_ok() && answer == *b"hello"
}

#[test]
fn three_examples_hold_word_for_word() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5, 6, 7]);
        // Port 80 from 0.0.0.0/0; port 22 from 10.50.2.133/32; port 22 from the members of another group.
        world.set_rules(1, vec![ingress("tcp 80-80 0.0.0.0/0"), all_out()]);
        world.set_rules(2, vec![ingress("tcp 22-22 10.50.2.133/32"), all_out()]);
        world.set_rules(3, vec![ingress("tcp 22-22 group 2"), all_out()]);
        for (last, group) in [(4, 1), (5, 2), (6, 3)] {
            world.join(last, &[group]);
        }
        world.join(7, &[1]);
        world.apply();
        let person = Ipv4Addr::new(10, 50, 2, 133);
        let tcp = |port| Message::Tcp { port };
        assert!(world.passes(OUTSIDE, at(4), tcp(80)) && world.tcp(5, 4, 80));
        assert!(!world.passes(OUTSIDE, at(4), tcp(8080)) && !world.tcp(5, 4, 8080));
        assert!(world.passes(person, at(5), tcp(22)));
        assert!(!world.passes(person, at(5), tcp(23)));
        assert!(!world.passes(Ipv4Addr::new(10, 50, 2, 134), at(5), tcp(22)) && !world.tcp(4, 5, 22));
        assert!(world.tcp(5, 6, 22), "a member of the other group");
        assert!(!world.tcp(7, 6, 22) && !world.tcp(4, 6, 22), "others");
        assert!(!world.passes(person, at(6), tcp(22)), "none of that group's rules come along");

        // Each rule has counted the conversations that it let begin, and nothing else.
        let counters = world.counters();
        let packets = |n: u64, rule: usize| {
            counters.rule(&world.policy.groups[&support::packets::group(n)][rule]).unwrap().packets
        };
        assert_eq!([packets(1, 0), packets(2, 0), packets(3, 0)], [2, 1, 1]);
        world.end();
    });
}

#[test]
fn default_group_talks_to_itself_alone() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5, 6]);
        world.set_rules(1, vec![ingress("all 0-0 group 1"), all_out()]);
        world.set_rules(2, vec![all_out()]);
        world.join(4, &[1]);
        world.join(5, &[1]);
        world.join(6, &[2]);
        world.apply();
        assert!(world.tcp(4, 5, 9) && world.passes(at(5), at(4), Message::ECHO_REQUEST));
        assert!(!world.tcp(6, 4, 9) && !world.passes(OUTSIDE, at(4), Message::Tcp { port: 9 }));
        // Who joins is let in with the next packet, who leaves is not.
        world.join(6, &[1]);
        world.join(5, &[2]);
        world.apply();
        assert!(world.tcp(6, 4, 9) && !world.tcp(5, 4, 9));
        world.end();
    });
}

#[test]
fn groups_add_up_and_ranges_end_where_they_say() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5]);
        world.set_rules(1, vec![ingress("udp 5000-5010 172.31.0.0/16"), ingress("icmp 8-0 0.0.0.0/0")]);
        world.set_rules(2, vec![ingress("tcp 80-80 0.0.0.0/0"), ingress("47 0-0 172.31.0.0/30")]);
        world.set_rules(3, vec![ingress("50 0-0 0.0.0.0/0"), all_out()]);
        world.join(4, &[1, 2, 3]);
        world.join(5, &[3]);
        world.apply();
        let udp = |port| Message::Udp { port };
        for (message, passes) in [
            (udp(4999), false),
            (udp(5000), true),
            (udp(5010), true),
            (udp(5011), false),
            (Message::Tcp { port: 80 }, true),
            (Message::Tcp { port: 5005 }, false),
            (Message::ECHO_REQUEST, true),
            (Message::Icmp { kind: 13, code: 0 }, false),
            (Message::Other { protocol: 50 }, true),
            (Message::Other { protocol: 51 }, false),
            (Message::Other { protocol: 47 }, false),
        ] {
            assert_eq!(world.passes(at(5), at(4), message), passes, "{message:?}");
        }
        world.end();
    });
}

#[test]
fn egress_rules_hold_at_the_senders_end() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5, 6]);
        let open = ingress("all 0-0 0.0.0.0/0");
        world.set_rules(
            1,
            vec![open.clone(), egress("tcp 443-443 198.51.100.0/24"), egress("tcp 22-22 group 2")],
        );
        world.set_rules(2, vec![open.clone()]);
        world.set_rules(3, vec![open]);
        for (last, group) in [(4, 1), (5, 2), (6, 3)] {
            world.join(last, &[group]);
        }
        world.apply();
        let tcp = |port| Message::Tcp { port };
        assert!(world.passes(at(4), OUTSIDE, tcp(443)) && !world.passes(at(4), OUTSIDE, tcp(80)));
        assert!(!world.passes(at(4), Ipv4Addr::new(198, 51, 101, 1), tcp(443)));
        assert!(world.tcp(4, 5, 22) && !world.tcp(4, 6, 22) && !world.tcp(5, 6, 22));
        world.end();
    });
}

#[test]
fn answers_pass_whatever_the_other_direction_says() {
    on_own_host(|| {
        let mut world = World::new(&[4]);
        world.connect_from_outside();
        // Nothing may be begun from inside.
        world.set_rules(1, vec![ingress("tcp 80-80 198.51.100.0/24")]);
        world.join(4, &[1]);
        world.apply();
        let guest = world.guest(4).serve(80);
        assert!(alive(&mut connect(4, 80).unwrap()));
        drop(guest);
        world.end();
    });
}

#[test]
fn tracked_connections_outlive_their_rule_and_untracked_ones_do_not() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5]);
        world.connect_from_outside();
        let narrow = ingress("tcp 80-80 198.51.100.7/32");
        let anybody = ingress("tcp 80-80 0.0.0.0/0");
        world.set_rules(1, vec![narrow, all_out()]);
        world.set_rules(2, vec![anybody, all_out()]);
        world.join(4, &[1]);
        world.join(5, &[2]);
        world.apply();
        let guests = [4, 5].map(|last| world.guest(last).serve(80));
        let mut tracked = connect(4, 80).unwrap();
        let mut untracked = connect(5, 80).unwrap();
        assert!(alive(&mut tracked) && alive(&mut untracked));
        for group in [1, 2] {
            world.set_rules(group, vec![all_out()]);
        }
        world.apply();
        assert!(alive(&mut tracked), "goes on until it is idle");
        assert!(!alive(&mut untracked), "ends at once");
        assert!(connect(4, 80).is_none() && connect(5, 80).is_none(), "nobody begins anew");
        drop(guests);
        world.end();
    });
}

#[test]
fn untracked_connection_goes_on_where_another_rule_allows_it() {
    on_own_host(|| {
        let mut world = World::new(&[4]);
        world.connect_from_outside();
        world.set_rules(
            1,
            vec![ingress("tcp 80-80 0.0.0.0/0"), ingress("tcp 80-80 198.51.100.0/24"), all_out()],
        );
        world.join(4, &[1]);
        world.apply();
        let guest = world.guest(4).serve(80);
        let mut held = connect(4, 80).unwrap();
        assert!(alive(&mut held));
        world.set_rules(1, vec![ingress("tcp 80-80 198.51.100.0/24"), all_out()]);
        world.apply();
        assert!(alive(&mut held));
        drop(guest);
        world.end();
    });
}

#[test]
fn second_address_comes_and_goes_with_its_connections() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5]);
        world.set_rules(1, vec![ingress("tcp 22-22 group 2"), all_out()]);
        world.set_rules(2, vec![ingress("tcp 80-80 0.0.0.0/0"), all_out()]);
        world.join(4, &[1]);
        world.join(5, &[2]);
        world.apply();
        let second = Ipv4Addr::new(172, 31, 0, 77);
        let tcp = |port| Message::Tcp { port };
        let from = |world: &mut World, source: Ipv4Addr| {
            let packet = Packet { source: source.into(), destination: at(4).into(), message: tcp(22) };
            let bytes = ipv4(7, packet, 30_000);
            let plan = world.plans[&at(5)].clone();
            let frame = ethernet(plan.router_mac.octets(), plan.mac.octets(), 0x0800, &bytes);
            let before = world.counters().interface(plan.interface).spoofed.packets;
            world.taps.get_mut(&at(5)).unwrap().write_frame(&frame);
            world.counters().interface(plan.interface).spoofed.packets - before
        };
        assert_eq!(from(&mut world, second), 1, "not its address yet");
        world.member(5).addresses.push(second);
        world.apply();
        assert_eq!(from(&mut world, second), 0);
        let reference = world.policy.groups[&support::packets::group(1)][0].clone();
        assert_eq!(world.counters().rule(&reference).unwrap().packets, 1, "it is a member's address");
        assert!(support::sh("ip -n kiln-000000000001 route").contains("172.31.0.77 dev kt000000000105"));
        world.member(5).addresses.pop();
        world.apply();
        assert_eq!(from(&mut world, second), 1);
        assert!(!support::sh("ip -n kiln-000000000001 route").contains("172.31.0.77"));
        world.end();
    });
}

#[test]
fn conversations_beyond_the_allowance_are_refused_to_one_alone() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5, 6]);
        world.set_rules(1, vec![ingress("all 0-0 0.0.0.0/0"), all_out()]);
        for last in [4, 5, 6] {
            world.join(last, &[1]);
        }
        world.member(6).connections = 20;
        world.apply();
        let flood: Vec<_> = (0..40)
            .map(|n| Packet {
                source: at(6).into(),
                destination: at(5).into(),
                message: Message::Udp { port: 1000 + n },
            })
            .collect();
        let arrived = world.deliver(&flood).iter().filter(|arrived| **arrived).count();
        assert!((18..=20).contains(&arrived), "{arrived} of 40 began");
        let refused = world.counters().interface(world.id_of(6)).over_allowance.packets;
        assert!(refused >= 20, "{refused} counted");
        assert!(world.passes(at(4), at(5), Message::Udp { port: 9 }), "a neighbour begins as ever");
        world.end();
    });
}

#[test]
fn foreign_addresses_of_the_vpc_do_not_come_in_from_outside() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5]);
        world.set_rules(1, vec![ingress("tcp 22-22 group 1"), all_out()]);
        world.join(4, &[1]);
        world.join(5, &[1]);
        world.apply();
        assert!(world.tcp(5, 4, 22));
        // With the address of a member, and of nobody. Both would match as inside.
        let before = world.counters();
        let rule = world.policy.groups[&support::packets::group(1)][0].clone();
        for source in [at(5), at(99)] {
            let packet = Packet {
                source: source.into(),
                destination: at(4).into(),
                message: Message::Tcp { port: 22 },
            };
            assert!(!world.passes_from_outside(packet));
        }
        assert_eq!(world.counters().rule(&rule), before.rule(&rule));
        world.end();
    });
}

/// Ethernet frames that a guest may not send, each with where they are counted.
fn forbidden(world: &World) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let plan = &world.plans[&at(4)];
    let (own, router) = (plan.mac.octets(), plan.router_mac.octets());
    let neighbour = world.plans[&at(5)].mac.octets();
    let ip = |source: [u8; 4], destination: [u8; 4], message| {
        ipv4(1, Packet { source: source.into(), destination: destination.into(), message }, 68)
    };
    let udp = |port| Message::Udp { port };
    let good = ip([172, 31, 0, 4], [172, 31, 0, 5], udp(9));
    let mut fragment = ip([172, 31, 0, 5], [172, 31, 0, 5], udp(9));
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 2];
    arp.extend(own);
    arp.extend([172, 31, 0, 5]);
    arp.extend([0xff; 6]);
    arp.extend([172, 31, 0, 5]);
    let mut tagged = vec![0, 7, 8, 0];
    tagged.extend(&good);
    let mut arp_mac = arp.clone();
    arp_mac[8..14].copy_from_slice(&neighbour);
    // More fragments follow; then a later one.
    fragment[6] = 0x20;
    let redo = |bytes: &mut Vec<u8>| {
        bytes[10..12].fill(0);
        let sum = support::packets::checksum(&bytes[..20]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    };
    redo(&mut fragment);
    let mut later = fragment.clone();
    later[6..8].copy_from_slice(&[0, 1]);
    redo(&mut later);
    let ip6 = |source: Ipv6Addr, destination, message| ipv6_packet(1, (source, destination), message, 547);
    let link = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let discovery = |source, kind| ip6(source, all_nodes, Message::Icmpv6 { kind, code: 0 });
    let forged6 = |source| ethernet(router, own, 0x86dd, &ip6(source, ipv6(5), udp(9)));
    // A fragment header: UDP follows, this is the first of several; then a later one.
    let fragment6 = |offset| {
        let payload = [&[17, 0, 0, offset, 0, 0, 0, 7][..], &[0, 9, 0, 9, 0, 8, 0, 0]].concat();
        ethernet(router, own, 0x86dd, &ipv6_header(1, (ipv6(5), ipv6(5)), 44, &payload))
    };
    vec![
        ("foreign MAC", "ip", ethernet(router, neighbour, 0x0800, &good)),
        (
            "neighbour's address",
            "ip",
            ethernet(router, own, 0x0800, &ip([172, 31, 0, 5], [172, 31, 0, 5], udp(9))),
        ),
        (
            "router's address",
            "ip",
            ethernet(router, own, 0x0800, &ip([172, 31, 0, 1], [172, 31, 0, 5], udp(9))),
        ),
        (
            "host's address",
            "ip",
            ethernet(router, own, 0x0800, &ip([172, 31, 0, 3], [172, 31, 0, 5], udp(9))),
        ),
        ("outside address", "ip", ethernet(router, own, 0x0800, &ip([8, 8, 8, 8], [172, 31, 0, 5], udp(9)))),
        ("DHCP server", "ip", ethernet([0xff; 6], own, 0x0800, &ip([172, 31, 0, 1], [255; 4], udp(68)))),
        ("first fragment", "ip", ethernet(router, own, 0x0800, &fragment)),
        ("later fragment", "ip", ethernet(router, own, 0x0800, &later)),
        ("claim by ARP", "arp", ethernet([0xff; 6], own, 0x0806, &arp)),
        ("ARP with a foreign MAC", "arp", ethernet([0xff; 6], own, 0x0806, &arp_mac)),
        ("VLAN", "kind", ethernet(router, own, 0x8100, &tagged)),
        ("two VLANs", "kind", ethernet(router, own, 0x88a8, &[&[0, 9, 0x81, 0][..], &tagged].concat())),
        (
            "router advertisement",
            "ip",
            ethernet([0x33, 0x33, 0, 0, 0, 1], own, 0x86dd, &discovery(link, 134)),
        ),
        ("router solicitation", "ip", ethernet([0x33, 0x33, 0, 0, 0, 2], own, 0x86dd, &discovery(link, 133))),
        (
            "neighbour advertisement",
            "ip",
            ethernet([0x33, 0x33, 0, 0, 0, 1], own, 0x86dd, &discovery(link, 136)),
        ),
        ("neighbour's claim", "ip", ethernet(router, own, 0x86dd, &discovery(ipv6(5), 136))),
        ("probe", "ip", ethernet(router, own, 0x86dd, &discovery(Ipv6Addr::UNSPECIFIED, 135))),
        (
            "DHCPv6 server",
            "ip",
            ethernet([0x33, 0x33, 0, 1, 0, 2], own, 0x86dd, &ip6(link, all_nodes, udp(546))),
        ),
        ("foreign MAC over IPv6", "ip", ethernet(router, neighbour, 0x86dd, &ip6(ipv6(4), ipv6(5), udp(9)))),
        ("neighbour's IPv6 address", "ip", forged6(ipv6(5))),
        ("router's IPv6 address", "ip", forged6(ipv6(1))),
        ("host's IPv6 address", "ip", forged6(HOST_IPV6)),
        ("outside IPv6 address", "ip", forged6("2001:db8::7".parse().unwrap())),
        ("link-local address", "ip", forged6(link)),
        ("first fragment over IPv6", "ip", fragment6(1)),
        ("later fragment over IPv6", "ip", fragment6(8)),
        ("unknown kind", "kind", ethernet([0xff; 6], own, 0x1234, &good)),
    ]
}

#[test]
fn nothing_forged_reaches_a_neighbour_and_all_of_it_is_counted() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5]);
        // Open to all, so that only the forgery keeps it out.
        let open = ["0.0.0.0/0", "::/0"].map(|range| ingress(&format!("all 0-0 {range}")));
        world.set_rules(1, [&open[..], &[all_out(), all_out_ipv6()]].concat());
        world.join(4, &[1]);
        world.join(5, &[1]);
        world.apply();
        for (what, table, frame) in forbidden(&world) {
            let id = world.id_of(4);
            let count = |world: &World| {
                let all = world.counters().interface(id);
                [("ip", all.spoofed), ("arp", all.arp_spoofed), ("kind", all.other_kinds)]
                    .map(|(name, count)| (name, count.packets))
            };
            let before = count(&world);
            world.taps.get_mut(&at(4)).unwrap().write_frame(&frame);
            for ((name, before), (_, after)) in before.into_iter().zip(count(&world)) {
                assert_eq!(after - before, u64::from(name == table), "{what}: counted as {name}");
            }
        }
        // Frames that nobody is meant to get, to the neighbour's MAC, to all and to many.
        let good =
            Packet { source: at(4).into(), destination: at(5).into(), message: Message::Udp { port: 9 } };
        let neighbour = world.plans[&at(5)].mac.octets();
        let own = world.plans[&at(4)].mac.octets();
        for to in [neighbour, [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            let frame = ethernet(to, own, 0x0800, &ipv4(9, good, 999));
            world.taps.get_mut(&at(4)).unwrap().write_frame(&frame);
            // With its own address: claims for all to hear, and packets for many.
            for message in [136, 135, 134, 133, 137, 143].map(|kind| Message::Icmpv6 { kind, code: 0 }) {
                for group in ["ff02::1", "ff02::2", "ff05::2", "ff0e::1"] {
                    let bytes = ipv6_packet(9, (ipv6(4), group.parse().unwrap()), message, 9);
                    let frame = ethernet(to, own, 0x86dd, &bytes);
                    world.taps.get_mut(&at(4)).unwrap().write_frame(&frame);
                }
            }
        }
        // Sources that the kernel drops before it asks the filter.
        for source in ["::ffff:172.31.0.4", "::1", "ff02::1"] {
            let bytes = ipv6_packet(9, (source.parse().unwrap(), ipv6(5)), Message::Udp { port: 9 }, 9);
            world.taps.get_mut(&at(4)).unwrap().write_frame(&ethernet(neighbour, own, 0x86dd, &bytes));
        }
        // Runts, and a frame of nothing but the virtio header.
        for len in [14, 20, 33] {
            let frame = ethernet(neighbour, own, 0x0800, &ipv4(9, good, 999));
            world.taps.get_mut(&at(4)).unwrap().write_frame(&frame[..len]);
        }
        let mut seen = Vec::new();
        assert!(world.passes(at(4), at(5), Message::Udp { port: 10 }), "what is its own still passes");
        assert!(world.passes(ipv6(4), ipv6(5), Message::Udp { port: 10 }));
        while let Some(frame) = world.taps.get_mut(&at(5)).unwrap().read_frame() {
            seen.push(frame);
        }
        assert_eq!(seen, Vec::<Vec<u8>>::new());
        world.end();
    });
}

#[test]
fn interface_without_source_check_routes_for_others() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5]);
        world.set_rules(1, vec![ingress("all 0-0 0.0.0.0/0"), all_out()]);
        world.join(4, &[1]);
        world.join(5, &[1]);
        world.apply();
        let foreign = Packet {
            source: [10, 9, 8, 7].into(),
            destination: at(5).into(),
            message: Message::Udp { port: 9 },
        };
        let plan = world.plans[&at(4)].clone();
        let frame = ethernet(plan.router_mac.octets(), plan.mac.octets(), 0x0800, &ipv4(9, foreign, 999));
        let arrives = |world: &mut World| {
            world.taps.get_mut(&at(4)).unwrap().write_frame(&frame);
            world.taps[&at(5)].wait(QUIET);
            let mut found = false;
            while let Some(frame) = world.taps.get_mut(&at(5)).unwrap().read_frame() {
                found |= frame.len() > 30 && frame[26..30] == [10, 9, 8, 7];
            }
            found
        };
        assert!(!arrives(&mut world));
        world.member(4).source_dest_check = false;
        world.apply();
        assert!(arrives(&mut world));
        world.member(4).source_dest_check = true;
        world.apply();
        assert!(!arrives(&mut world));
        world.end();
    });
}

#[test]
fn frames_beyond_the_rate_are_dropped_at_the_tap() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut plan = support::plan(1, 4);
        plan.rate = kiln_hostnet::Rate { packets: 1, burst: 10 };
        let mut nic = support::attach(dir.path(), &plan).unwrap();
        let mut tap = support::TapDevice::new(nic.queues.remove(0));
        let packet =
            Packet { source: at(4).into(), destination: at(5).into(), message: Message::Udp { port: 9 } };
        let frame = ethernet(plan.router_mac.octets(), plan.mac.octets(), 0x0800, &ipv4(9, packet, 999));
        for _ in 0..100 {
            tap.write_frame(&frame);
        }
        let counters = kiln_hostnet::counters(dir.path(), plan.vpc).unwrap().interface(plan.interface);
        assert!(counters.over_rate.packets >= 80, "{counters:?}");
        kiln_hostnet::detach(dir.path(), plan.interface).unwrap();
    });
}

#[test]
fn nothing_is_left_after_groups_were_in_force() {
    on_own_host(|| {
        let before = host_state();
        let mut world = World::new(&[4, 5]);
        world.set_rules(1, vec![ingress("tcp 22-22 group 1"), all_out()]);
        world.join(4, &[1]);
        assert!(world.apply());
        assert!(!world.apply(), "nothing to do");
        let dir = world.dir.path().to_owned();
        let plans = world.plans.clone();
        for plan in plans.values() {
            kiln_hostnet::detach(&dir, plan.interface).unwrap();
        }
        assert_eq!(host_state(), before);
        assert_eq!(std::fs::read_dir(dir.join("vpc")).unwrap().count(), 0);
        assert!(!world.apply(), "a VPC that is not here is no error");
    });
}
