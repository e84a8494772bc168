//! Messages of netfilter's netlink: a header of 16 bytes, 4 bytes of family, attributes.

use std::io;
use std::thread;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// Netlink header and family.
const HEADER: usize = 20;
/// The bits of an attribute's type that name it; the others say that it is nested or big endian.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// An attribute that holds attributes.
const NLA_F_NESTED: u16 = 0x8000;

/// Kind of an answer that says how a request ended.
pub(crate) const NLMSG_ERROR: u16 = 2;
/// Kind of the end of a listing.
pub(crate) const NLMSG_DONE: u16 = 3;
/// Every request.
pub(crate) const NLM_F_REQUEST: u16 = 0x001;
/// Asks for an answer.
pub(crate) const NLM_F_ACK: u16 = 0x004;
/// Asks for a listing.
pub(crate) const NLM_F_DUMP: u16 = 0x300;
/// Makes what is not there.
pub(crate) const NLM_F_CREATE: u16 = 0x400;
/// Makes it the last of its kind.
pub(crate) const NLM_F_APPEND: u16 = 0x800;

/// Opens a socket to the netfilter of the calling thread's network namespace.
pub(crate) fn open() -> io::Result<Socket> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Closes it without waiting. The kernel keeps whoever closes such a socket until nobody looks any
/// more at what was removed: some ten milliseconds that are no part of the change, which has happened.
pub(crate) fn close(socket: Socket) {
    // Where there can be no thread it is closed here.
    let _ = thread::Builder::new().name("netfilter-close".to_owned()).spawn(move || drop(socket));
}

/// A request: header, family with the number of a resource, attributes.
pub(crate) fn message(
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    body: &[u8],
) -> Vec<u8> {
    let len = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// An attribute with its header and padding.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute that holds others.
pub(crate) fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, attributes)
}

/// A message of the kernel.
pub(crate) struct Message<'a> {
    /// Kind.
    pub kind: u16,
    /// Number of the request that it answers.
    pub sequence: u32,
    /// After the header and the family; for errors, after the header.
    pub body: &'a [u8],
}

impl Message<'_> {
    /// The outcome that an error message tells.
    pub fn acknowledged(&self) -> io::Result<()> {
        match self.body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Messages of a datagram.
pub(crate) struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::try_from(u32::from_ne_bytes(*self.0.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*self.0.get(4..)?.first_chunk()?);
        let whole = self.0.get(..len)?;
        let sequence = u32::from_ne_bytes(*whole.get(8..)?.first_chunk()?);
        let skip = if matches!(kind, NLMSG_ERROR | NLMSG_DONE) { HEADER - 4 } else { HEADER };
        let body = whole.get(skip..)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, sequence, body })
    }
}

/// An attribute.
pub(crate) struct Attribute<'a> {
    /// Kind.
    pub kind: u16,
    /// Without header and padding.
    pub value: &'a [u8],
    /// With both.
    pub whole: &'a [u8],
}

/// Attributes of a message or of another attribute.
pub(crate) struct Attributes<'a>(pub &'a [u8]);

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

    #[test]
    fn damaged_messages_end_the_iteration() {
        for bytes in [&[][..], &[1, 0], &[255, 255, 1, 0, 0], &[3, 0, 1, 0], &[0, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(Attributes(bytes).count() <= 1);
            assert_eq!(Messages(bytes).count(), 0);
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let body = [attribute(1, &[7; 5]), nested(2, &attribute(3, &[8]))].concat();
        let bytes = message(0x0a0c, NLM_F_REQUEST, 9, 1, 10, &body);
        let read: Vec<_> = Messages(&bytes).map(|m| (m.kind, m.sequence, m.body.to_vec())).collect();
        assert_eq!(read, [(0x0a0c, 9, body.clone())]);
        let kinds: Vec<_> = Attributes(&body).map(|a| (a.kind, a.value.len())).collect();
        assert_eq!(kinds, [(1, 5), (2, 8)]);
    }
}
