//! Public addresses and published ports, from beyond the host.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;

use kiln_hostnet::{HostNetError, Nic, NicPlan, OneToOne, Public, detach, set_public};
use kiln_model::security::{NetworkPolicy, Rule};
use support::packets::{all_out, group, ingress};
use support::{DEADLINE, Guest, QUIET, host_state, inside, member, on_own_host, plan, sh};

const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const CLIENT: &str = "198.51.100.2/32";

/// A machine beyond the host, at 198.51.100.2, that reaches public addresses through it.
fn outside() {
    sh("ip netns add outside
        ip link add eth0 type veth peer name eth0 netns outside
        ip addr add 198.51.100.1/24 dev eth0
        ip link set eth0 up
        ip -n outside addr add 198.51.100.2/24 dev eth0
        ip -n outside link set eth0 up
        ip -n outside link set lo up
        ip -n outside route add default via 198.51.100.1");
}

fn public(ports: &[&str]) -> Option<Public> {
    Some(Public { address: None, ports: ports.iter().map(|port| port.parse().unwrap()).collect() })
}

fn attach(dir: &Path, plan: &NicPlan, rules: &[Rule]) -> Result<Nic, HostNetError> {
    let mut policy = NetworkPolicy::default();
    policy.groups.insert(group(1), rules.to_vec());
    for other in (4..10).map(|last| support::plan(u64::from_str_radix(&plan.vpc.short(), 16).unwrap(), last))
    {
        policy.interfaces.insert(other.interface, member(&other, &[group(1)]));
    }
    kiln_hostnet::attach(dir, plan, &|| Ok(policy.clone()))
}

fn say(to: SocketAddrV4, text: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&to.into(), QUIET * 4).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    Some(answer)
}

#[test]
fn published_ports_lead_to_instances_of_vpcs_with_the_same_range() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        outside();
        let host_state = || {
            // Who the client is on the link comes and goes.
            sh("ip neigh flush dev eth0");
            host_state()
        };
        let before = host_state();
        let plans = [(1, "8080:80"), (2, "8081:80")].map(|(vpc, port)| {
            let mut plan = plan(vpc, 4);
            plan.public = public(&[port]);
            plan
        });
        // The groups see the client's own address.
        let rules = [ingress(&format!("tcp 80-80 {CLIENT}")), all_out()];
        let nics = plans.each_ref().map(|plan| attach(dir.path(), plan, &rules).unwrap());
        let addresses = nics.each_ref().map(|nic| nic.public.unwrap());
        assert_ne!(addresses[0], addresses[1]);
        let guests: Vec<_> = plans
            .iter()
            .zip(nics)
            .map(|(plan, mut nic)| Guest::new(plan, nic.queues.remove(0)).serve(80))
            .collect();
        inside("outside", || {
            for (port, word) in [(8080, "one"), (8081, "two")] {
                assert_eq!(say(SocketAddrV4::new(HOST, port), word).as_deref(), Some(word));
            }
            for address in addresses {
                assert_eq!(say(SocketAddrV4::new(address, 80), "three").as_deref(), Some("three"));
                assert_eq!(say(SocketAddrV4::new(address, 81), "?"), None, "no rule");
            }
            assert_eq!(say(SocketAddrV4::new(HOST, 8082), "?"), None, "not published");
        });
        // The host is no client of that address.
        assert_eq!(say(SocketAddrV4::new(HOST, 8080), "?"), None);
        drop(guests);
        for plan in &plans {
            detach(dir.path(), plan.interface).unwrap();
        }
        assert_eq!(host_state(), before);
    });
}

#[test]
fn host_reaches_what_it_publishes_where_a_rule_lets_it() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        outside();
        let mut plan = plan(1, 4);
        plan.public = public(&["8080:80"]);
        let mut nic = attach(dir.path(), &plan, &[ingress("tcp 80-80 0.0.0.0/0"), all_out()]).unwrap();
        let guest = Guest::new(&plan, nic.queues.remove(0)).serve(80);
        assert_eq!(say(SocketAddrV4::new(HOST, 8080), "hello").as_deref(), Some("hello"));
        assert_eq!(say(SocketAddrV4::new(nic.public.unwrap(), 80), "hello").as_deref(), Some("hello"));
        drop(guest);
        detach(dir.path(), plan.interface).unwrap();
    });
}

#[test]
fn port_that_somebody_has_is_refused_and_nothing_changes() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let _listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8081)).unwrap();
        let before = host_state();
        let mut first = plan(1, 4);
        first.public = public(&["8080:80", "8080:80/udp"]);
        let _nic = attach(dir.path(), &first, &[]).unwrap();
        let mut second = plan(1, 5);
        for ports in [&["8080:81"][..], &["8081:80"], &["8082:1", "8082:2"]] {
            second.public = public(ports);
            let error = attach(dir.path(), &second, &[]).unwrap_err();
            assert!(matches!(error, HostNetError::PortInUse(..)), "{error}");
        }
        second.public = Some(Public { address: first_public(dir.path(), &first), ports: vec![] });
        assert!(matches!(attach(dir.path(), &second, &[]), Err(HostNetError::PublicInUse(_))));
        detach(dir.path(), first.interface).unwrap();
        assert_eq!(host_state(), before);
    });
}

fn first_public(dir: &Path, plan: &NicPlan) -> Option<Ipv4Addr> {
    let record = std::fs::read_to_string(dir.join("nic").join(plan.interface.to_string())).unwrap();
    record.split_whitespace().nth(3).unwrap().parse().ok()
}

#[test]
fn address_that_moves_takes_its_traffic_along_and_ends_what_was_there() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        outside();
        let (first, second) = (plan(1, 4), plan(1, 5));
        let rules = [ingress("tcp 80-80 0.0.0.0/0"), all_out()];
        let guests = [&first, &second].map(|plan| {
            let mut nic = attach(dir.path(), plan, &rules).unwrap();
            Guest::new(plan, nic.queues.remove(0)).serve(80)
        });
        let address = Ipv4Addr::new(198, 18, 7, 7);
        let try_to_give = |plan: &NicPlan, to| set_public(dir.path(), plan.interface, plan.address, to);
        let give = |plan: &NicPlan, to: Option<Ipv4Addr>| try_to_give(plan, to).unwrap();
        assert_eq!(give(&first, Some(address)), Some(address));
        let server = SocketAddrV4::new(address, 80);
        let mut held = inside("outside", || TcpStream::connect_timeout(&server.into(), DEADLINE)).unwrap();
        held.set_read_timeout(Some(DEADLINE / 10)).unwrap();
        let mut byte = [0; 1];
        held.write_all(b"a").unwrap();
        held.read_exact(&mut byte).unwrap();

        assert_eq!(give(&first, None), None);
        assert!(try_to_give(&first, Some(address)).is_ok());
        assert!(matches!(try_to_give(&second, Some(address)), Err(HostNetError::PublicInUse(_))));
        assert_eq!(give(&first, None), None);
        assert_eq!(give(&second, Some(address)), Some(address));
        let _ = held.write_all(b"b");
        assert!(held.read_exact(&mut byte).is_err(), "what was there ends");
        assert_eq!(inside("outside", || say(server, "new")).as_deref(), Some("new"));
        // The guests answer one at a time; the second one has done so.
        drop(guests);
        for plan in [&first, &second] {
            detach(dir.path(), plan.interface).unwrap();
        }
    });
}

#[test]
fn secondary_address_has_a_public_one_of_its_own() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        outside();
        let before = host_state();
        let second = Ipv4Addr::new(172, 31, 0, 77);
        let public = [[198, 18, 7, 7], [198, 19, 7, 7], [198, 19, 8, 8]].map(Ipv4Addr::from);
        let mut plan = plan(1, 4);
        plan.public = Some(Public { address: Some(public[0]), ports: vec!["8080:80".parse().unwrap()] });
        plan.more_public = vec![OneToOne { private: second, public: public[1] }];
        let mut policy = NetworkPolicy::default();
        policy.groups.insert(group(1), vec![ingress("tcp 80-80 0.0.0.0/0"), all_out()]);
        let mut own = member(&plan, &[group(1)]);
        own.addresses.push(second);
        policy.interfaces.insert(plan.interface, own);
        let mut nic = kiln_hostnet::attach(dir.path(), &plan, &|| Ok(policy.clone())).unwrap();
        // A guest that has the second address alone.
        let mut guest = Guest::new(&NicPlan { address: second, ..plan.clone() }, nic.queues.remove(0));

        // What it sends out comes from there. Beyond the host it would come from the host's own.
        let listener = TcpListener::bind((HOST, 80)).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, from) = listener.accept().unwrap();
            let mut byte = [0; 1];
            let _ = stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte));
            from.ip()
        });
        assert_eq!(guest.ask(SocketAddrV4::new(HOST, 80), "x", DEADLINE).as_deref(), Some("x"));
        assert_eq!(server.join().unwrap(), public[1]);

        let guest = guest.serve(80);
        let reached = |address| inside("outside", || say(SocketAddrV4::new(address, 80), "hi")).is_some();
        let give = |private, to| set_public(dir.path(), plan.interface, private, to).unwrap();
        assert!(reached(public[1]));
        assert_eq!(give(second, Some(public[2])), Some(public[2]));
        assert!(reached(public[2]) && !reached(public[1]), "it has another one");
        assert!(give(plan.address, None).is_some(), "its port still leads to it");
        assert!(reached(public[2]), "the second address is none the wiser");
        let taken = set_public(dir.path(), plan.interface, plan.address, Some(public[2]));
        assert!(matches!(taken, Err(HostNetError::PublicInUse(_))));
        let record = first_public(dir.path(), &plan);
        assert_eq!(give(second, None), None);
        assert!(!reached(public[2]));
        assert_eq!(first_public(dir.path(), &plan), record);
        assert_eq!(give(second, Some(public[1])), Some(public[1]));
        assert!(reached(public[1]));
        drop(guest);
        detach(dir.path(), plan.interface).unwrap();
        sh("ip neigh flush dev eth0");
        assert_eq!(host_state(), before, "nothing stays of either");
    });
}

#[test]
fn instance_with_a_public_address_is_seen_with_it_by_others() {
    on_own_host(|| {
        let dir = tempfile::tempdir().unwrap();
        let (mut server, mut client) = (plan(1, 4), plan(2, 4));
        server.public = Some(Public { address: Some(Ipv4Addr::new(198, 18, 1, 1)), ports: vec![] });
        client.public = Some(Public { address: Some(Ipv4Addr::new(198, 18, 2, 2)), ports: vec![] });
        let rules = [ingress("tcp 80-80 198.18.2.2/32"), all_out()];
        let mut nic = attach(dir.path(), &server, &rules).unwrap();
        let served = Guest::new(&server, nic.queues.remove(0)).serve(80);
        let mut nic = attach(dir.path(), &client, &[all_out()]).unwrap();
        let mut guest = Guest::new(&client, nic.queues.remove(0));
        let to = SocketAddrV4::new(Ipv4Addr::new(198, 18, 1, 1), 80);
        // The server echoes and waits, so what was said is all that can be asked for.
        assert!(guest.ask_and_close(to, "across", DEADLINE).as_deref() == Some("across"));
        drop(served);
        for plan in [&server, &client] {
            detach(dir.path(), plan.interface).unwrap();
        }
    });
}
