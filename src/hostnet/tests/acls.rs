//! Network ACLs with real packets and connections. [`model`] holds them against the reference.
//!
//! [`model`]: the test beside this one

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};

use kiln_model::security::{AclEntry, Direction, SubnetAcl, Traffic};
use kiln_model::{Ipv4Cidr, Ipv6Cidr, SubnetId};
use support::packets::{World, all_out, all_out_ipv6, ingress};
use support::{inside, ipv6, on_own_host};

const PORT: u16 = 7777;

fn subnet(world: &mut World, range: &str, entries: Vec<AclEntry>) {
    let cidr: Ipv4Cidr = range.parse().unwrap();
    // IPv6 addresses end as those of IPv4 do.
    let ipv6 = Ipv6Cidr::containing(ipv6(cidr_last(range)), 96 + cidr.prefix_len());
    let id = SubnetId::from_bits(u64::from(cidr_last(range)));
    world.policy.subnets.insert(id, SubnetAcl { cidr, ipv6, entries });
    world.apply();
}

fn cidr_last(range: &str) -> u8 {
    range.split_once('/').unwrap().0.rsplit('.').next().unwrap().parse().unwrap()
}

fn deny(number: u16, direction: Direction, from: i64, to: i64, range: &str) -> AclEntry {
    let traffic = Traffic::from_fields("tcp", Some(from), Some(to)).unwrap();
    AclEntry {
        number,
        direction,
        allow: false,
        traffic,
        range: range.parse::<kiln_model::Ipv4Cidr>().unwrap().into(),
    }
}

fn with(entry: AclEntry) -> Vec<AclEntry> {
    [AclEntry::all_pass(), vec![entry]].concat()
}

fn open_world(lasts: &[u8]) -> World {
    let mut world = World::new(lasts);
    let open = ["0.0.0.0/0", "::/0"].map(|range| ingress(&format!("all 0-0 {range}")));
    world.set_rules(1, [&open[..], &[all_out(), all_out_ipv6()]].concat());
    lasts.iter().for_each(|last| world.join(*last, &[1]));
    world.apply();
    world
}

#[test]
fn lists_hold_at_the_edge_of_the_subnet_alone() {
    on_own_host(|| {
        let mut world = open_world(&[4, 5, 8]);
        let blocked = with(deny(1, Direction::Ingress, 22, 22, "172.31.0.0/16"));
        subnet(&mut world, "172.31.0.4/30", blocked);
        assert!(!world.tcp(8, 4, 22), "from another subnet");
        assert!(world.tcp(8, 4, 23));
        assert!(world.tcp(5, 4, 22), "inside of the subnet");
        assert!(!world.tcp_ipv6(8, 4, 23) && !world.tcp_ipv6(4, 8, 23), "no entry lets IPv6 pass");
        assert!(world.tcp_ipv6(5, 4, 22), "inside of the subnet nobody is asked");
        assert!(world.tcp(4, 8, 22), "out of it");
        let outbound = with(deny(1, Direction::Egress, 22, 22, "172.31.0.8/32"));
        subnet(&mut world, "172.31.0.4/30", outbound);
        assert!(world.tcp(8, 4, 22));
        assert!(!world.tcp(4, 8, 22));
        // Without any entry nothing crosses the edge.
        subnet(&mut world, "172.31.0.4/30", Vec::new());
        assert!(!world.policy.subnets.is_empty());
        let message = kiln_model::security::Message::ECHO_REQUEST;
        assert!(!world.passes_from_outside(kiln_model::security::Packet {
            source: Ipv4Addr::new(198, 51, 100, 7).into(),
            destination: World::address(4).into(),
            message,
        }));
        world.policy.subnets.clear();
        world.apply();
        assert!(world.tcp(8, 4, 22));
        world.end();
    });
}

#[test]
fn conversations_that_go_on_end_at_once_and_answers_are_asked_too() {
    on_own_host(|| {
        let mut world = open_world(&[4]);
        world.connect_from_outside();
        let serving = world.guest(4).serve(PORT);
        inside("kiln-000000000001-gw", || {
            let server = SocketAddrV4::new(World::address(4), PORT);
            let mut stream = TcpStream::connect_timeout(&server.into(), support::DEADLINE).unwrap();
            let mut alive = |patience| {
                stream.set_read_timeout(Some(patience)).unwrap();
                stream.write_all(b"x").is_ok() && stream.read(&mut [0; 8]).is_ok_and(|n| n > 0)
            };
            assert!(alive(support::DEADLINE));
            // The client's port: one of those that answers go to.
            let answers = with(deny(1, Direction::Egress, 1024, 65535, "198.51.100.0/24"));
            subnet(&mut world, "172.31.0.4/30", answers);
            assert!(!alive(support::QUIET * 3), "it had begun before");
            world.policy.subnets.clear();
            world.apply();
            assert!(alive(support::DEADLINE), "what was lost is sent again");
        });
        drop(serving);
        world.end();
    });
}
