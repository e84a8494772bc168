//! Interfaces between real namespaces with real packets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;

use kiln_hostnet::{HostNetError, State, check, detach, sweep};
use support::{
    DEADLINE, Guest, QUIET, TapDevice, attach, host_state, inside, on_own_host, packets, plan, sh,
};

/// A server in the calling thread's namespace that tells each client its address; ends with the
/// test's process.
fn who_am_i(address: SocketAddrV4) {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let mut byte = [0; 1];
            if stream.read_exact(&mut byte).is_ok() {
                let _ = stream.write_all(peer.ip().to_string().as_bytes());
            }
        }
    });
}

/// A namespace beyond the host: 198.51.100.2, the host is .1 on the same link.
fn outside() {
    sh("ip netns add outside
        ip link add eth0 type veth peer name eth0 netns outside
        ip addr add 198.51.100.1/24 dev eth0
        ip link set eth0 up
        ip -n outside addr add 198.51.100.2/24 dev eth0
        ip -n outside link set eth0 up
        ip -n outside link set lo up
        ip -n outside route add 172.31.0.0/16 via 198.51.100.1");
}

/// The guest loses its first answer while it asks for the router's hardware address.
fn ping(address: Ipv4Addr) {
    sh(&format!("ping -c 3 -i 0.2 -W 5 {address}"));
}

fn echo(address: SocketAddrV4) -> String {
    let mut stream = TcpStream::connect_timeout(&address.into(), DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

const VPC: &str = "kiln-000000000001";
const GATEWAY: &str = "kiln-000000000001-gw";

#[test]
fn host_pings_and_connects_to_the_instance() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(1, 4);
        let mut nic = attach(dir.path(), &plan).unwrap();
        assert_eq!((nic.tap.as_str(), nic.queues.len()), ("kt000000000104", 1));
        let guest = Guest::new(&plan, nic.queues.remove(0)).serve(22);
        ping(plan.address);
        assert_eq!(echo(SocketAddrV4::new(plan.address, 22)), "hello");
        drop(guest);
        detach(dir.path(), plan.interface).unwrap();
    });
}

#[test]
fn instance_reaches_the_host_and_beyond_behind_the_hosts_address() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        outside();
        inside("outside", || who_am_i(SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 2), 80)));
        who_am_i(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 81));
        let plan = plan(1, 4);
        let mut nic = attach(dir.path(), &plan).unwrap();
        let mut guest = Guest::new(&plan, nic.queues.remove(0));
        let mut ask = |address: [u8; 4], port| {
            guest.ask(SocketAddrV4::new(Ipv4Addr::from(address), port), "?", DEADLINE).expect("no answer")
        };
        assert_eq!(ask([198, 51, 100, 2], 80), "198.51.100.1");
        // To the host, by its address in the VPC and by any other.
        for address in [[172, 31, 0, 3], [198, 51, 100, 1]] {
            let seen: Ipv4Addr = ask(address, 81).parse().unwrap();
            assert_eq!(seen.octets()[..2], [169, 254], "the gateway's address towards the host");
        }
        detach(dir.path(), plan.interface).unwrap();
    });
}

#[test]
fn nobody_but_the_host_connects_to_the_instance() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        outside();
        let (first, second) = (plan(1, 4), plan(1, 5));
        let mut nic = attach(dir.path(), &first).unwrap();
        let served = Guest::new(&first, nic.queues.remove(0)).serve(22);
        let mut nic = attach(dir.path(), &second).unwrap();
        let mut neighbour = Guest::new(&second, nic.queues.remove(0));

        let server = SocketAddrV4::new(first.address, 22);
        assert_eq!(neighbour.ask(server, "?", QUIET), None);
        assert!(packets(VPC, "inet", "deny_in") > 0);
        let refused = inside("outside", || TcpStream::connect_timeout(&server.into(), QUIET));
        assert!(refused.is_err());
        assert_eq!(echo(server), "hello", "the host still does");

        drop(served);
        detach(dir.path(), first.interface).unwrap();
        detach(dir.path(), second.interface).unwrap();
    });
}

#[test]
fn two_networks_with_the_same_range_do_not_meet() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (plan(1, 4), plan(2, 5));
        let mut nic = attach(dir.path(), &one).unwrap();
        let served = Guest::new(&one, nic.queues.remove(0)).serve(22);
        let mut nic = attach(dir.path(), &other).unwrap();
        let mut stranger = Guest::new(&other, nic.queues.remove(0));
        assert_eq!(stranger.ask(SocketAddrV4::new(one.address, 22), "?", QUIET), None);
        who_am_i(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 81));
        let host = SocketAddrV4::new(Ipv4Addr::new(172, 31, 0, 3), 81);
        assert!(stranger.ask(host, "?", DEADLINE).is_some());
        drop(served);
        detach(dir.path(), one.interface).unwrap();
        detach(dir.path(), other.interface).unwrap();
    });
}

/// Ethernet, IPv4, UDP to 198.51.100.2:9 without checksum.
fn datagram(mac: [u8; 6], source: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1];
    frame.extend(mac);
    frame.extend([8, 0]);
    let mut ip = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0];
    ip.extend(source.octets());
    ip.extend([198, 51, 100, 2]);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&folded.to_be_bytes());
    frame.extend(ip);
    frame.extend([0x30, 0x39, 0, 9, 0, 8, 0, 0]);
    frame
}

#[test]
fn frames_with_foreign_sources_are_counted_and_dropped() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(1, 4);
        let mut nic = attach(dir.path(), &plan).unwrap();
        let mut tap = TapDevice::new(nic.queues.remove(0));
        let own = plan.mac.octets();
        let spoofed = [
            datagram(own, Ipv4Addr::new(172, 31, 0, 5)),
            datagram(own, Ipv4Addr::new(172, 31, 0, 1)),
            datagram(own, Ipv4Addr::new(8, 8, 8, 8)),
            datagram([2, 0, 0, 0, 1, 9], plan.address),
        ];
        for frame in &spoofed {
            tap.write_frame(frame);
        }
        assert_eq!(packets(VPC, "inet", "spoof"), 4);
        assert_eq!(packets(VPC, "inet", "spoof_000000000104"), 4);
        tap.write_frame(&datagram(own, plan.address));
        assert_eq!(packets(VPC, "inet", "spoof"), 4);

        // Claims the router's address for itself.
        let mut claim = vec![0xff; 6];
        claim.extend(own);
        claim.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        claim.extend(own);
        claim.extend([172, 31, 0, 1]);
        claim.extend([0xff; 6]);
        claim.extend([172, 31, 0, 1]);
        tap.write_frame(&claim);
        assert_eq!(packets(VPC, "arp", "arpspoof"), 1);
        detach(dir.path(), plan.interface).unwrap();
    });
}

#[test]
fn link_local_addresses_of_the_routers_are_out_of_reach() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(1, 4);
        let mut nic = attach(dir.path(), &plan).unwrap();
        let mut guest = Guest::new(&plan, nic.queues.remove(0));
        who_am_i(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 81));
        let addresses = sh("ip -4 -o addr show dev kg000000000001");
        let host = addresses.split("169.254.").nth(1).unwrap().split('/').next().unwrap();
        for address in [format!("169.254.{host}"), "169.254.255.1".into(), "169.254.255.2".into()] {
            let server = SocketAddrV4::new(address.parse().unwrap(), 81);
            assert_eq!(guest.ask(server, "?", QUIET), None, "{address} answered");
        }
        detach(dir.path(), plan.interface).unwrap();
    });
}

#[test]
fn nothing_is_left_after_the_last_interface() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        outside();
        let before = host_state();
        let plans = [plan(1, 4), plan(1, 5), plan(2, 4)];
        let nics: Vec<_> = plans.iter().map(|plan| attach(dir.path(), plan).unwrap()).collect();
        assert_eq!(sh("ip netns list | grep -c kiln-").trim(), "4");
        assert_eq!(sh("sysctl -n net.ipv4.ip_forward").trim(), "1");
        for plan in &plans {
            detach(dir.path(), plan.interface).unwrap();
        }
        assert_eq!(host_state(), before);
        assert_eq!(std::fs::read_dir(dir.path().join("nic")).unwrap().count(), 0);
        // The VMM may close its queues later.
        drop(nics);
    });
}

#[test]
fn one_interface_leaves_the_others_as_they_are() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (plan(1, 4), plan(1, 5));
        let mut nic = attach(dir.path(), &first).unwrap();
        let guest = Guest::new(&first, nic.queues.remove(0)).serve(22);
        let rules = sh(&format!("ip netns exec {VPC} nft list ruleset | grep -v packets"));
        let routes = sh(&format!("ip -n {VPC} route; ip -n {GATEWAY} route; ip route"));
        drop(attach(dir.path(), &second).unwrap());
        detach(dir.path(), second.interface).unwrap();
        assert_eq!(sh(&format!("ip netns exec {VPC} nft list ruleset | grep -v packets")), rules);
        assert_eq!(sh(&format!("ip -n {VPC} route; ip -n {GATEWAY} route; ip route")), routes);
        assert_eq!(echo(SocketAddrV4::new(first.address, 22)), "hello");
        drop(guest);
        detach(dir.path(), first.interface).unwrap();
    });
}

#[test]
fn interface_in_use_is_not_attached_again_but_a_dead_one_is() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(1, 4);
        let nic = attach(dir.path(), &plan).unwrap();
        assert!(matches!(attach(dir.path(), &plan), Err(HostNetError::InUse(_))));
        drop(nic);
        let mut moved = plan.clone();
        moved.address = Ipv4Addr::new(172, 31, 0, 9);
        let mut nic = attach(dir.path(), &moved).unwrap();
        let guest = Guest::new(&moved, nic.queues.remove(0)).serve(22);
        ping(moved.address);
        let rules = sh(&format!("ip netns exec {VPC} nft list ruleset"));
        assert!(!rules.contains("172.31.0.4"), "{rules}");
        drop(guest);
        detach(dir.path(), plan.interface).unwrap();
        detach(dir.path(), plan.interface).unwrap();
    });
}

#[test]
fn connections_do_not_outlive_their_interface() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (plan(1, 4), plan(1, 5));
        // Keeps the namespaces alive.
        let _bystander = attach(dir.path(), &second).unwrap();
        let mut nic = attach(dir.path(), &first).unwrap();
        let guest = Guest::new(&first, nic.queues.remove(0)).serve(22);
        let held =
            TcpStream::connect_timeout(&SocketAddrV4::new(first.address, 22).into(), DEADLINE).unwrap();
        let tracked = |namespace: &str| {
            let table = format!("ip netns exec {namespace} cat /proc/net/nf_conntrack");
            sh(&format!("{table} | grep -c 172.31.0.4 || true")).trim().to_owned()
        };
        if !std::path::Path::new("/proc/net/nf_conntrack").exists() {
            println!("SKIPPED: the kernel does not list tracked connections in /proc");
        } else {
            assert_eq!((tracked(VPC).as_str(), tracked(GATEWAY).as_str()), ("1", "1"));
        }
        drop(guest);
        detach(dir.path(), first.interface).unwrap();
        if std::path::Path::new("/proc/net/nf_conntrack").exists() {
            assert_eq!((tracked(VPC).as_str(), tracked(GATEWAY).as_str()), ("0", "0"));
        }
        drop(held);
        detach(dir.path(), second.interface).unwrap();
    });
}

#[test]
fn sweep_removes_orphans_and_keeps_the_known() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let before = host_state();
        let (known, orphan, alone) = (plan(1, 4), plan(1, 5), plan(2, 6));
        let mut nic = attach(dir.path(), &known).unwrap();
        let guest = Guest::new(&known, nic.queues.remove(0)).serve(22);
        drop(attach(dir.path(), &orphan).unwrap());
        drop(attach(dir.path(), &alone).unwrap());
        assert_eq!(sweep(dir.path(), &[known.interface]).unwrap(), 2);
        assert_eq!(sweep(dir.path(), &[known.interface]).unwrap(), 0);
        assert_eq!(sh("ip netns list | grep -c kiln-").trim(), "2");
        assert_eq!(echo(SocketAddrV4::new(known.address, 22)), "hello");
        drop(guest);
        assert_eq!(sweep(dir.path(), &[]).unwrap(), 1);
        assert_eq!(host_state(), before);
    });
}

#[test]
fn two_at_once_share_a_network() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let before = host_state();
        let plans = [4, 5, 6, 7].map(|last| plan(1, last));
        let nics: Vec<_> = thread::scope(|scope| {
            let runs: Vec<_> =
                plans.iter().map(|plan| scope.spawn(|| attach(dir.path(), plan).unwrap())).collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        assert_eq!(sh(&format!("ip -n {VPC} -o link | grep -c ' kt'")).trim(), "4");
        thread::scope(|scope| {
            for plan in &plans {
                scope.spawn(|| detach(dir.path(), plan.interface).unwrap());
            }
        });
        drop(nics);
        assert_eq!(host_state(), before);
    });
}

#[test]
fn several_queues_open_on_one_tap() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut plan = plan(1, 4);
        plan.queue_pairs = 4;
        let nic = attach(dir.path(), &plan).unwrap();
        assert_eq!(nic.queues.len(), 4);
        detach(dir.path(), plan.interface).unwrap();
    });
}

#[test]
fn failed_attach_leaves_nothing() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let before = host_state();
        // A link of our name that is not ours cannot be made into a tap of ours.
        let mut plan = plan(1, 4);
        plan.mtu = 100;
        assert!(matches!(attach(dir.path(), &plan), Err(HostNetError::Plan(_))));
        plan.mtu = 1500;
        sh("mkdir /run/netns/kiln-000000000001-gw");
        assert!(attach(dir.path(), &plan).is_err());
        sh("rmdir /run/netns/kiln-000000000001-gw");
        sweep(dir.path(), &[]).unwrap();
        assert_eq!(host_state(), before);
    });
}

#[test]
fn this_host_passes_its_own_check_and_is_unchanged() {
    on_own_host(|| {
        let before = host_state();
        for finding in check() {
            assert_eq!(finding.state, State::Good, "{}", finding.subject);
        }
        assert_eq!(host_state(), before);
    });
}
