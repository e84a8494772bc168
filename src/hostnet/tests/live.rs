//! Rules change while packets flow.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use kiln_model::security::{Message, NetworkPolicy, Packet};
use nix::fcntl::{Flock, FlockArg};
use support::packets::{World, all_out, ethernet, group, ingress, ipv4};
use support::{DEADLINE, on_own_host, sh};

const UPDATES: usize = 400;
/// Packets that may be under way: less than the queue of a tap holds.
const WINDOW: u64 = 200;
const OPEN: u16 = 7;
const CLOSED: u16 = 8;
const CHILD: &str = "KILN_TEST_POLICY";

fn frame(world: &World, source_port: u16, port: u16) -> Vec<u8> {
    let (from, to) = (World::address(4), World::address(5));
    let packet = Packet { source: from.into(), destination: to.into(), message: Message::Udp { port } };
    let plan = &world.plans[&from];
    ethernet(plan.router_mac.octets(), plan.mac.octets(), 0x0800, &ipv4(1, packet, source_port))
}

/// Bare of what the kernel counts as lost for want of room in a tap.
fn overflowed() -> u64 {
    let tap = "/sys/class/net/kt000000000105/statistics/tx_dropped";
    sh(&format!("ip netns exec kiln-000000000001 cat {tap}")).trim().parse().unwrap()
}

#[test]
fn four_hundred_updates_lose_nothing_and_leak_nothing() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5, 6]);
        world.set_rules(1, vec![ingress("udp 7-7 group 2"), all_out()]);
        world.set_rules(2, vec![all_out()]);
        world.set_rules(3, vec![ingress("tcp 22-22 group 2")]);
        world.join(4, &[2]);
        world.join(5, &[1]);
        world.join(6, &[3]);
        for last in [4, 5] {
            world.member(last).connections = 100_000;
        }
        world.apply();
        // One conversation that goes on, many that begin, and some that may not.
        let open: Vec<_> = (0..64).map(|n| frame(&world, 20_000 + n, OPEN)).collect();
        let closed: Vec<_> = (0..16).map(|n| frame(&world, 30_000 + n, CLOSED)).collect();
        let mut sender = world.taps.remove(&World::address(4)).unwrap();
        let mut receiver = world.taps.remove(&World::address(5)).unwrap();
        let (sent, received, leaked) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let stop = AtomicBool::new(false);
        let started = Instant::now();
        thread::scope(|scope| {
            let send = scope.spawn(|| {
                for n in 0usize.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // Half of them belong to the first conversation.
                    let which = if n.is_multiple_of(2) { 0 } else { n / 2 % open.len() };
                    if sent.load(Ordering::Relaxed) - received.load(Ordering::Relaxed) < WINDOW {
                        sender.write_frame(&open[which]);
                        sent.fetch_add(1, Ordering::Relaxed);
                    } else {
                        thread::yield_now();
                    }
                    if n.is_multiple_of(16) {
                        sender.write_frame(&closed[n / 16 % closed.len()]);
                    }
                }
            });
            let receive = scope.spawn(|| {
                let mut quiet_since = None;
                loop {
                    let Some(frame) = receiver.read_frame() else {
                        let all = sent.load(Ordering::Relaxed) <= received.load(Ordering::Relaxed);
                        let quiet = *quiet_since.get_or_insert_with(Instant::now);
                        if stop.load(Ordering::Relaxed) && (all || quiet.elapsed() > DEADLINE) {
                            break;
                        }
                        receiver.wait(support::QUIET);
                        continue;
                    };
                    quiet_since = None;
                    let port = u16::from_be_bytes([frame[36], frame[37]]);
                    let counter = if port == OPEN { &received } else { &leaked };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
            // Rules and members come and go, of all groups that the conversations depend on.
            for n in 0..UPDATES {
                let extra = ingress(&format!("tcp {n}-{n} group 3"));
                match n % 4 {
                    0 => world.set_rules(1, vec![extra, ingress("udp 7-7 group 2"), all_out()]),
                    1 => world.set_rules(2, vec![all_out(), extra]),
                    2 => world.join(6, &[2, 3]),
                    _ => world.join(6, &[1, 3]),
                }
                assert!(world.apply());
            }
            stop.store(true, Ordering::Relaxed);
            send.join().unwrap();
            receive.join().unwrap();
        });
        let (sent, received) = (sent.into_inner(), received.into_inner());
        let rate = sent / started.elapsed().as_secs().max(1);
        println!("{UPDATES} updates under {rate} packets/s: {} lost of {sent}", sent - received);
        assert_eq!(overflowed(), 0, "the test itself was too slow to read");
        assert_eq!((sent - received, leaked.into_inner()), (0, 0));
        world.end();
    });
}

/// Port `port` alone is open.
fn only(policy: &NetworkPolicy, port: u16) -> NetworkPolicy {
    let mut policy = policy.clone();
    let rules = (0..40).map(|n| ingress(&format!("tcp {n}-{n} 10.0.0.0/8")));
    let rules = rules.chain([ingress(&format!("udp {port}-{port} 0.0.0.0/0")), all_out()]).collect();
    policy.groups.insert(group(1), rules);
    policy
}

#[test]
#[ignore = "runs inside killed_at_any_point_leaves_the_old_rules_or_the_new"]
fn child_changes_rules_for_ever() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let dir = Path::new(&dir);
    let policy: NetworkPolicy =
        serde_json::from_str(&std::fs::read_to_string(dir.join("policy")).unwrap()).unwrap();
    for port in [OPEN, CLOSED].into_iter().cycle() {
        let vpc = support::plan(1, 4).vpc;
        kiln_hostnet::apply(dir, vpc, &|| Ok(only(&policy, port))).unwrap();
    }
}

#[test]
fn killed_at_any_point_leaves_the_old_rules_or_the_new() {
    on_own_host(|| {
        let mut world = World::new(&[4, 5]);
        world.join(5, &[1]);
        world.set_rules(2, vec![all_out()]);
        world.join(4, &[2]);
        world.policy = only(&world.policy, OPEN);
        world.apply();
        let text = serde_json::to_string(&world.policy).unwrap();
        std::fs::write(world.dir.path().join("policy"), text).unwrap();
        let mut outcomes = BTreeSet::new();
        for round in 0..24u32 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child_changes_rules_for_ever", "--ignored"])
                .env(CHILD, world.dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // Different moments: after some number of changes of its note, and a little.
            let note = world.dir.path().join("vpc").join(support::plan(1, 4).vpc.to_string());
            let end = Instant::now() + DEADLINE;
            let mut seen = std::fs::read(&note).unwrap();
            for _ in 0..=round % 5 {
                while std::fs::read(&note).is_ok_and(|now| now == seen) {
                    assert!(Instant::now() < end, "the child changes nothing");
                    thread::yield_now();
                }
                seen = std::fs::read(&note).unwrap();
            }
            (0..round * 5_000).for_each(|_| std::hint::spin_loop());
            child.kill().unwrap();
            child.wait().unwrap();
            // What it had begun ends by itself, and until then nobody else begins.
            let lock = File::open(world.dir.path().join("lock")).unwrap();
            drop(Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap());
            let [open, closed] = [OPEN, CLOSED]
                .map(|port| world.passes(World::address(4), World::address(5), Message::Udp { port }));
            assert!(open != closed, "neither the one nor the other: {open} {closed}");
            outcomes.insert(open);
            // Whoever comes next makes it whole, whatever was under way.
            let port = if round.is_multiple_of(2) { OPEN } else { CLOSED };
            world.policy = only(&world.policy, port);
            world.apply();
            let [open, closed] = [OPEN, CLOSED]
                .map(|port| world.passes(World::address(4), World::address(5), Message::Udp { port }));
            assert_eq!((open, closed), (port == OPEN, port == CLOSED));
        }
        println!("verdicts of {} policies were seen after kills", outcomes.len());
        world.end();
    });
}
