//! Many, slow, broken and hostile connections.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kiln_model::MacAddr;
use kiln_vmspec::{InterfaceFacts, MetadataSnapshot};
use smoltcp::wire::TcpControl;

use super::MAX_CONNECTIONS;
use crate::address::{ACTIVATION_V4, DNS_V4, IMDS_V4, IMDS_V6, NTP_V4};
use crate::testing::{Bench, GUEST_IP, GUEST_IPV6, GUEST_MAC, IMDS, metadata, segment, segment_to, tcp_of};

const SECOND: Duration = Duration::from_secs(1);

fn with_ipv6(hop_limit: u8) -> MetadataSnapshot {
    let mut snapshot = metadata();
    snapshot.options.ipv6_enabled = true;
    snapshot.options.hop_limit = hop_limit;
    let addresses = vec![IpAddr::V4(GUEST_IP), IpAddr::V6(GUEST_IPV6)];
    snapshot.interfaces = [(GUEST_MAC, InterfaceFacts { addresses, source_dest_check: true })].into();
    snapshot
}

#[test]
fn hundred_parallel_connections_are_served() {
    let mut bench = Bench::new(metadata());
    let handles: Vec<_> = (0..100).map(|_| bench.connect(IMDS)).collect();
    for &handle in &handles {
        bench.send(handle, b"GET /latest/user-data HTTP/1.1\r\n\r\n");
    }
    for &handle in &handles {
        assert_eq!(bench.response(handle).body.len(), 16_384);
    }
    let counters = bench.service.counters();
    assert_eq!((counters.connections, counters.imds_requests), (100, 100));
    assert_eq!((counters.connections_evicted, counters.connections_refused), (0, 0));
    assert_eq!(counters.allowance_exceeded, 0);
    handles.iter().for_each(|&handle| bench.tcp(handle).close());
    bench.run_until(11 * SECOND, |_| false);
    assert_eq!(bench.service.connections(), 0);
}

#[test]
fn slow_clients_do_not_hold_up_others_and_are_cut_off() {
    let mut bench = Bench::new(metadata());
    let handles: Vec<_> = (0..100).map(|_| bench.connect(IMDS)).collect();
    for &handle in &handles {
        bench.send(handle, b"GET /latest/meta-data/ HTTP/1.1\r\nX: ");
    }
    for _ in 0..4 {
        for &handle in &handles {
            bench.send(handle, b"y");
        }
        assert_eq!(bench.get("/latest").status, 200);
        bench.run_until(4 * SECOND, |_| false);
    }
    bench.run_until(3 * SECOND, |_| false);
    assert!(bench.service.connections() >= 100);
    bench.run_until(2 * SECOND, |_| false);
    assert_eq!(bench.service.counters().connections_timed_out, 100);
    assert!(handles.iter().all(|&handle| !bench.tcp(handle).may_recv()));
}

#[test]
fn more_slow_clients_than_places_only_displace_each_other() {
    let mut bench = Bench::new(metadata());
    for _ in 0..MAX_CONNECTIONS + 40 {
        let handle = bench.connect(IMDS);
        bench.send(handle, b"GET /latest/meta-data/ HTTP/1.1\r\nX: ");
        bench.settle();
        bench.wait(Duration::from_millis(10));
    }
    assert_eq!(bench.service.connections(), MAX_CONNECTIONS);
    assert_eq!(bench.service.counters().connections_evicted, 40);
    assert_eq!(bench.get("/latest").status, 200);
}

#[test]
fn half_open_flood_is_recycled() {
    let mut bench = Bench::new(metadata());
    for number in 0..1_500u16 {
        bench.exchange(&segment(1_000 + number, TcpControl::Syn, i32::from(number), None, b""));
        bench.wait(Duration::from_millis(1));
    }
    assert!(bench.service.connections() <= MAX_CONNECTIONS);
    assert_eq!(bench.get("/latest").status, 200);
    assert!(bench.service.counters().connections_evicted > 1_000);
    bench.run_until(6 * SECOND, |_| false);
    assert!(bench.service.connections() <= 1, "half-open connections outlive their 5 s");
}

#[test]
fn lost_and_reordered_segments_are_repaired() {
    for (lost_percent, reorder) in [(5, false), (10, true), (20, false), (0, true)] {
        let mut bench = Bench::new(metadata());
        bench.reorder = reorder;
        let mut random: u32 = 1;
        bench.fate = Box::new(move |_, frame| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            tcp_of(frame).is_none() || (random >> 16) % 100 >= lost_percent
        });
        for _ in 0..3 {
            let reply = bench.get("/latest/user-data");
            assert_eq!(reply.body.len(), 16_384, "losing {lost_percent} %");
            assert!(reply.body.iter().zip((0..=255u8).cycle()).all(|(got, want)| *got == want));
        }
    }
}

/// Hop limits of the segments that came to the guest, by what they carry.
fn hop_limits(bench: &mut Bench) -> Vec<(&'static str, u8)> {
    let frames = std::mem::take(&mut bench.to_guest);
    frames
        .iter()
        .filter_map(|frame| {
            let (hop_limit, segment) = tcp_of(frame)?;
            let payload = segment.payload();
            let kind =
                if payload.windows(10).any(|w| w == b"Token-Ttl-") && payload.starts_with(b"HTTP/1.1 200") {
                    "token"
                } else if !payload.is_empty() {
                    "data"
                } else if segment.syn() {
                    "syn"
                } else {
                    "bare"
                };
            Some((kind, hop_limit))
        })
        .collect()
}

fn confined(limit: u8, (kind, hop_limit): (&str, u8)) -> bool {
    hop_limit == if kind == "token" { limit } else { 64 }
}

#[test]
fn hop_limit_is_on_segments_with_a_token_and_on_no_others() {
    for limit in [1, 2, 64] {
        for service in [IMDS, SocketAddr::new(IpAddr::V6(IMDS_V6), 80)] {
            let mut bench = Bench::new(with_ipv6(limit));
            let handle = bench.connect(service);
            bench.send(handle, b"PUT /latest/api/to");
            bench.run_until(SECOND, |_| false);
            bench.send(
                handle,
                b"ken HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\
                  Connection: keep-alive\r\n\r\nGET /latest HTTP/1.1\r\nConnection: keep-alive\r\n\r\n",
            );
            assert_eq!(bench.response(handle).body.len(), 56);
            assert_eq!(bench.response(handle).text(), "dynamic\nmeta-data\nuser-data");
            bench.send(handle, b"PUT /latest/api/token HTTP/1.1\r\n\r\n");
            assert_eq!(bench.response(handle).status, 400);
            bench.run_until(SECOND, |_| false);
            let seen = hop_limits(&mut bench);
            assert!(seen.iter().all(|&segment| confined(limit, segment)), "{limit} {service}: {seen:?}");
            for kind in ["syn", "token", "data", "bare"] {
                assert!(seen.iter().any(|segment| segment.0 == kind), "{service}: no {kind} in {seen:?}");
            }
        }
    }
}

#[test]
fn hop_limit_holds_for_retransmissions_too() {
    let mut bench = Bench::new(with_ipv6(1));
    bench.fate = Box::new(|to_guest, frame| {
        // A router behind the guest drops what has only one hop to go.
        !to_guest || tcp_of(frame).is_none_or(|(hop_limit, _)| hop_limit > 1)
    });
    let handle = bench.connect(IMDS);
    bench.send(handle, b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n");
    bench.run_until(20 * SECOND, |_| false);
    assert_eq!(bench.received(handle), b"");
    let seen = hop_limits(&mut bench);
    let tokens = seen.iter().filter(|segment| segment.0 == "token").count();
    assert!(tokens >= 3, "{seen:?}");
    assert!(seen.iter().all(|&segment| confined(1, segment)), "{seen:?}");
    bench.run_until(40 * SECOND, |_| false);
    assert_eq!(bench.service.connections(), 0);
    // Reading without a token works through the same router.
    assert_eq!(bench.get("/latest").status, 200);
}

#[test]
fn ipv6_answers_only_while_enabled() {
    let mut bench = Bench::new(with_ipv6(2));
    let handle = bench.connect(SocketAddr::new(IpAddr::V6(IMDS_V6), 80));
    bench.send(handle, b"GET /latest/meta-data/instance-id HTTP/1.1\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(bench.response(handle).text(), "i-0123456789abcdef0");
    bench.service.update_metadata(std::sync::Arc::new(metadata()));
    bench.settle();
    assert!(!bench.tcp(handle).may_recv());
    let handle = bench.connect(SocketAddr::new(IpAddr::V6(IMDS_V6), 80));
    assert!(!bench.run_until(3 * SECOND, |bench| bench.tcp(handle).may_send()));
    assert!(bench.tapped.is_empty());
    assert_eq!(bench.get("/latest").status, 200);
}

#[test]
fn closed_ports_are_reset_and_empty_addresses_stay_silent() {
    let mut bench = Bench::new(metadata());
    let [activation, _] = ACTIVATION_V4;
    for (addr, port) in [(IMDS_V4, 81), (IMDS_V4, 53), (DNS_V4, 80), (NTP_V4, 123), (activation, 1688)] {
        let frames = bench.exchange(&segment_to((addr, port).into(), 999, TcpControl::Syn, 5, None, b""));
        let (_, reply) = tcp_of(&frames[0]).unwrap();
        assert!(reply.rst() && reply.ack_number().0 == 6, "{addr}:{port}");
    }
    for addr in [[169, 254, 1, 1], [169, 254, 170, 2], [169, 254, 255, 255]] {
        let frame = segment_to((addr, 80).into(), 999, TcpControl::Syn, 5, None, b"");
        assert!(bench.exchange(&frame).is_empty(), "{addr:?}");
    }
    assert_eq!(bench.service.connections(), 0);
    // Strays: data, FIN and SYN|ACK without a connection are reset, a reset is not.
    for (control, ack, answered) in [
        (TcpControl::None, Some(7), true),
        (TcpControl::Fin, Some(7), true),
        (TcpControl::Syn, Some(7), true),
        (TcpControl::Rst, Some(7), false),
        (TcpControl::Rst, None, false),
        (TcpControl::None, None, true),
    ] {
        let frames = bench.exchange(&segment(999, control, 5, ack, b""));
        assert_eq!(frames.len(), usize::from(answered), "{control:?} {ack:?}");
    }
    assert_eq!(bench.service.connections(), 0);
}

#[test]
fn reset_of_the_guest_frees_the_place() {
    let mut bench = Bench::new(metadata());
    bench.exchange(&segment(999, TcpControl::Syn, 5, None, b""));
    assert_eq!(bench.service.connections(), 1);
    bench.exchange(&segment(999, TcpControl::Rst, 6, None, b""));
    assert_eq!(bench.service.connections(), 0);
}

#[test]
fn port_is_reusable_while_the_old_connection_waits() {
    let mut bench = Bench::new(metadata());
    for round in 0..3 {
        let frames = bench.exchange(&segment(999, TcpControl::Syn, round * 1000, None, b""));
        let (_, syn) = tcp_of(&frames[0]).unwrap();
        assert!(syn.syn() && syn.ack(), "round {round}");
        let (seq, ack) = (round * 1000 + 1, syn.seq_number().0.wrapping_add(1));
        let request = b"GET /latest/meta-data/instance-id HTTP/1.1\r\n\r\n";
        let frames = bench.exchange(&segment(999, TcpControl::Psh, seq, Some(ack), request));
        let (_, data) = tcp_of(&frames[0]).unwrap();
        assert!(data.fin() && data.payload().ends_with(b"i-0123456789abcdef0"));
        let ack = ack.wrapping_add(i32::try_from(data.payload().len()).unwrap() + 1);
        let seq = seq + i32::try_from(request.len()).unwrap();
        bench.exchange(&segment(999, TcpControl::Fin, seq, Some(ack), b""));
        assert_eq!(bench.service.connections(), 1, "round {round}");
    }
}

#[test]
fn idle_connection_is_closed_politely() {
    let mut bench = Bench::new(metadata());
    let handle = bench.connect(IMDS);
    bench.send(handle, b"GET /latest HTTP/1.1\r\nConnection: keep-alive\r\n\r\n");
    bench.response(handle);
    bench.run_until(58 * SECOND, |_| false);
    assert!(bench.tcp(handle).may_recv());
    bench.to_guest.clear();
    bench.run_until(3 * SECOND, |_| false);
    assert!(!bench.tcp(handle).may_recv() && bench.tcp(handle).may_send());
    assert!(bench.to_guest.iter().filter_map(|frame| tcp_of(frame)).all(|(_, segment)| !segment.rst()));
    bench.tcp(handle).close();
    bench.run_until(11 * SECOND, |_| false);
    assert_eq!(bench.service.connections(), 0);
}

#[test]
fn megabyte_of_headers_gets_an_answer_and_a_reset() {
    let mut bench = Bench::new(metadata());
    let handle = bench.connect(IMDS);
    bench.send(handle, b"GET / HTTP/1.1\r\nX: ");
    let mut sent = 0;
    let mut reply = Vec::new();
    while sent < 1 << 20 && bench.tcp(handle).may_send() {
        sent += bench.tcp(handle).send_slice(&[b'x'; 8192]).unwrap();
        bench.run_until(Duration::from_millis(20), |_| false);
        reply.extend(bench.received(handle));
    }
    assert!(reply.starts_with(b"HTTP/1.1 431 "));
    assert!(sent < 256 * 1024, "{sent} bytes went through");
    assert_eq!(bench.get("/latest").status, 200);
}

#[test]
fn guest_that_takes_no_frames_costs_no_more_than_the_buffers() {
    let mut bench = Bench::new(metadata());
    for port in 1_000..8_000 {
        bench.service.transmit(
            bench.now,
            &segment_to((IMDS_V4, 81).into(), port, TcpControl::Syn, 5, None, b""),
            false,
        );
        bench.wait(Duration::from_millis(1));
    }
    assert!(bench.service.counters().output_full > 1_000);
    let waiting: usize =
        std::iter::from_fn(|| bench.service.receive(bench.now)).map(|frame| frame.len()).sum();
    assert!(waiting <= 260 * 1024, "{waiting}");
    assert_eq!(bench.get("/latest").status, 200);
}

#[test]
fn segments_fit_what_the_guest_takes() {
    let mut bench = Bench::new(metadata());
    assert_eq!(bench.get("/latest/user-data").body.len(), 16_384);
    let longest = bench.to_guest.iter().map(Vec::len).max();
    assert_eq!(longest, Some(14 + 1500));
}

#[test]
fn other_hardware_address_is_not_the_guest() {
    let mut bench = Bench::new(metadata());
    let mut frame = segment(999, TcpControl::Syn, 5, None, b"");
    frame[6..12].copy_from_slice(&MacAddr::new([2, 9, 9, 9, 9, 9]).octets());
    assert!(bench.exchange(&frame).is_empty());
    assert_eq!(bench.service.counters().foreign_source, 1);
}

#[test]
fn answers_that_nobody_takes_are_displaced() {
    let mut bench = Bench::new(metadata());
    let request = b"GET /latest/user-data HTTP/1.1\r\n\r\n";
    for port in 1_000..1_300 {
        let frames = bench.exchange(&segment(port, TcpControl::Syn, 5, None, b""));
        let Some((_, syn)) = frames.first().and_then(|frame| tcp_of(frame)) else { continue };
        let ack = syn.seq_number().0.wrapping_add(1);
        bench.exchange(&segment(port, TcpControl::Psh, 6, Some(ack), request));
        bench.wait(Duration::from_millis(5));
    }
    assert_eq!(bench.service.connections(), MAX_CONNECTIONS);
    assert!(bench.service.counters().connections_refused > 0);
    bench.wait(2 * SECOND);
    assert_eq!(bench.get("/latest").status, 200);
}
