//! Adding and removing elements of sets without `nft`, which reads the whole table back first.
//!
//! ```text
//!  batch begin · (new | delete) elements … · batch end    one datagram, one transaction
//! ```
//! The cost is that of the elements, whatever else is in the table. Attributes are those of
//! `nf_tables.h`; keys are what the kernel compares: each field padded to four bytes.

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::error::HostNetError;
use crate::names::TABLE;
use crate::nfnetlink::{
    Messages, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NLMSG_ERROR, attribute, message, nested,
};
use crate::nft::{Element, Family, Moves, Place};

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWSETELEM: u16 = NFNL_SUBSYS_NFTABLES << 8 | 12;
const NFT_MSG_DELSETELEM: u16 = NFNL_SUBSYS_NFTABLES << 8 | 14;

const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;

const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const NFPROTO_ARP: u8 = 3;
/// Bytes of an interface name.
const IFNAMSIZ: usize = 16;
/// Most elements of one batch: it must fit into the socket's buffer.
const MAX_ELEMENTS: usize = 512;

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of it happened.
    Done,
    /// None of it happened: it is too much for one batch, or the table is not what was expected.
    Refused,
}

/// Carries out `moves` as one transaction in the calling thread's network namespace.
pub(crate) fn apply(moves: &Moves<'_>) -> Result<Outcome, HostNetError> {
    let failed = |source| HostNetError::Netlink { action: "changing sets".to_owned(), source };
    let (batch, expected) = match batch(moves) {
        Some(batch) => batch,
        None => return Ok(Outcome::Refused),
    };
    let socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
    socket.send(&batch, 0).map_err(failed)?;
    let mut answered = 0;
    while answered < expected {
        let (bytes, _) = socket.recv_from_full().map_err(failed)?;
        for message in Messages(&bytes).filter(|message| message.kind == NLMSG_ERROR) {
            if let Err(error) = message.acknowledged() {
                tracing::debug!(%error, element = message.sequence, "the kernel refused a batch");
                return Ok(Outcome::Refused);
            }
            answered += 1;
        }
    }
    Ok(Outcome::Done)
}

/// The datagram and the number of answers to it; `None` if it cannot be said in one.
fn batch(moves: &Moves<'_>) -> Option<(Vec<u8>, usize)> {
    let count = moves.add.len() + moves.remove.len();
    if count > MAX_ELEMENTS {
        return None;
    }
    let frame = |kind| message(kind, NLM_F_REQUEST, 0, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES, &[]);
    let mut bytes = frame(NFNL_MSG_BATCH_BEGIN);
    let removals = moves.remove.iter().map(|element| (NFT_MSG_DELSETELEM, 0, element));
    let additions = moves.add.iter().map(|element| (NFT_MSG_NEWSETELEM, NLM_F_CREATE, element));
    for (sequence, (kind, flags, (place, element))) in (1..).zip(removals.chain(additions)) {
        let family = match place.family {
            Family::Inet => NFPROTO_INET,
            Family::Arp => NFPROTO_ARP,
        };
        let flags = flags | NLM_F_REQUEST | NLM_F_ACK;
        bytes.extend(message(kind, flags, sequence, family, 0, &body(place, element)?));
    }
    bytes.extend(frame(NFNL_MSG_BATCH_END));
    Some((bytes, count))
}

fn body(place: &Place, element: &Element) -> Option<Vec<u8>> {
    let text = |kind, text: &str| attribute(kind, &[text.as_bytes(), &[0]].concat());
    let key = nested(NFTA_SET_ELEM_KEY, &attribute(NFTA_DATA_VALUE, &key(element)?));
    let list = nested(NFTA_SET_ELEM_LIST_ELEMENTS, &nested(NFTA_LIST_ELEM, &key));
    Some([text(NFTA_SET_ELEM_LIST_TABLE, TABLE), text(NFTA_SET_ELEM_LIST_SET, &place.set), list].concat())
}

/// What the kernel compares; `None` for elements with a value or an end of range.
fn key(element: &Element) -> Option<Vec<u8>> {
    let tap = |tap: &String| {
        let mut name = tap.as_bytes().to_vec();
        name.resize(IFNAMSIZ, 0);
        name
    };
    Some(match element {
        Element::Tap(name) => tap(name),
        Element::TapMac(name, mac) => [&tap(name)[..], &mac.octets(), &[0, 0]].concat(),
        Element::Source(name, mac, address) => {
            [&tap(name)[..], &mac.octets(), &[0, 0], &address.octets()].concat()
        }
        Element::Address(address) => address.octets().to_vec(),
        Element::Counter(..) | Element::Chain(..) | Element::Range(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use kiln_model::MacAddr;

    use super::*;

    #[test]
    fn keys_are_padded_as_the_kernel_compares_them() {
        let mac = MacAddr::new([2, 0, 0, 0, 0, 1]);
        let source = Element::Source("kt1".into(), mac, [10, 0, 0, 4].into());
        let bytes = key(&source).unwrap();
        assert_eq!(bytes.len(), 16 + 8 + 4);
        assert_eq!(
            (&bytes[..4], &bytes[16..22], &bytes[24..]),
            (&b"kt1\0"[..], &mac.octets()[..], &[10, 0, 0, 4][..])
        );
    }

    #[test]
    fn too_many_elements_are_not_one_batch() {
        let element =
            (Place { family: Family::Inet, set: "s".into() }, Element::Address([10, 0, 0, 4].into()));
        let moves = Moves { add: vec![&element; MAX_ELEMENTS + 1], remove: vec![] };
        assert!(batch(&moves).is_none());
    }
}
