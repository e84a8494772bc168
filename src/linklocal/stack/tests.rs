//! Everything but TCP: who is answered, who is not, and what moves which counter.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kiln_vmspec::{InterfaceFacts, MetadataSnapshot};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Packet,
    Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, NdiscRepr, TcpControl,
};

use crate::address::{ACTIVATION_V4, DNS_V4, IMDS_V4, IMDS_V6, NTP_V4, NTP_V6};
use crate::testing::{
    Bench, GUEST_IP, GUEST_IPV6, GUEST_MAC, OWN_IPV6, dual_spec, from_guest, metadata, segment, spec, tcp_of,
};
use crate::{Counters, Verdict};

/// The counters that moved, by name.
fn moved(before: Counters, after: Counters) -> Vec<(&'static str, u64)> {
    before
        .iter()
        .zip(after.iter())
        .filter(|((name, _), _)| !name.starts_with("frames_"))
        .filter_map(|((name, before), (_, after))| (after > before).then_some((name, after - before)))
        .collect()
}

/// Sends `frame`, checks which counters moved and gives what came back.
fn observe(bench: &mut Bench, frame: &[u8], expected: &[(&str, u64)]) -> Vec<Vec<u8>> {
    let before = bench.service.counters();
    let replies = bench.exchange(frame);
    assert_eq!(moved(before, bench.service.counters()), expected);
    replies
}

fn arp(operation: ArpOperation, from: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(GUEST_MAC.octets()),
        source_protocol_addr: from,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    let mut frame = from_guest().frame(EthernetProtocol::Arp, repr.buffer_len());
    frame[..6].fill(0xff);
    repr.emit(&mut ArpPacket::new_unchecked(&mut frame[14..]));
    frame
}

#[test]
fn arp_answers_for_router_resolver_and_services_only() {
    let mut bench = Bench::new(metadata());
    let [activation, _] = ACTIVATION_V4;
    for from in [GUEST_IP, Ipv4Addr::UNSPECIFIED] {
        for target in [spec().router, spec().resolver.unwrap(), IMDS_V4, DNS_V4, NTP_V4, activation] {
            let frame = arp(ArpOperation::Request, from, target);
            assert_eq!(bench.service.classifier().classify(&frame), Verdict::Ours);
            let replies = observe(&mut bench, &frame, &[("neighbor_replies", 1)]);
            let ethernet = EthernetFrame::new_checked(&replies[0][..]).unwrap();
            assert_eq!(ethernet.dst_addr().0, GUEST_MAC.octets());
            let reply = ArpRepr::parse(&ArpPacket::new_checked(ethernet.payload()).unwrap()).unwrap();
            assert_eq!(
                reply,
                ArpRepr::EthernetIpv4 {
                    operation: ArpOperation::Reply,
                    source_hardware_addr: EthernetAddress(spec().router_mac.octets()),
                    source_protocol_addr: target,
                    target_hardware_addr: EthernetAddress(GUEST_MAC.octets()),
                    target_protocol_addr: from,
                }
            );
        }
    }
    for (operation, from, target) in [
        (ArpOperation::Request, GUEST_IP, GUEST_IP),
        (ArpOperation::Request, Ipv4Addr::UNSPECIFIED, GUEST_IP),
        (ArpOperation::Request, GUEST_IP, Ipv4Addr::new(10, 0, 1, 20)),
        (ArpOperation::Request, GUEST_IP, Ipv4Addr::new(169, 254, 1, 1)),
        (ArpOperation::Request, IMDS_V4, IMDS_V4),
        (ArpOperation::Reply, GUEST_IP, spec().router),
    ] {
        assert!(observe(&mut bench, &arp(operation, from, target), &[]).is_empty(), "{from} {target}");
    }
}

#[test]
fn dhcp_client_comes_up() {
    let mut bench = Bench::new(metadata());
    bench.guest.update_ip_addrs(|addresses| addresses.clear());
    let mut socket = dhcpv4::Socket::new();
    socket.set_max_lease_duration(None);
    let handle = bench.sockets.add(socket);
    let mut lease = None;
    let configured = bench.run_until(Duration::from_secs(20), |bench| {
        if let Some(dhcpv4::Event::Configured(config)) =
            bench.sockets.get_mut::<dhcpv4::Socket>(handle).poll()
        {
            lease =
                Some((config.address, config.router, config.dns_servers.to_vec(), config.server.identifier));
        }
        lease.is_some()
    });
    assert!(configured);
    let (address, router, dns, server) = lease.unwrap();
    assert_eq!(address.to_string(), "10.0.1.10/24");
    assert_eq!((router, server), (Some(spec().router), spec().router));
    assert_eq!(dns, spec().dns);
    assert!(bench.tapped.is_empty());
    // At half of the 3600 s it renews, by unicast to the router.
    assert_eq!(bench.service.counters().dhcp_replies, 2);
    bench.guest.update_ip_addrs(|addresses| addresses.push(address.into()).unwrap());
    bench.run_until(Duration::from_secs(1_810), |_| false);
    assert_eq!(bench.service.counters().dhcp_replies, 3);
}

#[test]
fn ping_is_answered_at_every_service() {
    let mut bench = Bench::new(metadata());
    let [activation, _] = ACTIVATION_V4;
    let echo = |to: Ipv4Addr, length: usize| {
        let repr = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 9, data: &vec![0xab; length] };
        let ends = (IpAddr::V4(GUEST_IP), IpAddr::V4(to));
        from_guest().ip(ends, IpProtocol::Icmp, 64, repr.buffer_len(), |buffer| {
            repr.emit(&mut Icmpv4Packet::new_unchecked(buffer), &ChecksumCapabilities::default());
        })
    };
    for to in [IMDS_V4, DNS_V4, NTP_V4, activation, spec().resolver.unwrap()] {
        let replies = observe(&mut bench, &echo(to, 56), &[("echo_replies", 1)]);
        assert_eq!(replies[0].len(), 14 + 20 + 8 + 56);
        assert_eq!(replies[0][26..30], to.octets());
        assert_eq!(replies[0][34], 0, "echo reply");
        assert_eq!(replies[0][38..42], [0, 7, 0, 9]);
    }
    // An answer that would not fit the link is not sent; nobody lives at 169.254.1.1.
    assert!(observe(&mut bench, &echo(IMDS_V4, 20_000), &[("unserved", 1)]).is_empty());
    assert!(observe(&mut bench, &echo([169, 254, 1, 1].into(), 56), &[("unserved", 1)]).is_empty());
}

#[test]
fn time_is_told() {
    let mut bench = Bench::new(metadata());
    let mut request = [0; 48];
    request[0] = 0x23;
    let reply = bench.ask(SocketAddr::new(NTP_V4.into(), 123), &request).unwrap();
    assert_eq!((reply.len(), reply[0], reply[1]), (48, 0x24, 3));
    assert_eq!(bench.ask(SocketAddr::new(NTP_V4.into(), 124), &request), None);
    assert_eq!(bench.ask(SocketAddr::new(IMDS_V4.into(), 123), &request), None);
}

fn syn() -> Vec<u8> {
    segment(999, TcpControl::Syn, 5, None, b"")
}

/// Puts the IPv4 header checksum right.
fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    smoltcp::wire::Ipv4Packet::new_unchecked(&mut frame[14..]).fill_checksum();
    frame
}

#[test]
fn damaged_and_unusual_frames_are_dropped_and_counted() {
    let mut bench = Bench::new(metadata());
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = syn();
        change(&mut frame);
        frame
    };
    let cases: [(&str, Vec<u8>, &str); 13] = [
        ("nothing", Vec::new(), "malformed"),
        ("runt", syn()[..13].to_vec(), "malformed"),
        ("no IP header", syn()[..33].to_vec(), "malformed"),
        ("IPv4 length beyond the frame", syn()[..50].to_vec(), "malformed"),
        ("version 5", sealed(changed(&|f| f[14] = 0x55)), "malformed"),
        ("header of 16 bytes", sealed(changed(&|f| f[14] = 0x44)), "malformed"),
        ("header checksum", changed(&|f| f[24] ^= 1), "bad_checksum"),
        ("TCP checksum", changed(&|f| f[50] ^= 1), "bad_checksum"),
        ("more fragments", sealed(changed(&|f| f[20] = 0x20)), "unsupported"),
        ("fragment offset", sealed(changed(&|f| f[21] = 1)), "unsupported"),
        (
            "options",
            {
                let mut frame = syn();
                frame.splice(34..34, [1, 1, 1, 0]);
                frame[14] = 0x46;
                frame[17] += 4;
                sealed(frame)
            },
            "unsupported",
        ),
        (
            "VLAN",
            {
                let mut frame = syn();
                frame.splice(12..12, [0x81, 0, 0, 5]);
                frame
            },
            "unsupported",
        ),
        ("SCTP", sealed(changed(&|f| f[23] = 132)), "unsupported"),
    ];
    for (name, frame, counter) in cases {
        assert_eq!(bench.service.classifier().classify(&frame), Verdict::Ours, "{name}");
        let before = bench.service.counters();
        assert!(bench.exchange(&frame).is_empty(), "{name}");
        assert_eq!(moved(before, bench.service.counters()), [(counter, 1)], "{name}");
    }
    assert_eq!(bench.get("/latest").status, 200);
}

#[test]
fn checksum_left_to_the_device_is_not_checked() {
    let mut bench = Bench::new(metadata());
    let mut frame = syn();
    frame[50..52].copy_from_slice(&[0, 0]);
    assert!(bench.exchange(&frame).is_empty());
    bench.service.transmit(bench.now, &frame, true);
    let reply = bench.service.receive(bench.now).unwrap();
    assert!(tcp_of(&reply).unwrap().1.syn());
}

#[test]
fn segment_longer_than_the_link_is_taken_as_far_as_the_window_goes() {
    let mut bench = Bench::new(metadata());
    let frames = bench.exchange(&syn());
    let ack = tcp_of(&frames[0]).unwrap().1.seq_number().0.wrapping_add(1);
    let mut request =
        b"GET /latest/meta-data/instance-id HTTP/1.1\r\nConnection: keep-alive\r\n\r\n".to_vec();
    let wanted = request.len();
    request.resize(60_000, b'\n');
    let replies = bench.exchange(&segment(999, TcpControl::Psh, 6, Some(ack), &request));
    let bodies: Vec<_> =
        replies.iter().filter_map(|f| tcp_of(f)).map(|(_, s)| s.payload().to_vec()).collect();
    assert!(bodies.concat().ends_with(b"i-0123456789abcdef0"));
    let window_end = tcp_of(replies.last().unwrap()).unwrap().1.ack_number().0;
    assert!(window_end >= 6 + i32::try_from(wanted).unwrap() && window_end <= 6 + 4096, "{window_end}");
}

#[test]
fn only_own_addresses_may_ask_unless_the_check_is_off() {
    let secondary = Ipv4Addr::new(10, 0, 1, 77);
    let container = Ipv4Addr::new(172, 17, 0, 2);
    let udp = |from: Ipv4Addr| {
        let mut request = [0; 48];
        request[0] = 0x23;
        from_guest().udp((from.into(), 1000), (NTP_V4.into(), 123), &request)
    };
    let facts = |source_dest_check| MetadataSnapshot {
        interfaces: [(
            GUEST_MAC,
            InterfaceFacts { addresses: vec![GUEST_IP.into(), secondary.into()], source_dest_check },
        )]
        .into(),
        ..metadata()
    };
    let mut bench = Bench::new(metadata());
    assert_eq!(bench.exchange(&udp(GUEST_IP)).len(), 1);
    for from in [secondary, container, [169, 254, 7, 7].into(), IMDS_V4, Ipv4Addr::UNSPECIFIED] {
        assert!(observe(&mut bench, &udp(from), &[("foreign_source", 1)]).is_empty(), "{from}");
    }
    bench.service.update_metadata(Arc::new(facts(true)));
    assert_eq!(bench.exchange(&udp(secondary)).len(), 1);
    assert!(bench.exchange(&udp(container)).is_empty());
    bench.service.update_metadata(Arc::new(facts(false)));
    let reply = bench.exchange(&udp(container));
    assert_eq!(reply[0][30..34], container.octets());
    assert_eq!(reply[0][..6], GUEST_MAC.octets());
    for from in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, [224, 0, 0, 1].into()] {
        assert!(bench.exchange(&udp(from)).is_empty(), "{from}");
    }
}

#[test]
fn packets_over_the_allowance_are_dropped_and_service_recovers() {
    let mut bench = Bench::new(metadata());
    let mut request = [0; 48];
    request[0] = 0x23;
    let frame = from_guest().udp((GUEST_IP.into(), 1000), (NTP_V4.into(), 123), &request);
    let answered = (0..5_000).filter(|_| !bench.exchange(&frame).is_empty()).count();
    assert_eq!(answered, 2_048);
    assert_eq!(bench.service.counters().allowance_exceeded, 5_000 - 2_048);
    // ARP and DHCP are not held up by that.
    assert_eq!(bench.exchange(&arp(ArpOperation::Request, GUEST_IP, IMDS_V4)).len(), 1);
    bench.wait(Duration::from_millis(500));
    let answered = (0..5_000).filter(|_| !bench.exchange(&frame).is_empty()).count();
    assert_eq!(answered, 512);
    bench.wait(Duration::from_secs(2));
    assert_eq!(bench.get("/latest").status, 200);
    // Neither is the service held up by a flood of ARP.
    let arp = arp(ArpOperation::Request, GUEST_IP, IMDS_V4);
    assert!((0..9_000).filter(|_| !bench.exchange(&arp).is_empty()).count() < 2_200);
    assert_eq!(bench.get("/latest").status, 200);
}

#[test]
fn crawl_of_cloud_init_fits_the_allowance() {
    let mut bench = Bench::new(metadata());
    for _ in 0..72 {
        assert_eq!(bench.get("/latest/meta-data/").status, 200);
    }
    assert_eq!(bench.service.counters().allowance_exceeded, 0);
    assert!(bench.service.counters().frames_in < 1_024);
}

#[test]
fn nothing_for_the_link_reaches_the_tap() {
    let mut bench = Bench::new(metadata());
    for to in
        ["169.254.169.254:80", "169.254.169.254:9", "169.254.169.253:53", "169.254.1.1:1", "10.0.0.2:99"]
    {
        let mut socket = smoltcp::socket::tcp::Socket::new(
            smoltcp::socket::tcp::SocketBuffer::new(vec![0; 64]),
            smoltcp::socket::tcp::SocketBuffer::new(vec![0; 64]),
        );
        let to: SocketAddr = to.parse().unwrap();
        socket.connect(bench.guest.context(), to, 2_000 + to.port()).unwrap();
        bench.sockets.add(socket);
    }
    bench.run_until(Duration::from_secs(3), |_| false);
    assert!(bench.tapped.is_empty());
}

#[test]
fn ipv6_neighbours_and_ping_follow_the_options() {
    let ping = |to: Ipv6Addr| {
        let ends = (GUEST_IPV6, to);
        let repr = Icmpv6Repr::EchoRequest { ident: 7, seq_no: 9, data: b"ping" };
        from_guest().ip((ends.0.into(), to.into()), IpProtocol::Icmpv6, 64, repr.buffer_len(), |buffer| {
            let mut packet = Icmpv6Packet::new_unchecked(buffer);
            repr.emit(&ends.0, &ends.1, &mut packet, &ChecksumCapabilities::default());
        })
    };
    let solicit = |from: Ipv6Addr, target: Ipv6Addr, hop_limit: u8| {
        let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0x254);
        let repr = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr: target, lladdr: None });
        from_guest().ip(
            (from.into(), to.into()),
            IpProtocol::Icmpv6,
            hop_limit,
            repr.buffer_len(),
            |buffer| {
                let mut packet = Icmpv6Packet::new_unchecked(buffer);
                repr.emit(&from, &to, &mut packet, &ChecksumCapabilities::default());
            },
        )
    };
    let mut bench = Bench::new(metadata());
    for frame in [ping(IMDS_V6), solicit(GUEST_IPV6, IMDS_V6, 255), ping(NTP_V6)] {
        assert!(observe(&mut bench, &frame, &[("unserved", 1)]).is_empty());
    }
    let mut snapshot = metadata();
    snapshot.options.ipv6_enabled = true;
    let addresses = vec![GUEST_IP.into(), GUEST_IPV6.into()];
    snapshot.interfaces = [(GUEST_MAC, InterfaceFacts { addresses, source_dest_check: true })].into();
    bench.service.update_metadata(Arc::new(snapshot));
    assert_eq!(observe(&mut bench, &ping(IMDS_V6), &[("echo_replies", 1)]).len(), 1);
    assert_eq!(observe(&mut bench, &ping(NTP_V6), &[("echo_replies", 1)]).len(), 1);
    let reply = observe(&mut bench, &solicit(GUEST_IPV6, IMDS_V6, 255), &[("neighbor_replies", 1)]).remove(0);
    assert_eq!((reply[21], reply[54], reply[58]), (255, 136, 0x60), "solicited, override");
    assert_eq!(reply[62..78], IMDS_V6.octets());
    assert_eq!(reply[80..86], spec().router_mac.octets());
    let probe = solicit(Ipv6Addr::UNSPECIFIED, IMDS_V6, 255);
    let reply = observe(&mut bench, &probe, &[("neighbor_replies", 1)]).remove(0);
    assert_eq!((&reply[..6], reply[58]), (&[0x33, 0x33, 0, 0, 0, 1][..], 0x20));
    // Forwarded by somebody, or for an address without a service.
    let nobody = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x1254);
    for frame in [solicit(GUEST_IPV6, IMDS_V6, 64), solicit(GUEST_IPV6, nobody, 255)] {
        assert!(observe(&mut bench, &frame, &[("unserved", 1)]).is_empty());
    }
}

/// A message of neighbour discovery as the guest sends it.
fn discovery(from: Ipv6Addr, to: Ipv6Addr, hop_limit: u8, message: &NdiscRepr<'_>) -> Vec<u8> {
    let repr = Icmpv6Repr::Ndisc(*message);
    from_guest().ip((from.into(), to.into()), IpProtocol::Icmpv6, hop_limit, repr.buffer_len(), |buffer| {
        repr.emit(&from, &to, &mut Icmpv6Packet::new_unchecked(buffer), &ChecksumCapabilities::default());
    })
}

/// The message of neighbour discovery in a frame for the guest, and whom it is for.
fn discovered(frame: &[u8]) -> (IpAddr, NdiscRepr<'_>) {
    assert_eq!(frame[21], 255, "hop limit");
    let [from, to] = [22, 38].map(|at| Ipv6Addr::from(*frame[at..].first_chunk::<16>().unwrap()));
    let packet = Icmpv6Packet::new_checked(&frame[54..]).unwrap();
    match Icmpv6Repr::parse(&from, &to, &packet, &ChecksumCapabilities::default()).unwrap() {
        Icmpv6Repr::Ndisc(message) => (to.into(), message),
        other => panic!("{other:?}"),
    }
}

const GUEST_LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x0aff, 0xfe00, 0x010a);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

#[test]
fn guest_learns_of_its_router_and_that_addresses_come_by_dhcp() {
    let ask = NdiscRepr::RouterSolicit { lladdr: None };
    let mut bench = Bench::new(metadata());
    let frame = discovery(GUEST_LINK, ALL_ROUTERS, 255, &ask);
    assert!(observe(&mut bench, &frame, &[("unserved", 1)]).is_empty(), "an interface without IPv6");
    let mut bench = Bench::with(&dual_spec(), metadata());
    assert_eq!(bench.service.classifier().classify(&frame), Verdict::Ours);
    for (from, to) in [(GUEST_LINK, GUEST_LINK), (Ipv6Addr::UNSPECIFIED, "ff02::1".parse().unwrap())] {
        let frame = discovery(from, ALL_ROUTERS, 255, &ask);
        let reply = observe(&mut bench, &frame, &[("router_advertisements", 1)]).remove(0);
        let (seen, message) = discovered(&reply);
        assert_eq!(seen, IpAddr::from(to));
        assert_eq!(reply[22..38], "fe80::ff:fe00:1".parse::<Ipv6Addr>().unwrap().octets());
        let NdiscRepr::RouterAdvert { flags, router_lifetime, lladdr, mtu, prefix_info, .. } = message else {
            panic!("{message:?}")
        };
        assert_eq!(flags.bits(), 0xc0, "managed, other");
        assert_eq!((router_lifetime.secs(), mtu), (1800, Some(1500)));
        assert_eq!(lladdr.unwrap().as_bytes(), spec().router_mac.octets());
        let prefix = prefix_info.unwrap();
        assert_eq!((prefix.prefix.to_string(), prefix.prefix_len), ("2001:db8:1::".to_owned(), 64));
        assert_eq!(prefix.flags.bits(), 0x80, "on link, not for making addresses");
    }
    // Forwarded ones are none.
    let forwarded = discovery(GUEST_LINK, ALL_ROUTERS, 254, &ask);
    assert!(observe(&mut bench, &forwarded, &[("unserved", 1)]).is_empty());
    // Long before what it said is over, the router says it again by itself.
    let before = bench.service.counters().router_advertisements;
    bench.run_until(Duration::from_secs(1300), |_| false);
    assert_eq!(bench.service.counters().router_advertisements - before, 2);
    assert_eq!(bench.to_guest.last().unwrap()[..6], [0x33, 0x33, 0, 0, 0, 1]);
}

#[test]
fn neighbours_and_the_router_have_the_routers_hardware_address() {
    let mut bench = Bench::with(&dual_spec(), metadata());
    let router: Ipv6Addr = "fe80::ff:fe00:1".parse().unwrap();
    let gateway: Ipv6Addr = "2001:db8:1::1".parse().unwrap();
    let neighbor: Ipv6Addr = "2001:db8:1::99".parse().unwrap();
    let ask = |from, target| {
        let message = NdiscRepr::NeighborSolicit { target_addr: target, lladdr: None };
        discovery(from, "ff02::1:ff00:99".parse().unwrap(), 255, &message)
    };
    for (target, is_router) in [(router, true), (gateway, true), (neighbor, false)] {
        let reply = observe(&mut bench, &ask(OWN_IPV6, target), &[("neighbor_replies", 1)]).remove(0);
        let (_, message) = discovered(&reply);
        let NdiscRepr::NeighborAdvert { flags, target_addr, lladdr } = message else { panic!("{message:?}") };
        assert_eq!((target_addr, flags.bits() & 0x80 != 0), (target, is_router));
        assert_eq!(lladdr.unwrap().as_bytes(), spec().router_mac.octets());
    }
    let elsewhere = "2001:db8:2::99".parse().unwrap();
    for frame in [
        ask(OWN_IPV6, OWN_IPV6),
        ask(OWN_IPV6, elsewhere),
        ask(Ipv6Addr::UNSPECIFIED, OWN_IPV6),
        ask(Ipv6Addr::UNSPECIFIED, neighbor),
    ] {
        assert!(observe(&mut bench, &frame, &[("unserved", 1)]).is_empty());
    }
    // Who takes the router's address learns that it is taken.
    let probe = ask(Ipv6Addr::UNSPECIFIED, router);
    assert_eq!(observe(&mut bench, &probe, &[("neighbor_replies", 1)]).len(), 1);
}

#[test]
fn dhcpv6_is_answered_to_neighbours_on_the_link() {
    let mut bench = Bench::with(&dual_spec(), metadata());
    let servers: IpAddr = "ff02::1:2".parse().unwrap();
    let router: IpAddr = "fe80::ff:fe00:1".parse().unwrap();
    // INFORMATION-REQUEST
    let ask =
        |from: Ipv6Addr, to: IpAddr, port| from_guest().udp((from.into(), 546), (to, port), &[11, 1, 2, 3]);
    for to in [servers, router] {
        let frame = ask(GUEST_LINK, to, 547);
        assert_eq!(bench.service.classifier().classify(&frame), Verdict::Ours);
        let reply = observe(&mut bench, &frame, &[("dhcpv6_replies", 1)]).remove(0);
        assert_eq!(reply[62..66], [7, 1, 2, 3], "reply");
    }
    assert!(observe(&mut bench, &ask(OWN_IPV6, servers, 547), &[("foreign_source", 1)]).is_empty());
    assert!(observe(&mut bench, &ask(GUEST_LINK, servers, 546), &[("unserved", 1)]).is_empty());
    let mut bench = Bench::new(metadata());
    assert!(observe(&mut bench, &ask(GUEST_LINK, servers, 547), &[]).is_empty(), "an interface without IPv6");
}
