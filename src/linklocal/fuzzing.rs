//! Entry points for fuzzing: any bytes in, and what must hold whatever they are.

#![expect(clippy::panic, reason = "a panic is how a fuzz target says that something is wrong")]

use std::sync::Arc;
use std::time::Duration;

use kiln_vmspec::HttpTokens;
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpControl, TcpPacket};

use crate::address::{DNS_V4, IMDS_V4, NTP_V4, link_local_v6};
use crate::counters::Counters;
use crate::dns::{Asker, Outcome, Resolver};
use crate::fixtures::{
    GUEST_IP, GUEST_MAC, IMDS, MTU, WALL, dual_spec, from_guest, metadata, segment_to, spec,
};
use crate::imds::Imds;
use crate::packet::Link;
use crate::secret::Unpredictable;
use crate::tcp::MAX_CONNECTIONS;
use crate::{LinkLocal, Time, dhcp, dhcpv6, ntp};

const START: Time = Time { uptime: Duration::from_secs(1), wall: WALL };

/// A DHCP message.
pub fn dhcp(bytes: &[u8]) {
    let spec = spec();
    let link = Link::new(GUEST_MAC, spec.router_mac);
    if let Some(frame) = dhcp::answer(&link, &spec, MTU, bytes) {
        assert!(frame.len() <= 14 + 576);
    }
}

/// A DHCPv6 message.
pub fn dhcpv6(bytes: &[u8]) {
    let spec = dual_spec();
    let link = Link::new(GUEST_MAC, spec.router_mac);
    let from = link_local_v6(GUEST_MAC);
    if let Some(frame) = dhcpv6::answer(&link, &spec, from, bytes) {
        assert!(frame.len() <= 14 + 1280);
    }
}

/// What arrives on a connection to the metadata service, request after request.
pub fn imds_http(bytes: &[u8]) {
    let mut imds = Imds::new(Arc::new(metadata()), &[3; 32]);
    let mut counters = Counters::default();
    let mut rest = bytes;
    while let Some(reply) = imds.answer(START, rest, &mut counters) {
        assert!(reply.bytes.starts_with(b"HTTP/1.1 ") && reply.consumed <= rest.len());
        if reply.close {
            break;
        }
        assert!(reply.consumed > 0, "no progress");
        rest = rest.get(reply.consumed..).unwrap_or_default();
    }
}

/// A DNS query and, behind it, what another resolver says to it; the first byte is the length of
/// the query.
pub fn dns(bytes: &[u8]) {
    let Some((&length, rest)) = bytes.split_first() else { return };
    let (query, reply) = rest.split_at(rest.len().min(usize::from(length)));
    let mut resolver = Resolver::new("ec2.internal", Unpredictable::new(&[9; 32]));
    let mut snapshot = metadata();
    snapshot.host_names = [("a.ec2.internal".to_owned(), vec![GUEST_IP.into()])].into();
    resolver.set_snapshot(&snapshot);
    resolver.set_forwarding(true);
    let mut counters = Counters::default();
    let asker = Asker::Udp { guest: (GUEST_IP.into(), 1), service: (DNS_V4.into(), 53) };
    match resolver.ask(START, asker, query, &mut counters) {
        Outcome::Answer(answer) => assert_eq!(answer.get(..2), query.get(..2)),
        Outcome::Later => {
            let Some(forward) = resolver.take_forward() else { panic!("nothing to forward") };
            let reply = [&forward.id.to_be_bytes()[..], reply].concat();
            if let Some((_, answer)) = resolver.reply(&reply, &mut counters) {
                assert!(answer.get(..2) == query.get(..2) && answer.len() <= 1232);
            }
            let _ = resolver.fail(forward.id, &mut counters);
            assert_eq!(resolver.next_event(), None);
        }
        Outcome::Ignored => {}
    }
}

/// An NTP message.
pub fn ntp(bytes: &[u8]) {
    if let Some(reply) = ntp::answer(bytes, WALL) {
        assert_eq!(bytes.get(40..48), reply.get(24..32));
    }
}

/// A guest that does anything: `bytes` are a program of frames, well-formed and not, steps of time,
/// and taking or not taking what comes.
pub fn frames(bytes: &[u8]) {
    let mut guest = Guest {
        service: LinkLocal::new(&dual_spec(), GUEST_MAC, MTU, Arc::new(metadata()), [5; 32], START),
        now: START,
        seq: [1000; PORTS],
        ack: [0; PORTS],
    };
    guest.service.enable_dns_forwarding();
    let mut program = Program(bytes);
    while let Some(operation) = program.byte() {
        guest.run(operation, &mut program);
        assert!(guest.service.connections() <= MAX_CONNECTIONS);
    }
    // Whatever happened, it all ends: every wait is that for a timer, and there are not many.
    for _ in 0..2_000 {
        guest.drain();
        match guest.service.next_deadline(guest.now) {
            Some(wait) => guest.wait(wait),
            None => break,
        }
    }
    assert_eq!(guest.service.next_deadline(guest.now), None, "no rest");
    assert_eq!(guest.service.connections(), 0, "a connection outlives all deadlines");
}

/// Source ports that the program uses.
const PORTS: usize = 4;

struct Program<'p>(&'p [u8]);

impl<'p> Program<'p> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn number(&mut self) -> u16 {
        u16::from_be_bytes([self.byte().unwrap_or(0), self.byte().unwrap_or(0)])
    }

    fn bytes(&mut self, length: usize) -> &'p [u8] {
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

struct Guest {
    service: LinkLocal,
    now: Time,
    /// What comes next in the guest's own stream, by port.
    seq: [i32; PORTS],
    /// What comes next in the stream of the service.
    ack: [i32; PORTS],
}

impl Guest {
    fn run(&mut self, operation: u8, program: &mut Program<'_>) {
        match operation % 12 {
            0 => {
                let length = usize::from(program.number() % 2048);
                let frame = program.bytes(length);
                let _ = self.service.classifier().classify(frame);
                self.service.transmit(self.now, frame, operation & 0x80 != 0);
            }
            1 => {
                // An Ethernet frame of the guest with any contents.
                let kinds = [EthernetProtocol::Ipv4, EthernetProtocol::Ipv6, EthernetProtocol::Arp];
                let kind = kinds.get(usize::from(program.byte().unwrap_or(0)) % 3).copied();
                let length = usize::from(program.byte().unwrap_or(0));
                let contents = program.bytes(length);
                let mut frame = from_guest().frame(kind.unwrap_or(EthernetProtocol::Ipv4), contents.len());
                frame.truncate(14);
                frame.extend_from_slice(contents);
                self.service.transmit(self.now, &frame, true);
            }
            2 => {
                // An IP packet to a service with any payload.
                let to = match program.byte().unwrap_or(0) % 4 {
                    0 => IMDS_V4,
                    1 => DNS_V4,
                    2 => NTP_V4,
                    _ => spec().router,
                };
                let protocol = IpProtocol::from(program.byte().unwrap_or(6));
                let length = usize::from(program.byte().unwrap_or(0));
                let payload = program.bytes(length);
                let ends = (GUEST_IP.into(), to.into());
                let frame = from_guest().ip(ends, protocol, 64, payload.len(), |buffer| {
                    buffer.copy_from_slice(payload);
                });
                self.service.transmit(self.now, &frame, true);
            }
            3 => self.udp(program),
            4..=7 => self.tcp(operation, program),
            8 => self.wait(Duration::from_micros(u64::from(program.number()))),
            9 => self.wait(Duration::from_millis(u64::from(program.number()))),
            10 => self.drain(),
            _ => self.change(program),
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now.uptime += time;
        self.now.wall += time;
    }

    fn udp(&mut self, program: &mut Program<'_>) {
        let to = match program.byte().unwrap_or(0) % 3 {
            0 => (NTP_V4.into(), 123),
            1 => (DNS_V4.into(), 53),
            _ => (spec().router.into(), 67),
        };
        let length = usize::from(program.byte().unwrap_or(0));
        let frame = from_guest().udp((GUEST_IP.into(), 4000), to, program.bytes(length));
        self.service.transmit(self.now, &frame, false);
    }

    /// A segment whose numbers are near those that the connection is at.
    fn tcp(&mut self, operation: u8, program: &mut Program<'_>) {
        let flags = program.byte().unwrap_or(0);
        let port = usize::from(flags >> 6) % PORTS;
        let controls = [
            TcpControl::None,
            TcpControl::Psh,
            TcpControl::Syn,
            TcpControl::Fin,
            TcpControl::Rst,
            TcpControl::Psh,
        ];
        let control = controls.get(usize::from(flags & 0x7) % 6).copied().unwrap_or(TcpControl::None);
        let requests: [&[u8]; 4] = [
            b"GET /latest/user-data HTTP/1.1\r\nConnection: keep-alive\r\n\r\n",
            b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 9\r\n\r\n",
            b"GET /latest/meta-data/ HTTP/1.1\r\n\r\n",
            b"\0\x11ab\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01",
        ];
        let payload = if operation % 12 == 4 {
            let length = usize::from(program.byte().unwrap_or(0));
            program.bytes(length)
        } else if operation % 12 == 5 {
            requests.get(usize::from(program.byte().unwrap_or(0)) % 4).copied().unwrap_or_default()
        } else {
            &[]
        };
        let astray = |program: &mut Program<'_>| i32::from(program.byte().unwrap_or(0).cast_signed());
        let (seq_off, ack_off) =
            if operation & 0x40 == 0 { (0, 0) } else { (astray(program) * 100, astray(program) * 100) };
        let (Some(seq), Some(ack)) = (self.seq.get_mut(port), self.ack.get(port)) else { return };
        let number = seq.wrapping_add(seq_off);
        let acked = (control != TcpControl::Syn && flags & 0x20 == 0).then(|| ack.wrapping_add(ack_off));
        let to = if port == 3 { (DNS_V4, 53).into() } else { IMDS };
        let source = 3000 + u16::try_from(port).unwrap_or(0);
        let frame = segment_to(to, source, control, number, acked, payload);
        if seq_off == 0 {
            let length = payload.len() + usize::from(matches!(control, TcpControl::Syn | TcpControl::Fin));
            *seq = seq.wrapping_add(i32::try_from(length).unwrap_or(0));
        }
        self.service.transmit(self.now, &frame, false);
        if operation & 0x20 == 0 {
            self.drain();
        }
    }

    /// Takes all frames, looks at them, and checks that there is nothing left to do at this moment.
    fn drain(&mut self) {
        let mut taken = 0;
        while let Some(frame) = self.service.receive(self.now) {
            taken += 1;
            assert!(taken < 20_000, "endless frames");
            assert!(frame.len() <= 14 + usize::from(MTU), "a frame of {} bytes", frame.len());
            self.look(&frame);
        }
        assert_ne!(self.service.next_deadline(self.now), Some(Duration::ZERO), "nothing to send but no rest");
    }

    fn look(&mut self, frame: &[u8]) {
        let Ok(ethernet) = EthernetFrame::new_checked(frame) else { panic!("a frame without a header") };
        if ethernet.ethertype() != EthernetProtocol::Ipv4 {
            return;
        }
        let Ok(ip) = Ipv4Packet::new_checked(ethernet.payload()) else { panic!("a broken packet") };
        assert!(ip.verify_checksum());
        if ip.next_header() != IpProtocol::Tcp {
            return;
        }
        let Ok(tcp) = TcpPacket::new_checked(ip.payload()) else { panic!("a broken segment") };
        assert!(tcp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
        let port = usize::from(tcp.dst_port().wrapping_sub(3000));
        if let Some(ack) = self.ack.get_mut(port) {
            let length = i32::try_from(tcp.segment_len()).unwrap_or(0);
            *ack = tcp.seq_number().0.wrapping_add(length);
        }
    }

    /// What the control plane and the host do meanwhile.
    fn change(&mut self, program: &mut Program<'_>) {
        let choice = program.byte().unwrap_or(0);
        let mut snapshot = metadata();
        snapshot.options.endpoint_enabled = choice & 1 == 0;
        snapshot.options.ipv6_enabled = choice & 2 == 0;
        snapshot.options.hop_limit = choice;
        if choice & 4 == 0 {
            snapshot.options.tokens = HttpTokens::Required;
        }
        match choice >> 4 {
            0 => self.service.reseed([choice; 32]),
            1..=7 => {
                if let Some(forward) = self.service.take_forward() {
                    let length = usize::from(program.byte().unwrap_or(0));
                    let mut reply = forward.query;
                    reply.extend_from_slice(program.bytes(length));
                    if let Some(flags) = reply.get_mut(2) {
                        *flags |= 0x80;
                    }
                    self.service.forward_reply(self.now, &reply);
                }
            }
            _ => self.service.update_metadata(Arc::new(snapshot)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_program_of_frames(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            super::frames(&bytes);
        }

        #[test]
        fn any_bytes_for_each_parser(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            super::dhcp(&bytes);
            super::imds_http(&bytes);
            super::dns(&bytes);
            super::ntp(&bytes);
        }
    }
}
