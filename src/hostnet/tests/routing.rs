//! Ways out of a VPC by the subnet of the sender, with real packets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::Path;
use std::thread;
use std::time::Instant;

use kiln_hostnet::{NicPlan, Public, apply, detach};
use kiln_model::security::{NetworkPolicy, Route, SubnetRouting, TableNumber, Way};
use kiln_model::{NatGatewayId, SubnetId, VpcId};
use support::{DEADLINE, Guest, QUIET, TapDevice, host_only, host_state, on_own_host, plan, sh};

const VPC: &str = "kiln-000000000001";
/// An address of the host that is in no VPC, and a port where a server tells each client its address.
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), 81);
const NAT: Ipv4Addr = Ipv4Addr::new(198, 19, 7, 7);

/// The server, which ends with the test's process.
fn who_am_i() {
    sh("ip addr add 198.51.100.1/32 dev lo");
    let listener = TcpListener::bind(SERVER).unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let mut byte = [0; 1];
            if stream.read_exact(&mut byte).is_ok() {
                let _ = stream.write_all(peer.ip().to_string().as_bytes());
            }
        }
    });
}

fn route(destination: &str, way: Way) -> Route {
    Route { destination: destination.parse().unwrap(), way }
}

fn nat() -> Way {
    Way::Nat { gateway: NatGatewayId::from_bits(0xabc), address: NAT }
}

/// All interfaces of the VPC in a subnet with these routes.
fn routed(of: &NicPlan, routes: &[Route]) -> NetworkPolicy {
    let mut policy = host_only(of);
    let subnet = SubnetRouting { cidr: "172.31.0.0/20".parse().unwrap(), table: TableNumber(1) };
    policy.routing.insert(SubnetId::from_bits(1), subnet);
    policy.tables.insert(TableNumber(1), routes.to_vec());
    policy
}

fn attach(dir: &Path, plan: &NicPlan, policy: &NetworkPolicy) -> TapDevice {
    let mut nic = kiln_hostnet::attach(dir, plan, &|| Ok(policy.clone())).unwrap();
    TapDevice::new(nic.queues.remove(0))
}

fn set(dir: &Path, policy: &NetworkPolicy) {
    apply(dir, VpcId::from_bits(1), &|| Ok(policy.clone())).unwrap();
}

#[test]
fn way_out_is_that_of_the_subnet_and_follows_its_table() {
    on_own_host(|| {
        who_am_i();
        let dir = tempfile::tempdir().unwrap();
        let before = host_state();
        let public = Ipv4Addr::new(198, 18, 9, 9);
        let mut with = plan(1, 4);
        with.public = Some(Public { address: Some(public), ports: vec![] });
        let without = plan(1, 5);
        let closed = routed(&with, &[]);
        let mut known = Guest::on(&with, attach(dir.path(), &with, &closed));
        let mut hidden = Guest::on(&without, attach(dir.path(), &without, &closed));
        let mut seen = |patience| [&mut known, &mut hidden].map(|guest| guest.ask(SERVER, "?", patience));
        // No route: not even to the host, but by its address in the VPC.
        assert_eq!(seen(QUIET), [None, None]);
        set(dir.path(), &routed(&with, &[route("0.0.0.0/0", Way::Internet)]));
        assert_eq!(seen(DEADLINE.min(QUIET * 10)), [Some(public.to_string()), None]);
        set(dir.path(), &routed(&with, &[route("0.0.0.0/0", nat())]));
        assert_eq!(seen(DEADLINE), [Some(NAT.to_string()), Some(NAT.to_string())]);
        // The longest range decides.
        set(dir.path(), &routed(&with, &[route("0.0.0.0/0", nat()), route("198.51.100.0/24", Way::Nowhere)]));
        assert_eq!(seen(QUIET), [None, None]);
        set(dir.path(), &routed(&with, &[route("0.0.0.0/0", Way::Open)]));
        let [first, second] = seen(DEADLINE);
        assert_eq!(first, Some(public.to_string()));
        assert!(second.unwrap().starts_with("169.254."), "the gateway's own towards the host");
        // Without a table, as without one from the start.
        set(dir.path(), &host_only(&with));
        assert_eq!(seen(DEADLINE)[0], Some(public.to_string()));
        let left =
            sh(&format!("ip -n {VPC} rule show; ip -n {VPC} -o link; ip -n {VPC} route show table all"));
        assert!(!left.contains("fwmark") && !left.contains("igw0") && !left.contains("nt00"), "{left}");
        assert!(!left.contains("table 100"), "{left}");
        detach(dir.path(), with.interface).unwrap();
        detach(dir.path(), without.interface).unwrap();
        assert_eq!(host_state(), before);
    });
}

#[test]
fn host_and_neighbours_are_reached_without_any_route() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let one = plan(1, 4);
        let policy = routed(&one, &[]);
        let served = Guest::on(&one, attach(dir.path(), &one, &policy)).serve(22);
        let answer =
            sh("printf hello | timeout 20 bash -c 'exec 3<>/dev/tcp/172.31.0.4/22; cat >&3; head -c 5 <&3'");
        assert_eq!(answer, "hello", "the host's own conversation");
        drop(served);
        detach(dir.path(), one.interface).unwrap();
    });
}

/// IPv4 source and destination of the next frame that is one, if any comes in time.
fn next_packet(device: &mut TapDevice, patience: std::time::Duration) -> Option<[Ipv4Addr; 2]> {
    let end = Instant::now() + patience;
    while Instant::now() < end {
        device.wait(end.saturating_duration_since(Instant::now()));
        if let Some(frame) = device.read_frame()
            && frame.get(12..14) == Some(&[8, 0])
        {
            let at = |from: usize| <[u8; 4]>::try_from(frame.get(from..from + 4).unwrap()).unwrap().into();
            return Some([at(26), at(30)]);
        }
    }
    None
}

#[test]
fn route_to_an_interface_forwards_through_it_and_never_around_it() {
    on_own_host(|| {
        who_am_i();
        let dir = tempfile::tempdir().unwrap();
        let (sender, forwarder) = (plan(1, 4), plan(1, 5));
        let way = Way::Interface(forwarder.interface);
        let mut policy = routed(&sender, &[route("0.0.0.0/0", way)]);
        // The other subnet has the open way; in front of it is the forwarder.
        policy.routing.values_mut().for_each(|subnet| subnet.cidr = "172.31.0.4/32".parse().unwrap());
        let member = policy.interfaces.get_mut(&forwarder.interface).unwrap();
        member.source_dest_check = false;
        let group = *member.groups.first().unwrap();
        let rules = policy.groups.get_mut(&group).unwrap();
        rules.push(kiln_model::security::Rule::from_itself(
            kiln_model::SecurityGroupRuleId::from_bits(9),
            group,
        ));
        let mut guest = Guest::on(&sender, attach(dir.path(), &sender, &policy));
        assert_eq!(guest.ask(SERVER, "?", QUIET), None, "the forwarder is not there");
        let mut device = attach(dir.path(), &forwarder, &policy);
        let sent = thread::spawn(move || (guest.ask(SERVER, "?", QUIET), guest));
        let seen = next_packet(&mut device, DEADLINE);
        assert_eq!(seen, Some([sender.address, *SERVER.ip()]));
        let (answer, mut guest) = sent.join().unwrap();
        assert_eq!(answer, None, "it does not go on from there");
        drop(device);
        detach(dir.path(), forwarder.interface).unwrap();
        assert_eq!(guest.ask(SERVER, "?", QUIET), None, "the forwarder is gone");
        detach(dir.path(), sender.interface).unwrap();
    });
}

#[test]
fn change_that_was_begun_is_finished_by_the_next() {
    on_own_host(|| {
        who_am_i();
        let dir = tempfile::tempdir().unwrap();
        let before = host_state();
        let one = plan(1, 4);
        let mut guest = Guest::on(&one, attach(dir.path(), &one, &routed(&one, &[])));
        // As a process leaves it that was killed with its change noted and nothing of it done, or all.
        let note = dir.path().join("vpc").join(one.vpc.to_string());
        let nat_alone = routed(&one, &[route("0.0.0.0/0", nat())]);
        let begun = format!(
            "{{\"begin\":{{\"tables\":{}}}}}\n",
            serde_json::to_string(
                &[(1, &nat_alone.tables[&TableNumber(1)])]
                    .into_iter()
                    .collect::<std::collections::BTreeMap<_, _>>()
            )
            .unwrap()
        );
        let mut file = std::fs::OpenOptions::new().append(true).open(&note).unwrap();
        file.write_all(begun.as_bytes()).unwrap();
        let other = routed(&one, &[route("0.0.0.0/0", nat()), route("203.0.113.0/24", Way::Nowhere)]);
        set(dir.path(), &other);
        assert_eq!(guest.ask(SERVER, "?", DEADLINE), Some(NAT.to_string()));
        file.write_all(begun.as_bytes()).unwrap();
        set(dir.path(), &routed(&one, &[]));
        assert_eq!(guest.ask(SERVER, "?", QUIET), None);
        let routes = sh(&format!("ip -n {VPC} route show table 1001"));
        assert_eq!(routes.lines().count(), 1, "the last resort alone: {routes}");
        // Whatever way there is when the last interface goes, nothing of it stays.
        set(dir.path(), &other);
        detach(dir.path(), one.interface).unwrap();
        assert_eq!(host_state(), before);
    });
}
