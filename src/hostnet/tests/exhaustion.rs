//! What one interface, or many networks, can do to others by sheer number.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::Instant;

use kiln_hostnet::{Rate, attach, detach};
use kiln_model::security::{Message, NetworkPolicy, Packet};
use support::packets::{World, all_out, ethernet, group, ingress, ipv4};
use support::{DEADLINE, TapDevice, host_state, member, on_own_host, plan, sh};

/// Malformed frames, unless `KILN_HOSTILE_FRAMES` says another number.
const FRAMES: u32 = 50_000;
/// Conversations that a guest begins.
const FLOWS: u32 = 100_000;
/// How many of them it may have at one time: the allowance that instances have.
const ALLOWANCE: u32 = 32_768;
/// Networks of the same range.
const NETWORKS: u64 = 50;

fn at(last: u8) -> Ipv4Addr {
    World::address(last)
}

fn udp(from: u8, to: u8, port: u16) -> Packet {
    Packet { source: at(from).into(), destination: at(to).into(), message: Message::Udp { port } }
}

/// A repeatable source of bytes.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % n
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}

/// A frame with its virtio header, both with some bytes that make no sense.
fn malformed(dice: &mut Dice, good: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    if dice.below(2) == 0 {
        // Checksum wanted or not, a kind of segments that exists or not, and lengths that lie.
        bytes[0] = [0, 1, 2, 3, 255][dice.below(5)];
        bytes[1] = [0, 1, 3, 4, 5, 0x81, 0x7f][dice.below(7)];
        for byte in &mut bytes[2..] {
            *byte = if dice.below(3) == 0 { dice.byte() } else { 0 };
        }
    }
    bytes.extend_from_slice(good);
    match dice.below(8) {
        0 => bytes.truncate(dice.below(bytes.len() + 1)),
        1 => bytes.resize(bytes.len() + dice.below(2000), 0xa5),
        2 => bytes.resize(60_000 + dice.below(9000), 0),
        _ => {}
    }
    for _ in 0..dice.below(6) {
        let len = bytes.len();
        if let Some(byte) = bytes.get_mut(dice.below(len.max(1))) {
            *byte = dice.byte();
        }
    }
    bytes
}

#[test]
fn malformed_frames_reach_nobody_and_harm_nobody() {
    let count = std::env::var("KILN_HOSTILE_FRAMES").map_or(FRAMES, |count| count.parse().unwrap());
    on_own_host(|| {
        let mut world = World::new(&[4, 5, 6]);
        world.set_rules(1, vec![all_out()]);
        world.set_rules(2, vec![ingress("udp 9-9 172.31.0.6/32"), all_out()]);
        for (last, n) in [(4, 1), (5, 2), (6, 1)] {
            world.member(last).groups = [group(n)].into();
        }
        world.apply();
        let plan = world.plans[&at(4)].clone();
        let packets = [udp(4, 5, 9), Packet { message: Message::Tcp { port: 22 }, ..udp(4, 5, 0) }];
        let good = packets.map(|packet| {
            ethernet(plan.router_mac.octets(), plan.mac.octets(), 0x0800, &ipv4(7, packet, 999))
        });
        let mut tap = File::from(world.taps[&at(4)].fd().as_fd().try_clone_to_owned().unwrap());
        let mut dice = Dice(0x1357_9bdf_2468_ace0);
        let (mut taken, started) = (0, Instant::now());
        for n in 0..count {
            let frame = malformed(&mut dice, &good[usize::from(n % 2 == 0)]);
            // What the kernel does not even take is as good.
            taken += u32::from(tap.write(&frame).is_ok());
        }
        println!("{taken} of {count} malformed frames were taken, in {:.1?}", started.elapsed());
        let mut arrived = Vec::new();
        for last in [5, 6] {
            let tap = world.taps.get_mut(&at(last)).unwrap();
            while let Some(frame) = tap.read_frame() {
                arrived.push((last, frame));
            }
        }
        assert_eq!(arrived, Vec::new());
        // The way is still there for who may take it.
        let id = world.send(udp(6, 5, 9), 999);
        let tap = world.taps.get_mut(&at(5)).unwrap();
        tap.wait(DEADLINE);
        assert_eq!(tap.read_frame().unwrap()[18..20], id.to_be_bytes());
        world.end();
    });
}

#[test]
fn hundred_thousand_flows_of_one_leave_room_for_others() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5, 6]);
        world.set_rules(1, vec![ingress("all 0-0 0.0.0.0/0"), all_out()]);
        for last in [4, 5, 6] {
            world.join(last, &[1]);
            world.member(last).connections = ALLOWANCE;
        }
        // Who lets everybody in needs an allowance to match: what others begin with it counts as well.
        world.member(5).connections = 4 * ALLOWANCE;
        world.apply();
        // None ends by itself, however slow this machine is.
        sh("ip netns exec kiln-000000000001 sysctl -q -w net.netfilter.nf_conntrack_udp_timeout=600");
        let started = Instant::now();
        let mut begun = 0;
        for n in 0..FLOWS {
            let [_, low, a, b] = n.to_be_bytes();
            world.send(udp(6, 5, 1000 + u16::from(low)), u16::from_be_bytes([a, b]));
            // Whoever receives them keeps up.
            if n % 64 == 0 {
                let tap = world.taps.get_mut(&at(5)).unwrap();
                while tap.read_frame().is_some() {
                    begun += 1;
                }
            }
        }
        println!("{FLOWS} conversations begun or refused in {:.1?}", started.elapsed());
        let refused = world.counters().interface(world.id_of(6)).over_allowance.packets;
        let most = ALLOWANCE + ALLOWANCE / 4;
        assert!((ALLOWANCE..=most).contains(&begun), "{begun} begun");
        assert!(refused >= u64::from(FLOWS - most), "{refused} refused");
        assert!(world.passes(at(4), at(6), Message::Udp { port: 9 }), "others begin as ever");
        // That one is refused what its share has no room for: most, as the parts fill evenly.
        let more: Vec<_> = (0..200).map(|n| udp(6, 4, 2000 + n)).collect();
        let arrived = world.deliver(&more).iter().filter(|arrived| **arrived).count();
        assert!(arrived < 20, "{arrived} of 200 more began");
        world.end();
    });
}

#[test]
fn fifty_networks_of_the_same_range_never_meet() {
    on_own_host(|| {
        let before = host_state();
        let dir = tempfile::tempdir().unwrap();
        let mut taps = Vec::new();
        for vpc in 1..=NETWORKS {
            let pair = [4, 5].map(|last| plan(vpc, last));
            let mut policy = NetworkPolicy::default();
            policy.groups.insert(group(1), vec![ingress("all 0-0 0.0.0.0/0"), all_out()]);
            for plan in &pair {
                policy.interfaces.insert(plan.interface, member(plan, &[group(1)]));
            }
            let [sender, receiver] = pair.map(|plan| {
                assert_eq!(plan.rate, Rate::default());
                let mut nic = attach(dir.path(), &plan, &|| Ok(policy.clone())).unwrap();
                (plan, TapDevice::new(nic.queues.remove(0)))
            });
            taps.push((vpc, sender, receiver));
        }
        // Each sends to the same address, with a number of its own.
        for (vpc, (plan, tap), _) in &mut taps {
            let number = u16::try_from(*vpc).unwrap();
            let packet = ipv4(number, udp(4, 5, 1000 + number), 999);
            tap.write_frame(&ethernet(plan.router_mac.octets(), plan.mac.octets(), 0x0800, &packet));
        }
        for (vpc, _, (_, tap)) in &mut taps {
            tap.wait(DEADLINE);
            let frame = tap.read_frame().unwrap();
            assert_eq!(frame[18..20], u16::try_from(*vpc).unwrap().to_be_bytes(), "network {vpc}");
        }
        // All that was sent has arrived by now.
        for (vpc, (_, sender), (_, receiver)) in &mut taps {
            assert_eq!([sender.read_frame(), receiver.read_frame()], [None, None], "network {vpc}");
        }
        for (_, (sender, _), (receiver, _)) in taps {
            detach(dir.path(), sender.interface).unwrap();
            detach(dir.path(), receiver.interface).unwrap();
        }
        assert_eq!(host_state(), before);
    });
}
