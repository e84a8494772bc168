//! DHCP server (RFC 2131) for the one address of the interface.
//!
//! ```text
//!   DISCOVER ───────────────────────────────▶ OFFER
//!   REQUEST of our address ─────────────────▶ ACK     (selecting, init-reboot, renewing, rebinding)
//!   REQUEST of another address ─────────────▶ NAK
//!   REQUEST meant for another server, RELEASE, DECLINE, relayed or foreign ─▶ nothing
//!   INFORM ─────────────────────────────────▶ ACK without address and lease time
//! ```
//!
//! The address of an interface never changes, so there is no lease to store: the server is a pure
//! function of the interface's spec.

use std::net::{IpAddr, Ipv4Addr};

use kiln_vmspec::LinkLocalSpec;

use crate::packet::Link;

/// Port of the server.
pub(crate) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// Lease time that EC2 gives, in seconds.
const LEASE_SECONDS: u32 = 3600;

/// Fixed part of a message: BOOTP fields, then the magic cookie.
const HEADER: usize = 240;
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Shortest BOOTP message that old clients take.
const MIN_MESSAGE: usize = 300;

const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
const ETHERNET: u8 = 1;
const BROADCAST_FLAG: u8 = 0x80;

/// Most name servers handed out, so that a reply fits the 576 bytes every client takes.
const MAX_NAME_SERVERS: usize = 8;

// Option codes (RFC 2132).
const PAD: u8 = 0;
const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const NAME_SERVERS: u8 = 6;
const HOST_NAME: u8 = 12;
const DOMAIN_NAME: u8 = 15;
const INTERFACE_MTU: u8 = 26;
const BROADCAST_ADDRESS: u8 = 28;
const REQUESTED_ADDRESS: u8 = 50;
const LEASE_TIME: u8 = 51;
const MESSAGE_TYPE: u8 = 53;
const SERVER_IDENTIFIER: u8 = 54;
const END: u8 = 255;

// Message types.
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
const INFORM: u8 = 8;

/// The fields of a client's message that decide the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    kind: u8,
    transaction: [u8; 4],
    broadcast: bool,
    client_address: Ipv4Addr,
    relay: Ipv4Addr,
    hardware_address: [u8; 6],
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

/// Parses a client's message. `None` for anything that is not one for Ethernet.
fn parse(bytes: &[u8]) -> Option<Message> {
    let (header, options) = bytes.split_first_chunk::<HEADER>()?;
    let [op, hardware_type, hardware_length, ..] = *header;
    if op != BOOTREQUEST || hardware_type != ETHERNET || hardware_length != 6 {
        return None;
    }
    if field::<4>(header, 236)? != MAGIC_COOKIE {
        return None;
    }
    let mut message = Message {
        kind: 0,
        transaction: field(header, 4)?,
        broadcast: header[10] & BROADCAST_FLAG != 0,
        client_address: field::<4>(header, 12)?.into(),
        relay: field::<4>(header, 24)?.into(),
        hardware_address: field(header, 28)?,
        requested: None,
        server: None,
    };
    let mut rest = options;
    while let Some((&code, after)) = rest.split_first() {
        match code {
            PAD => rest = after,
            END => break,
            _ => {
                let (&length, after) = after.split_first()?;
                let (value, after) = after.split_at_checked(usize::from(length))?;
                match code {
                    MESSAGE_TYPE => message.kind = *value.first()?,
                    REQUESTED_ADDRESS => message.requested = Some(<[u8; 4]>::try_from(value).ok()?.into()),
                    SERVER_IDENTIFIER => message.server = Some(<[u8; 4]>::try_from(value).ok()?.into()),
                    _ => {}
                }
                rest = after;
            }
        }
    }
    (message.kind != 0).then_some(message)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The frame that answers the message `bytes`, if it deserves one.
pub(crate) fn answer(link: &Link, spec: &LinkLocalSpec, mtu: u16, bytes: &[u8]) -> Option<Vec<u8>> {
    let message = parse(bytes)?;
    if message.hardware_address != link.guest.0 || !message.relay.is_unspecified() {
        return None;
    }
    let kind = decide(&message, spec)?;
    let to = if kind == NAK {
        Ipv4Addr::BROADCAST
    } else if !message.client_address.is_unspecified() {
        message.client_address
    } else if message.broadcast {
        Ipv4Addr::BROADCAST
    } else {
        spec.private_ipv4
    };
    let reply = encode(&message, kind, spec, mtu);
    let mut frame = link.udp((IpAddr::V4(spec.router), SERVER_PORT), (IpAddr::V4(to), CLIENT_PORT), &reply);
    if to.is_broadcast() {
        frame.get_mut(..6)?.fill(0xff);
    }
    Some(frame)
}

/// The type of the reply.
fn decide(message: &Message, spec: &LinkLocalSpec) -> Option<u8> {
    match message.kind {
        DISCOVER => Some(OFFER),
        INFORM => Some(ACK),
        REQUEST => {
            if message.server.is_some_and(|server| server != spec.router) {
                return None;
            }
            // Selecting and init-reboot name the address in an option, renewing and rebinding in
            // the header (RFC 2131 §4.3.2).
            let wanted = message
                .requested
                .or(Some(message.client_address))
                .filter(|address| !address.is_unspecified())?;
            Some(if wanted == spec.private_ipv4 { ACK } else { NAK })
        }
        _ => None,
    }
}

fn encode(message: &Message, kind: u8, spec: &LinkLocalSpec, mtu: u16) -> Vec<u8> {
    let inform = message.kind == INFORM;
    let leased = kind != NAK && !inform;
    let mut reply = Vec::with_capacity(MIN_MESSAGE * 2);
    reply.extend_from_slice(&[BOOTREPLY, ETHERNET, 6, 0]);
    reply.extend_from_slice(&message.transaction);
    reply.extend_from_slice(&[0, 0, if message.broadcast { BROADCAST_FLAG } else { 0 }, 0]);
    let client = if kind == NAK { Ipv4Addr::UNSPECIFIED } else { message.client_address };
    reply.extend_from_slice(&client.octets());
    let yours = if leased { spec.private_ipv4 } else { Ipv4Addr::UNSPECIFIED };
    reply.extend_from_slice(&yours.octets());
    reply.extend_from_slice(&[0; 8]); // next server, relay
    reply.extend_from_slice(&message.hardware_address);
    reply.resize(HEADER - MAGIC_COOKIE.len(), 0); // rest of the hardware address, names
    reply.extend_from_slice(&MAGIC_COOKIE);

    option(&mut reply, MESSAGE_TYPE, &[kind]);
    option(&mut reply, SERVER_IDENTIFIER, &spec.router.octets());
    if leased {
        option(&mut reply, LEASE_TIME, &LEASE_SECONDS.to_be_bytes());
    }
    if kind != NAK {
        let mask = netmask(spec.prefix_len);
        let broadcast = u32::from(spec.private_ipv4) | !mask;
        let servers: Vec<u8> = spec.dns.iter().take(MAX_NAME_SERVERS).flat_map(|a| a.octets()).collect();
        option(&mut reply, SUBNET_MASK, &mask.to_be_bytes());
        option(&mut reply, ROUTER, &spec.router.octets());
        option(&mut reply, NAME_SERVERS, &servers);
        option(&mut reply, INTERFACE_MTU, &mtu.to_be_bytes());
        option(&mut reply, BROADCAST_ADDRESS, &broadcast.to_be_bytes());
        option(&mut reply, HOST_NAME, spec.host_name.as_bytes());
        option(&mut reply, DOMAIN_NAME, spec.domain_name.as_bytes());
    }
    reply.push(END);
    if reply.len() < MIN_MESSAGE {
        reply.resize(MIN_MESSAGE, PAD);
    }
    reply
}

/// Appends an option; an empty or overlong value is left out.
fn option(reply: &mut Vec<u8>, code: u8, value: &[u8]) {
    if let (Ok(length @ 1..), true) = (u8::try_from(value.len()), !value.is_empty()) {
        reply.extend_from_slice(&[code, length]);
        reply.extend_from_slice(value);
    }
}

fn netmask(prefix_len: u8) -> u32 {
    u32::MAX.checked_shl(32u32.saturating_sub(u32::from(prefix_len))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{GUEST_IP, GUEST_MAC, spec};

    const TRANSACTION: [u8; 4] = [1, 2, 3, 4];
    const OTHER: [u8; 4] = [10, 0, 1, 99];

    /// A message of `kind` with the address in the header and further options.
    fn message(kind: u8, client_address: [u8; 4], options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[..4].copy_from_slice(&[BOOTREQUEST, ETHERNET, 6, 0]);
        bytes[4..8].copy_from_slice(&TRANSACTION);
        bytes[12..16].copy_from_slice(&client_address);
        bytes[28..34].copy_from_slice(&GUEST_MAC.octets());
        bytes[236..240].copy_from_slice(&MAGIC_COOKIE);
        option(&mut bytes, MESSAGE_TYPE, &[kind]);
        for (code, value) in options {
            option(&mut bytes, *code, value);
        }
        bytes.push(END);
        bytes
    }

    struct Reply {
        frame: Vec<u8>,
        options: Vec<(u8, Vec<u8>)>,
    }

    impl Reply {
        fn message(&self) -> &[u8] {
            &self.frame[42..]
        }

        fn option(&self, code: u8) -> Option<&[u8]> {
            self.options.iter().find(|(c, _)| *c == code).map(|(_, value)| &value[..])
        }
    }

    fn ask(bytes: &[u8]) -> Option<Reply> {
        let spec = spec();
        let frame = answer(&Link::new(GUEST_MAC, spec.router_mac), &spec, 9001, bytes)?;
        let mut options = Vec::new();
        let mut rest = &frame[42 + HEADER..];
        while let Some((&code, after)) = rest.split_first().filter(|(code, _)| **code != END) {
            let (value, after) = after[1..].split_at(usize::from(after[0]));
            options.push((code, value.to_vec()));
            rest = after;
        }
        Some(Reply { frame, options })
    }

    fn kind(bytes: &[u8]) -> Option<u8> {
        ask(bytes).and_then(|reply| reply.option(MESSAGE_TYPE).map(|value| value[0]))
    }

    #[test]
    fn offer_holds_what_ec2_offers() {
        let reply = ask(&message(DISCOVER, [0; 4], &[])).unwrap();
        assert_eq!(reply.message()[4..8], TRANSACTION);
        assert_eq!(reply.message()[16..20], GUEST_IP.octets());
        let options: Vec<_> = reply.options.iter().map(|(code, value)| (*code, &value[..])).collect();
        assert_eq!(
            options,
            [
                (MESSAGE_TYPE, &[OFFER][..]),
                (SERVER_IDENTIFIER, &[10, 0, 1, 1]),
                (LEASE_TIME, &[0, 0, 0x0e, 0x10]),
                (SUBNET_MASK, &[255, 255, 255, 0]),
                (ROUTER, &[10, 0, 1, 1]),
                (NAME_SERVERS, &[10, 0, 0, 2]),
                (INTERFACE_MTU, &[0x23, 0x29]),
                (BROADCAST_ADDRESS, &[10, 0, 1, 255]),
                (HOST_NAME, b"ip-10-0-1-10"),
                (DOMAIN_NAME, b"ec2.internal"),
            ]
        );
        assert!(reply.message().len() >= MIN_MESSAGE);
    }

    #[test]
    fn request_is_acknowledged_for_the_own_address_and_refused_for_others() {
        let own = &GUEST_IP.octets()[..];
        let server = &[10, 0, 1, 1][..];
        let zero = [0; 4];
        for (state, bytes, expected) in [
            (
                "selecting",
                message(REQUEST, zero, &[(REQUESTED_ADDRESS, own), (SERVER_IDENTIFIER, server)]),
                Some(ACK),
            ),
            (
                "selecting another address",
                message(REQUEST, zero, &[(REQUESTED_ADDRESS, &OTHER), (SERVER_IDENTIFIER, server)]),
                Some(NAK),
            ),
            (
                "selecting another server",
                message(REQUEST, zero, &[(REQUESTED_ADDRESS, own), (SERVER_IDENTIFIER, &OTHER)]),
                None,
            ),
            ("init-reboot", message(REQUEST, zero, &[(REQUESTED_ADDRESS, own)]), Some(ACK)),
            ("init-reboot elsewhere", message(REQUEST, zero, &[(REQUESTED_ADDRESS, &OTHER)]), Some(NAK)),
            ("renewing", message(REQUEST, GUEST_IP.octets(), &[]), Some(ACK)),
            ("rebinding elsewhere", message(REQUEST, OTHER, &[]), Some(NAK)),
            ("request for nothing", message(REQUEST, zero, &[]), None),
            ("release", message(7, GUEST_IP.octets(), &[]), None),
            ("decline", message(4, zero, &[(REQUESTED_ADDRESS, own)]), None),
            ("offer", message(OFFER, zero, &[]), None),
            ("ack", message(ACK, zero, &[]), None),
            ("force-renew", message(9, zero, &[]), None),
        ] {
            assert_eq!(kind(&bytes), expected, "{state}");
        }
    }

    #[test]
    fn inform_gets_parameters_without_a_lease() {
        let reply = ask(&message(INFORM, GUEST_IP.octets(), &[])).unwrap();
        assert_eq!(reply.option(MESSAGE_TYPE), Some(&[ACK][..]));
        assert_eq!(reply.option(LEASE_TIME), None);
        assert_eq!(reply.message()[16..20], [0; 4]);
        assert!(reply.option(NAME_SERVERS).is_some());
    }

    #[test]
    fn reply_goes_where_the_client_can_hear_it() {
        let ends = |bytes: &[u8]| {
            let frame = ask(bytes).unwrap().frame;
            (frame[..6].to_vec(), frame[30..34].to_vec(), frame[34..38].to_vec())
        };
        let guest = GUEST_MAC.octets().to_vec();
        let ports = vec![0, 67, 0, 68];
        let own = GUEST_IP.octets().to_vec();
        let mut broadcast = message(DISCOVER, [0; 4], &[]);
        assert_eq!(ends(&broadcast), (guest.clone(), own.clone(), ports.clone()));
        broadcast[10] = BROADCAST_FLAG;
        assert_eq!(ends(&broadcast), (vec![0xff; 6], vec![255; 4], ports.clone()));
        assert_eq!(ends(&message(REQUEST, GUEST_IP.octets(), &[])), (guest, own, ports.clone()));
        let nak = message(REQUEST, [0; 4], &[(REQUESTED_ADDRESS, &OTHER)]);
        assert_eq!(ends(&nak), (vec![0xff; 6], vec![255; 4], ports));
    }

    #[test]
    fn foreign_relayed_and_broken_messages_are_ignored() {
        let good = message(DISCOVER, [0; 4], &[]);
        let changed = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        for (what, bytes) in [
            ("reply", changed(0, BOOTREPLY)),
            ("hardware type", changed(1, 6)),
            ("hardware length", changed(2, 16)),
            ("relay", changed(24, 10)),
            ("other client", changed(33, 0xee)),
            ("cookie", changed(236, 0)),
            ("no type", changed(240, 200)),
            ("type 0", changed(242, 0)),
            ("empty", Vec::new()),
            ("BOOTP", good[..236].to_vec()),
            ("no options", good[..240].to_vec()),
            ("cut option", good[..242].to_vec()),
            ("long option", [&good[..243], &[12, 200, 1]].concat()),
            ("short address", message(REQUEST, [0; 4], &[(REQUESTED_ADDRESS, &[1, 2, 3])])),
        ] {
            assert_eq!(kind(&bytes), None, "{what}");
        }
        assert_eq!(kind(&[&good[..240], &[0, 0, 0], &good[240..]].concat()), Some(OFFER), "padding");
    }

    #[test]
    fn reply_fits_576_bytes_whatever_the_spec() {
        let mut spec = spec();
        spec.dns = vec![Ipv4Addr::new(10, 0, 0, 2); 100];
        spec.host_name = "h".repeat(63);
        spec.domain_name = "d".repeat(100);
        let message = parse(&message(DISCOVER, [0; 4], &[])).unwrap();
        assert!(encode(&message, OFFER, &spec, 9001).len() <= 548);
        spec.domain_name = "d".repeat(256);
        encode(&message, OFFER, &spec, 9001);
        for (prefix_len, mask) in
            [(0, 0), (16, 0xffff_0000), (28, 0xffff_fff0), (32, u32::MAX), (40, u32::MAX)]
        {
            assert_eq!(netmask(prefix_len), mask);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn any_options_are_answered_or_ignored(noise in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut bytes = message(DISCOVER, [0; 4], &[]);
            bytes.pop();
            bytes.extend(&noise);
            if let Some(reply) = ask(&bytes) {
                prop_assert!(reply.message().len() <= 576);
            }
            ask(&noise);
        }
    }
}
