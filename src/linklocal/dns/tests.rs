//! The resolver by itself and behind UDP and TCP.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kiln_vmspec::MetadataSnapshot;
use proptest::prelude::*;

use super::*;
use crate::address::DNS_V4;
use crate::testing::{Bench, metadata};

const ID: [u8; 2] = [0xab, 0xcd];

fn name(text: &str) -> Vec<u8> {
    let labels = text.split('.').filter(|label| !label.is_empty());
    let mut wire: Vec<u8> =
        labels.flat_map(|l| [&[u8::try_from(l.len()).unwrap()], l.as_bytes()].concat()).collect();
    wire.push(0);
    wire
}

fn query(text: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![ID[0], ID[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend(name(text));
    message.extend(kind.to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    message
}

fn with_opt(mut message: Vec<u8>, size: u16) -> Vec<u8> {
    message[11] = 1;
    message.extend([0, 0, 41]);
    message.extend(size.to_be_bytes());
    message.extend([0; 6]);
    message
}

/// What another resolver says to `query`: one address, and `filler` bytes behind it.
fn upstream(query: &[u8], filler: usize) -> Vec<u8> {
    let mut reply = query.to_vec();
    reply[2..4].copy_from_slice(&[0x81, 0x80]);
    reply[7] = 1;
    reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 1]);
    reply.resize(reply.len() + filler, 0);
    reply
}

fn snapshot() -> MetadataSnapshot {
    let mut snapshot = metadata();
    snapshot.host_names = [
        ("ip-10-0-1-10.ec2.internal".to_owned(), vec![[10, 0, 1, 10].into()]),
        ("db.ec2.internal".to_owned(), vec![[10, 0, 1, 20].into(), "2001:db8::20".parse().unwrap()]),
    ]
    .into();
    snapshot
}

fn resolver() -> Resolver {
    let mut resolver = Resolver::new("ec2.internal", Unpredictable::new(&[9; 32]));
    resolver.set_snapshot(&snapshot());
    resolver
}

const NOW: Time = Time { uptime: Duration::from_secs(9), wall: Duration::ZERO };

fn asker(port: u16) -> Asker {
    Asker::Udp { guest: ([10, 0, 1, 10].into(), port), service: (DNS_V4.into(), PORT) }
}

fn ask(resolver: &mut Resolver, message: &[u8]) -> Outcome {
    resolver.ask(NOW, asker(1000), message, &mut Counters::default())
}

/// Code, number of answers and the data of the last one.
fn answer(resolver: &mut Resolver, message: &[u8]) -> (u8, u8, Vec<u8>) {
    let Outcome::Answer(reply) = ask(resolver, message) else { panic!("no answer") };
    assert_eq!(reply[..2], ID);
    assert_eq!(reply[2] & 0x80, 0x80);
    let answers = reply[7];
    let end = reply.len() - if reply[11] == 1 { 11 } else { 0 };
    let data = if answers == 0 { Vec::new() } else { reply[message.len().min(end)..end].to_vec() };
    (reply[3] & 0xf, answers, data)
}

#[test]
fn names_of_the_vpc_are_answered_here() {
    let mut resolver = resolver();
    for (text, kind, code, answers, end) in [
        ("ip-10-0-1-10.ec2.internal", TYPE_A, 0, 1, &[0, 4, 10, 0, 1, 10][..]),
        ("IP-10-0-1-10.EC2.Internal", TYPE_A, 0, 1, &[0, 4, 10, 0, 1, 10]),
        ("ip-10-0-1-10.ec2.internal", TYPE_AAAA, 0, 0, &[]),
        (
            "db.ec2.internal",
            TYPE_AAAA,
            0,
            1,
            &[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20],
        ),
        ("db.ec2.internal", TYPE_ANY, 0, 2, &[0x20]),
        ("db.ec2.internal", 16, 0, 0, &[]),
        ("10.1.0.10.in-addr.arpa", TYPE_PTR, 0, 1, b"\x08internal\0"),
        ("10.1.0.10.in-addr.arpa", TYPE_A, 0, 0, &[]),
        (
            "0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            TYPE_PTR,
            0,
            1,
            b"\x02db\x03ec2\x08internal\0",
        ),
        ("nobody.ec2.internal", TYPE_A, 3, 0, &[]),
        ("ec2.internal", TYPE_A, 0, 0, &[]),
        ("instance-data", TYPE_A, 3, 0, &[]),
        ("does-not-exist.invalid", TYPE_A, 3, 0, &[]),
    ] {
        let (got_code, got_answers, data) = answer(&mut resolver, &query(text, kind));
        assert_eq!((got_code, got_answers), (code, answers), "{text} {kind}");
        assert!(data.ends_with(end), "{text} {kind}: {data:?}");
    }
    assert_eq!(resolver.outstanding.len(), 0);
}

#[test]
fn local_answer_is_authoritative_and_repeats_the_question() {
    let message = with_opt(query("db.ec2.internal", TYPE_A), 4096);
    let Outcome::Answer(reply) = ask(&mut resolver(), &message) else { panic!("no answer") };
    assert_eq!(reply[2..12], [0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 1]);
    let question = message.len() - 11;
    assert_eq!(reply[12..question], message[12..question]);
    assert_eq!(reply[question..question + 12], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    assert_eq!(reply[reply.len() - 11..], [0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn messages_that_are_no_query_are_refused() {
    let mut resolver = resolver();
    let good = query("db.ec2.internal", TYPE_A);
    let changed = |at: usize, value: u8| {
        let mut message = good.clone();
        message[at] = value;
        message
    };
    for (what, message, code) in [
        ("status opcode", changed(2, 0x10), 4),
        ("update opcode", changed(2, 0x28), 4),
        ("no question", changed(5, 0), 1),
        ("two questions", changed(5, 2), 1),
        ("compressed", changed(12, 0xc0), 1),
        ("long label", changed(12, 64), 1),
        ("cut", good[..good.len() - 1].to_vec(), 1),
        ("chaos", changed(good.len() - 1, 3), 5),
        ("transfer", query("ec2.internal", TYPE_AXFR), 5),
        ("incremental transfer", query("example.com", TYPE_IXFR), 5),
        ("long name", query(&"abcdefg.".repeat(32), TYPE_A), 1),
    ] {
        assert_eq!(answer(&mut resolver, &message).0, code, "{what}");
    }
    for message in [&[][..], &good[..11], &changed(2, 0x80)] {
        assert_eq!(ask(&mut resolver, message), Outcome::Ignored);
    }
}

#[test]
fn other_names_go_on_and_come_back_under_the_id_of_the_guest() {
    let mut resolver = resolver();
    let mut counters = Counters::default();
    let message = query("example.com", TYPE_A);
    for (text, kind) in [("example.com", TYPE_A), ("com", 43), ("localhost", TYPE_A)] {
        assert_eq!(answer(&mut resolver, &query(text, kind)).0, 2, "nobody forwards {text}");
    }
    resolver.set_forwarding(true);
    assert_eq!(ask(&mut resolver, &message), Outcome::Later);
    assert_eq!(ask(&mut resolver, &message), Outcome::Ignored, "asked again");
    let forward = resolver.take_forward().unwrap();
    assert_eq!((&forward.query[2..], forward.tcp), (&message[2..], false));
    assert_eq!(forward.query[..2], forward.id.to_be_bytes());
    assert_eq!(resolver.take_forward(), None);
    let reply = upstream(&forward.query, 0);
    let (to, answer) = resolver.reply(&reply, &mut counters).unwrap();
    assert_eq!(to, asker(1000));
    assert_eq!(answer[..2], ID);
    assert!(answer.ends_with(&[192, 0, 2, 1]));
    assert_eq!(resolver.reply(&reply, &mut counters), None, "again");
    assert_eq!(counters.dns_failed, 0);
}

#[test]
fn messages_that_answer_something_else_are_ignored() {
    let mut resolver = resolver();
    resolver.set_forwarding(true);
    ask(&mut resolver, &query("example.com", TYPE_A));
    let forward = resolver.take_forward().unwrap();
    let good = upstream(&forward.query, 0);
    let changed = |at: usize, value: u8| {
        let mut reply = good.clone();
        reply[at] = value;
        reply
    };
    let other = [&forward.query[..2], &upstream(&query("example.org", TYPE_A), 0)[2..]].concat();
    for reply in [
        Vec::new(),
        good[..1].to_vec(),
        good[..20].to_vec(),
        changed(0, !good[0]),
        changed(2, 1),
        changed(5, 2),
        other,
    ] {
        assert_eq!(resolver.reply(&reply, &mut Counters::default()), None);
    }
    let mut louder = good;
    louder[12..24].make_ascii_uppercase();
    let (_, answer) = resolver.reply(&louder, &mut Counters::default()).unwrap();
    assert_eq!(answer[3] & 0xf, 0, "case does not matter");
}

#[test]
fn query_without_a_reply_fails() {
    let mut resolver = resolver();
    resolver.set_forwarding(true);
    let mut counters = Counters::default();
    ask(&mut resolver, &query("example.com", TYPE_A));
    let id = resolver.take_forward().unwrap().id;
    assert_eq!(resolver.fail(!id, &mut counters), None);
    let (_, answer) = resolver.fail(id, &mut counters).unwrap();
    assert_eq!((answer[3] & 0xf, counters.dns_failed), (2, 1));
    // Over TCP half an answer is none.
    resolver.ask(NOW, Asker::Tcp(3), &query("example.com", TYPE_A), &mut counters);
    let mut half = upstream(&resolver.take_forward().unwrap().query, 0);
    half[2] |= 2;
    assert_eq!(resolver.reply(&half, &mut counters).unwrap().1[3] & 0xf, 2);
}

#[test]
fn outstanding_queries_are_bounded_and_end_after_four_seconds() {
    let mut resolver = resolver();
    let mut counters = Counters::default();
    resolver.set_forwarding(true);
    let message = query("example.com", TYPE_A);
    for port in 0..100 {
        resolver.ask(NOW, asker(port), &message, &mut counters);
    }
    assert_eq!((counters.dns_forwarded, counters.dns_failed), (64, 36));
    assert_eq!(resolver.next_event(), Some(NOW.uptime + PATIENCE));
    let early = Time { uptime: NOW.uptime + PATIENCE - Duration::from_millis(1), ..NOW };
    assert_eq!(resolver.expire(early, &mut counters), None);
    let late = Time { uptime: NOW.uptime + PATIENCE, ..NOW };
    let mut expired = 0;
    while let Some((_, reply)) = resolver.expire(late, &mut counters) {
        assert_eq!(reply[3] & 0xf, 2);
        expired += 1;
    }
    assert_eq!(expired, 64);
    assert_eq!((resolver.take_forward(), resolver.next_event()), (None, None));
}

#[test]
fn long_answers_are_cut_over_udp_only() {
    let long = |resolver: &mut Resolver, message: &[u8], asker: Asker, filler: usize| {
        resolver.ask(NOW, asker, message, &mut Counters::default());
        let forward = resolver.take_forward().unwrap();
        resolver.reply(&upstream(&forward.query, filler), &mut Counters::default()).unwrap().1
    };
    let mut resolver = resolver();
    resolver.set_forwarding(true);
    let plain = query("example.com", TYPE_A);
    let fits = 512 - upstream(&plain, 0).len();
    assert_eq!(long(&mut resolver, &plain, asker(1), fits).len(), 512);
    let cut = long(&mut resolver, &plain, asker(1), fits + 1);
    assert_eq!((cut.len(), cut[2] & 2, cut[7]), (plain.len(), 2, 0));
    let extended = with_opt(plain.clone(), 4096);
    assert!(long(&mut resolver, &extended, asker(1), 700).len() > 700);
    assert_eq!(long(&mut resolver, &extended, asker(1), 2000)[2] & 2, 2);
    assert!(long(&mut resolver, &plain, Asker::Tcp(7), 2000).len() > 2000);
}

#[test]
fn guest_resolves_over_udp_and_tcp() {
    let mut bench = Bench::new(snapshot());
    bench.service.enable_dns_forwarding();
    for service in [IpAddr::V4(DNS_V4), [10, 0, 0, 2].into()] {
        let service = SocketAddr::new(service, 53);
        let reply = bench.ask(service, &query("db.ec2.internal", TYPE_A)).unwrap();
        assert!(reply.ends_with(&[10, 0, 1, 20]));

        let handle = bench.connect(service);
        for message in [query("db.ec2.internal", TYPE_A), query("example.com", TYPE_A)] {
            bench.send(handle, &frame(&message));
            let mut reply = Vec::new();
            assert!(bench.run_until(Duration::from_secs(3), |bench| {
                if let Some(forward) = bench.service.take_forward() {
                    assert!(forward.tcp);
                    let long = upstream(&forward.query, 3000);
                    bench.service.forward_reply(bench.now, &long);
                }
                reply.extend(bench.received(handle));
                framed(&reply).is_some()
            }));
            assert_eq!(framed(&reply).unwrap().0[..2], ID);
        }
        bench.tcp(handle).close();
        bench.settle();
    }
    assert_eq!(bench.service.counters().dns_forwarded, 2);
    // Nobody answers: the guest is told.
    let reply = bench.ask(SocketAddr::new(DNS_V4.into(), 53), &query("example.net", TYPE_A)).unwrap();
    assert_eq!(reply[3] & 0xf, 2);
    assert_eq!(bench.service.counters().dns_failed, 1);
    assert!(bench.tapped.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_message_is_answered_with_its_id_or_ignored(
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        reply in proptest::collection::vec(any::<u8>(), 0..300),
        prefix in any::<bool>(),
    ) {
        let message = if prefix { [&query("a.b", TYPE_A)[..12], &noise].concat() } else { noise };
        let mut resolver = resolver();
        resolver.set_forwarding(true);
        if let Outcome::Answer(answer) = ask(&mut resolver, &message) {
            prop_assert_eq!(&answer[..2], &message[..2]);
        }
        if let Some(forward) = resolver.take_forward() {
            let reply = [&forward.query, &reply[..]].concat();
            resolver.reply(&reply, &mut Counters::default());
            resolver.reply(&reply[..reply.len() / 2], &mut Counters::default());
        }
    }
}
