//! Forgetting tracked connections of an address, in the calling thread's network namespace.
//!
//! An address that is given to another interface must not inherit connections: the filter lets
//! pass whatever belongs to one that it has seen begin. The kernel deletes connections only one by
//! one or all at once, so they are listed and those of the address are named for deletion.
//!
//! Messages are those of `nfnetlink_conntrack.h`: a netlink header of 16 bytes, 4 bytes of family,
//! attributes.

use std::io;
use std::net::Ipv4Addr;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::error::HostNetError;

const IPCTNL_MSG_CT_NEW: u16 = 0x0100;
const IPCTNL_MSG_CT_GET: u16 = 0x0101;
const IPCTNL_MSG_CT_DELETE: u16 = 0x0102;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x001;
const NLM_F_ACK: u16 = 0x004;
const NLM_F_DUMP: u16 = 0x300;
/// The bits of an attribute's type that name it; the others say that it is nested or big endian.
const NLA_TYPE_MASK: u16 = 0x3fff;
const AF_INET: u8 = 2;

/// Netlink header and family.
const HEADER: usize = 20;
/// Listings made at most: the table may change while it is listed.
const MAX_PASSES: usize = 3;

/// Deletes every tracked IPv4 connection from, to or translated to `address`; tells how many.
pub(crate) fn forget(address: Ipv4Addr) -> Result<usize, HostNetError> {
    let failed =
        |source| HostNetError::Netlink { action: format!("forgetting connections of {address}"), source };
    let socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
    let mut forgotten = 0;
    for _ in 0..MAX_PASSES {
        let found = list(&socket, address).map_err(failed)?;
        if found.is_empty() {
            break;
        }
        for connection in found {
            forgotten += usize::from(delete(&socket, &connection).map_err(failed)?);
        }
    }
    Ok(forgotten)
}

/// Attributes that name each connection of `address`.
fn list(socket: &Socket, address: Ipv4Addr) -> io::Result<Vec<Vec<u8>>> {
    socket.send(&message(IPCTNL_MSG_CT_GET, NLM_F_REQUEST | NLM_F_DUMP, &[]), 0)?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for message in Messages(&bytes) {
            match message.kind {
                IPCTNL_MSG_CT_NEW => found.extend(name_of(message.body, address)),
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => message.acknowledged()?,
                _ => {}
            }
        }
    }
}

/// Deletes one connection; false if it has gone by itself.
fn delete(socket: &Socket, name: &[u8]) -> io::Result<bool> {
    socket.send(&message(IPCTNL_MSG_CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, name), 0)?;
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

/// What names the connection in `body`, if one of its ends is `address`.
fn name_of(body: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    let mut matches = false;
    for attribute in Attributes(body) {
        match attribute.kind {
            CTA_TUPLE_ORIG | CTA_TUPLE_REPLY => {
                matches |= Attributes(attribute.value)
                    .filter(|inner| inner.kind == CTA_TUPLE_IP)
                    .flat_map(|inner| Attributes(inner.value))
                    .any(|ip| {
                        matches!(ip.kind, CTA_IP_V4_SRC | CTA_IP_V4_DST) && ip.value == address.octets()
                    });
            }
            CTA_ID | CTA_ZONE => {}
            _ => continue,
        }
        if attribute.kind != CTA_TUPLE_REPLY {
            name.extend_from_slice(attribute.whole);
        }
    }
    matches.then_some(name)
}

/// A request: header, family, attributes.
fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([AF_INET, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// A message of the kernel.
struct Message<'a> {
    kind: u16,
    /// After the header and the family; for errors, after the header.
    body: &'a [u8],
}

impl Message<'_> {
    /// The outcome that an error message tells.
    fn acknowledged(&self) -> io::Result<()> {
        match self.body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Messages of a datagram.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::try_from(u32::from_ne_bytes(*self.0.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*self.0.get(4..)?.first_chunk()?);
        let whole = self.0.get(..len)?;
        let skip = if matches!(kind, NLMSG_ERROR | NLMSG_DONE) { HEADER - 4 } else { HEADER };
        let body = whole.get(skip..)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, body })
    }
}

/// An attribute.
struct Attribute<'a> {
    kind: u16,
    value: &'a [u8],
    /// With its header and padding.
    whole: &'a [u8],
}

/// Attributes of a message or of another attribute.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk()?) & NLA_TYPE_MASK;
        let value = self.0.get(4..len)?;
        let (whole, rest) = self.0.split_at_checked(len.next_multiple_of(4)).unwrap_or((self.0, &[]));
        self.0 = rest;
        Some(Attribute { kind, value, whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple(kind: u16, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let ip = [attribute(CTA_IP_V4_SRC, &source), attribute(CTA_IP_V4_DST, &destination)].concat();
        attribute(kind | 0x8000, &attribute(CTA_TUPLE_IP | 0x8000, &ip))
    }

    #[test]
    fn connection_is_named_by_its_original_direction_and_id() {
        let original = tuple(CTA_TUPLE_ORIG, [10, 0, 0, 4], [8, 8, 8, 8]);
        let reply = tuple(CTA_TUPLE_REPLY, [8, 8, 8, 8], [192, 0, 2, 1]);
        let id = attribute(CTA_ID, &[1, 2, 3, 4]);
        let body = [original.clone(), reply, attribute(7, &[0; 5]), id.clone()].concat();
        let named = Some([original, id].concat());
        for end in [[10, 0, 0, 4], [8, 8, 8, 8], [192, 0, 2, 1]] {
            assert_eq!(name_of(&body, Ipv4Addr::from(end)), named);
        }
        assert_eq!(name_of(&body, Ipv4Addr::new(10, 0, 0, 5)), None);
    }

    #[test]
    fn damaged_messages_end_the_iteration() {
        for bytes in [&[][..], &[1, 0], &[255, 255, 1, 0, 0], &[3, 0, 1, 0], &[0, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(Attributes(bytes).count() <= 1);
            assert_eq!(Messages(bytes).count(), 0);
        }
    }
}
