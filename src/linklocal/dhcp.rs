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
