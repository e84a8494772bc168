//! How costs grow with the number of interfaces and members. Prints ratios; `scripts/bench network`
//! runs it.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on ends")]

mod support;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use kiln_model::security::{Member, Message, Packet};
use kiln_model::{InterfaceId, MacAddr};
use support::packets::{World, all_out, ethernet, group, ingress, ipv4};
use support::{on_own_host, sh};

const FLOWS: usize = 2000;
const ROUNDS: usize = 5;
const CHANGES: u16 = 20;
const FRAMES: usize = 20_000;
/// Id of the first interface without a tap.
const FIRST: u64 = 0x10_0000;

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort();
    samples[samples.len() / 2]
}

/// The one that the machine's other work has disturbed least.
fn fastest(samples: Vec<Duration>) -> Duration {
    samples.into_iter().min().unwrap()
}

fn frame(world: &World, source_port: u16, port: u16) -> Vec<u8> {
    let (from, to) = (World::address(4), World::address(5));
    let packet = Packet { source: from.into(), destination: to.into(), message: Message::Udp { port } };
    let plan = &world.plans[&from];
    ethernet(plan.router_mac.octets(), plan.mac.octets(), 0x0800, &ipv4(1, packet, source_port))
}

/// Time from a guest's write until its neighbour can read, for first packets of conversations.
fn first_packets(world: &mut World, port: u16) -> Duration {
    let [from, to] = [4, 5].map(World::address);
    let frames: Vec<_> = (10_000..).take(FLOWS).map(|source| frame(world, source, port)).collect();
    let mut samples = Vec::new();
    for frame in &frames {
        let started = Instant::now();
        world.taps.get_mut(&from).unwrap().write_frame(frame);
        while world.taps.get_mut(&to).unwrap().read_frame().is_none() {
            world.taps[&to].wait(Duration::from_secs(1));
        }
        samples.push(started.elapsed());
    }
    median(samples)
}

/// Time for many frames of one conversation.
fn bulk(world: &mut World, port: u16) -> Duration {
    let [from, to] = [4, 5].map(World::address);
    let frame = frame(world, 9999, port);
    let started = Instant::now();
    for _ in 0..FRAMES {
        world.taps.get_mut(&from).unwrap().write_frame(&frame);
        while world.taps.get_mut(&to).unwrap().read_frame().is_some() {}
    }
    started.elapsed()
}

/// Adds interfaces 10.x.y.z with these many addresses in all, to the policy and to the records. They
/// have no taps, which the filter does not mind.
fn populate(world: &mut World, interfaces: u32, addresses: u32) {
    let vpc = world.plans.values().next().unwrap().vpc;
    for n in 0..interfaces {
        let id = InterfaceId::from_bits(FIRST + u64::from(n));
        let [_, _, c, d] = n.to_be_bytes();
        let mac = MacAddr::new([2, 9, 0, 0, c, d]);
        let per = addresses / interfaces;
        let addresses: Vec<_> = (0..per).map(|k| Ipv4Addr::from_bits(0x0a00_0000 + n * per + k)).collect();
        let record = format!("{vpc} {mac} {}\n", addresses[0]);
        std::fs::write(world.dir.path().join("nic").join(id.to_string()), record).unwrap();
        let groups = [group(1)].into();
        let member = Member {
            mac,
            addresses,
            ipv6: Vec::new(),
            groups,
            host: None,
            host_ipv6: None,
            source_dest_check: true,
            connections: 100_000,
        };
        world.policy.interfaces.insert(id, member);
    }
    // Without its note the filter is written anew, for all that have records.
    std::fs::remove_file(world.dir.path().join("vpc").join(vpc.to_string())).unwrap();
}

#[test]
#[ignore = "a measurement: scripts/bench network"]
fn costs_by_size() {
    println!(
        "{:>10} {:>8} {:>13} {:>11} {:>12} {:>13} {:>12} {:>14} {:>13}",
        "interfaces",
        "members",
        "first packet",
        "rule added",
        "rule revoked",
        "group joined",
        "group left",
        "address added",
        "20000 frames"
    );
    let mut base = None;
    for (interfaces, members) in [(10, 10), (100, 1000), (1000, 10_000)] {
        on_own_host(|| {
            let mut world = World::new(&[4, 5]);
            // Who is known by being a member of a group of that size.
            let rules = vec![ingress("udp 1-1000 group 1"), all_out()];
            world.set_rules(1, rules.clone());
            world.set_rules(2, vec![ingress("udp 1-9 group 2"), all_out()]);
            world.join(4, &[1, 2]);
            world.join(5, &[1]);
            for last in [4, 5] {
                world.member(last).connections = 1_000_000;
            }
            populate(&mut world, interfaces, members);
            world.apply();
            let first = (1..).take(ROUNDS).map(|port| first_packets(&mut world, port)).min().unwrap();
            let timed = |world: &World| {
                let started = Instant::now();
                assert!(world.apply());
                started.elapsed()
            };
            let (mut added, mut revoked) = (Vec::new(), Vec::new());
            let numbered = |count| (0..count).map(|n| ingress(&format!("tcp {n}-{n} 0.0.0.0/0")));
            for count in 1..=CHANGES {
                world.set_rules(1, rules.iter().cloned().chain(numbered(count)).collect());
                added.push(timed(&world));
            }
            for count in (0..CHANGES).rev() {
                world.set_rules(1, rules.iter().cloned().chain(numbered(count)).collect());
                revoked.push(timed(&world));
            }
            let (mut joined, mut left) = (Vec::new(), Vec::new());
            // Not in turns: what goes keeps the kernel busy for a while after.
            let some =
                (0..u64::from(interfaces)).take(CHANGES.into()).map(|n| InterfaceId::from_bits(FIRST + n));
            for id in some.clone() {
                world.policy.interfaces.get_mut(&id).unwrap().groups.insert(group(2));
                joined.push(timed(&world));
            }
            for id in some {
                world.policy.interfaces.get_mut(&id).unwrap().groups.remove(&group(2));
                left.push(timed(&world));
            }
            let mut moved = Vec::new();
            for n in 0..u8::try_from(CHANGES).unwrap() {
                world.member(5).addresses.push(Ipv4Addr::new(172, 31, 9, n));
                moved.push(timed(&world));
            }
            let bulk = (0..ROUNDS).map(|_| bulk(&mut world, 999)).min().unwrap();
            let [added, revoked, joined, left, moved] = [added, revoked, joined, left, moved].map(fastest);
            println!(
                "{interfaces:>10} {members:>8} {first:>13.1?} {added:>11.2?} {revoked:>12.2?} {joined:>13.2?} {left:>12.2?} \
                 {moved:>14.2?} {bulk:>13.1?}"
            );
            let figures = [first, added, joined];
            let base = *base.get_or_insert(figures);
            if interfaces == 1000 {
                for ((what, figure), base) in
                    ["first packet", "rule added", "group joined"].iter().zip(figures).zip(base)
                {
                    let ratio = figure.as_secs_f64() / base.as_secs_f64();
                    println!("{what}, 1000 interfaces and 10000 members to 10 and 10: {ratio:.2}");
                }
            }
            // The same frames without any filter or tracking.
            sh("ip netns exec kiln-000000000001 nft delete table inet kiln");
            let bare = (0..ROUNDS).map(|_| self::bulk(&mut world, 999)).min().unwrap();
            println!(
                "{:>10} frames/s with the policy to without: {:.2}",
                "",
                bare.as_secs_f64() / bulk.as_secs_f64()
            );
        });
    }
}
