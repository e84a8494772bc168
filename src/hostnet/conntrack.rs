//! Forgetting tracked connections, in the calling thread's network namespace.
//!
//! The filter lets pass whatever belongs to a connection that it has seen begin. So an address that
//! is given to another interface must not inherit connections, and those that must end with a rule
//! have to be forgotten. The kernel deletes connections only one by one or all at once, so they are
//! listed, and those in question are named for deletion.
//!
//! Attributes are those of `nfnetlink_conntrack.h`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kiln_model::security::{Message, Packet};
use rtnetlink::sys::Socket;

use crate::error::HostNetError;
use crate::nfnetlink::{
    self, Attributes, Messages, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, message,
};

const IPCTNL_MSG_CT_NEW: u16 = 0x0100;
const IPCTNL_MSG_CT_GET: u16 = 0x0101;
const IPCTNL_MSG_CT_DELETE: u16 = 0x0102;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_TYPE: u16 = 5;
const CTA_PROTO_ICMP_CODE: u16 = 6;
const CTA_PROTO_ICMPV6_TYPE: u16 = 8;
const CTA_PROTO_ICMPV6_CODE: u16 = 9;

const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Listings made at most: the table may change while it is listed.
const MAX_PASSES: usize = 3;

/// A connection as it was begun, and as its answers come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connection {
    /// Its first packet.
    pub begun: Packet,
    /// Source and destination of answers, which differ where addresses are translated.
    pub answers: (IpAddr, IpAddr),
}

/// Deletes every tracked connection from, to or translated to `address`; tells how many.
pub(crate) fn forget(address: IpAddr) -> Result<usize, HostNetError> {
    forget_all(&format!("of {address}"), |connection| {
        let Connection { begun, answers } = connection;
        [begun.source, begun.destination, answers.0, answers.1].contains(&address)
    })
}

/// Deletes every tracked connection that `wanted` says; tells how many. `which` is for errors.
pub(crate) fn forget_all(which: &str, wanted: impl Fn(&Connection) -> bool) -> Result<usize, HostNetError> {
    let failed = |source| HostNetError::Netlink { action: format!("forgetting connections {which}"), source };
    let socket = nfnetlink::open().map_err(failed)?;
    let mut forgotten = 0;
    for family in [AF_INET, AF_INET6] {
        for _ in 0..MAX_PASSES {
            let found = list(&socket, family, &wanted).map_err(failed)?;
            if found.is_empty() {
                break;
            }
            for connection in found {
                forgotten += usize::from(delete(&socket, family, &connection).map_err(failed)?);
            }
        }
    }
    nfnetlink::close(socket);
    Ok(forgotten)
}

/// Attributes that name each connection that is wanted.
fn list(socket: &Socket, family: u8, wanted: &impl Fn(&Connection) -> bool) -> io::Result<Vec<Vec<u8>>> {
    socket.send(&message(IPCTNL_MSG_CT_GET, NLM_F_REQUEST | NLM_F_DUMP, 0, family, 0, &[]), 0)?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for message in Messages(&bytes) {
            match message.kind {
                IPCTNL_MSG_CT_NEW => {
                    found.extend(parse(message.body).filter(|(c, _)| wanted(c)).map(|(_, name)| name));
                }
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => message.acknowledged()?,
                _ => {}
            }
        }
    }
}

/// Deletes one connection; false if it has gone by itself.
fn delete(socket: &Socket, family: u8, name: &[u8]) -> io::Result<bool> {
    socket.send(&message(IPCTNL_MSG_CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, 0, family, 0, name), 0)?;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for message in Messages(&bytes) {
            if message.kind == NLMSG_ERROR {
                return match message.acknowledged() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                    result => result.map(|()| true),
                };
            }
        }
    }
}

/// The connection that a listing tells of, and the attributes that name it.
fn parse(body: &[u8]) -> Option<(Connection, Vec<u8>)> {
    let mut name = Vec::new();
    let (mut begun, mut answers) = (None, None);
    for attribute in Attributes(body) {
        match attribute.kind {
            CTA_TUPLE_ORIG => begun = packet(attribute.value),
            CTA_TUPLE_REPLY => {
                answers = packet(attribute.value);
                continue;
            }
            CTA_ID | CTA_ZONE => {}
            _ => continue,
        }
        name.extend_from_slice(attribute.whole);
    }
    let begun = begun?;
    let answers = answers.map(|answers| (answers.source, answers.destination))?;
    Some((Connection { begun, answers }, name))
}

/// What one direction of a connection looks like.
fn packet(tuple: &[u8]) -> Option<Packet> {
    let inner = |wanted| Attributes(tuple).find(|part| part.kind == wanted).map(|part| part.value);
    let ip = inner(CTA_TUPLE_IP)?;
    let address = |ipv4, ipv6| {
        let part = Attributes(ip).find(|part| part.kind == ipv4 || part.kind == ipv6)?;
        Some(match part.kind == ipv4 {
            true => IpAddr::V4(Ipv4Addr::from(*part.value.first_chunk::<4>()?)),
            false => IpAddr::V6(Ipv6Addr::from(*part.value.first_chunk::<16>()?)),
        })
    };
    let transport = inner(CTA_TUPLE_PROTO)?;
    let field = |wanted| Attributes(transport).find(|part| part.kind == wanted).map(|part| part.value);
    let byte = |wanted| field(wanted)?.first().copied();
    let port = || Some(u16::from_be_bytes(*field(CTA_PROTO_DST_PORT)?.first_chunk()?));
    let message = match byte(CTA_PROTO_NUM)? {
        IPPROTO_TCP => Message::Tcp { port: port()? },
        IPPROTO_UDP => Message::Udp { port: port()? },
        IPPROTO_ICMP => Message::Icmp { kind: byte(CTA_PROTO_ICMP_TYPE)?, code: byte(CTA_PROTO_ICMP_CODE)? },
        IPPROTO_ICMPV6 => {
            Message::Icmpv6 { kind: byte(CTA_PROTO_ICMPV6_TYPE)?, code: byte(CTA_PROTO_ICMPV6_CODE)? }
        }
        protocol => Message::Other { protocol },
    };
    Some(Packet {
        source: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        destination: address(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfnetlink::{attribute, nested};

    fn tuple(kind: u16, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let ip = [attribute(CTA_IP_V4_SRC, &source), attribute(CTA_IP_V4_DST, &destination)].concat();
        let transport =
            [attribute(CTA_PROTO_NUM, &[IPPROTO_TCP]), attribute(CTA_PROTO_DST_PORT, &[0, 22])].concat();
        nested(kind, &[nested(CTA_TUPLE_IP, &ip), nested(CTA_TUPLE_PROTO, &transport)].concat())
    }

    #[test]
    fn connection_is_named_by_its_original_direction_and_id() {
        let original = tuple(CTA_TUPLE_ORIG, [10, 0, 0, 4], [8, 8, 8, 8]);
        let reply = tuple(CTA_TUPLE_REPLY, [8, 8, 8, 8], [192, 0, 2, 1]);
        let id = attribute(CTA_ID, &[1, 2, 3, 4]);
        let body = [original.clone(), reply, attribute(7, &[0; 5]), id.clone()].concat();
        let (connection, name) = parse(&body).unwrap();
        assert_eq!(name, [original, id].concat());
        let begun = Packet {
            source: [10, 0, 0, 4].into(),
            destination: [8, 8, 8, 8].into(),
            message: Message::Tcp { port: 22 },
        };
        let answers = ([8, 8, 8, 8].into(), [192, 0, 2, 1].into());
        assert_eq!(connection, Connection { begun, answers });
    }

    #[test]
    fn ping_over_ipv6_is_read() {
        let tuple = |kind, message: u8, ends: [u16; 2]| {
            let [source, destination] = ends.map(|end| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, end));
            let ip =
                [attribute(CTA_IP_V6_SRC, &source.octets()), attribute(CTA_IP_V6_DST, &destination.octets())]
                    .concat();
            let transport = [
                attribute(CTA_PROTO_NUM, &[IPPROTO_ICMPV6]),
                attribute(CTA_PROTO_ICMPV6_TYPE, &[message]),
                attribute(CTA_PROTO_ICMPV6_CODE, &[0]),
            ];
            nested(kind, &[nested(CTA_TUPLE_IP, &ip), nested(CTA_TUPLE_PROTO, &transport.concat())].concat())
        };
        let body = [tuple(CTA_TUPLE_ORIG, 128, [4, 5]), tuple(CTA_TUPLE_REPLY, 129, [5, 4])].concat();
        let (Connection { begun, answers }, _) = parse(&body).unwrap();
        assert_eq!((begun.source, begun.destination), (answers.1, answers.0));
        assert_eq!(begun.message, Message::ECHO_REQUEST_V6);
    }

    #[test]
    fn incomplete_listings_are_no_connections() {
        let original = tuple(CTA_TUPLE_ORIG, [10, 0, 0, 4], [8, 8, 8, 8]);
        let reply = tuple(CTA_TUPLE_REPLY, [8, 8, 8, 8], [10, 0, 0, 4]);
        let whole = [original.clone(), reply].concat();
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), None, "{len} bytes");
        }
    }
}
