//! Changing elements, counters and rules without `nft`, which reads the whole table back first.
//!
//! ```text
//!  batch begin · counters · emptied chain, its rules … · elements · counters that go · batch end
//!                            one datagram, one transaction
//! ```
//! The cost is that of what changes, whatever else is in the table. Attributes are those of
//! `nf_tables.h`; keys are what the kernel compares: each field padded to four bytes.

use std::io;
use std::net::IpAddr;

use rtnetlink::sys::Socket;

use crate::error::HostNetError;
use crate::expressions::{self, NFT_OBJECT_COUNTER, be32, text};
use crate::names::TABLE;
use crate::nfnetlink::{
    self, Messages, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NLMSG_ERROR, attribute, message,
    nested,
};
use crate::nft::{Edits, Element, Family, Line, Place};

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWRULE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 6;
const NFT_MSG_DELRULE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 8;
const NFT_MSG_NEWSETELEM: u16 = NFNL_SUBSYS_NFTABLES << 8 | 12;
const NFT_MSG_DELSETELEM: u16 = NFNL_SUBSYS_NFTABLES << 8 | 14;
const NFT_MSG_NEWOBJ: u16 = NFNL_SUBSYS_NFTABLES << 8 | 18;
const NFT_MSG_DELOBJ: u16 = NFNL_SUBSYS_NFTABLES << 8 | 20;

const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
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
/// Longest batch, in bytes: it must fit into the socket's buffer.
const MAX_BATCH: usize = 64 * 1024;

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of it happened.
    Done,
    /// None of it happened: it is too much for one batch, or the table is not what was expected.
    Refused,
}

/// Carries out `edits` as one transaction in the calling thread's network namespace.
pub(crate) fn apply(edits: &Edits<'_>) -> Result<Outcome, HostNetError> {
    let failed = |source| HostNetError::Netlink { action: "changing the filter".to_owned(), source };
    let Some(Batch { bytes, messages: expected }) = Batch::of(edits) else { return Ok(Outcome::Refused) };
    let socket = nfnetlink::open().map_err(failed)?;
    socket.send(&bytes, 0).map_err(failed)?;
    let outcome = outcome(&socket, expected).map_err(failed)?;
    nfnetlink::close(socket);
    Ok(outcome)
}

fn outcome(socket: &Socket, expected: u32) -> io::Result<Outcome> {
    let mut answered = 0;
    while answered < expected {
        let (bytes, _) = socket.recv_from_full()?;
        for message in Messages(&bytes).filter(|message| message.kind == NLMSG_ERROR) {
            if let Err(error) = message.acknowledged() {
                tracing::debug!(%error, message = message.sequence, "the kernel refused a batch");
                return Ok(Outcome::Refused);
            }
            answered += 1;
        }
    }
    Ok(Outcome::Done)
}

/// A datagram, and the number of messages in it that are answered.
#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    messages: u32,
}

impl Batch {
    /// `None` if it cannot be said in one.
    fn of(edits: &Edits<'_>) -> Option<Self> {
        let frame = |kind| message(kind, NLM_F_REQUEST, 0, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES, &[]);
        let mut batch = Batch { bytes: frame(NFNL_MSG_BATCH_BEGIN), messages: 0 };
        for counter in &edits.new_counters {
            let body = [object(counter), nested(NFTA_OBJ_DATA, &[])].concat();
            batch.push(NFT_MSG_NEWOBJ, NLM_F_CREATE, NFPROTO_INET, &body)?;
        }
        for (chain, lines) in &edits.append {
            for line in lines {
                batch.push(
                    NFT_MSG_NEWRULE,
                    NLM_F_CREATE | NLM_F_APPEND,
                    NFPROTO_INET,
                    &rule(chain, line)?,
                )?;
            }
        }
        for (chain, lines) in &edits.rewrite {
            // Without a rule it means all of them.
            batch.push(NFT_MSG_DELRULE, 0, NFPROTO_INET, &of_chain(chain))?;
            for line in *lines {
                let body = rule(chain, line)?;
                batch.push(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, NFPROTO_INET, &body)?;
            }
        }
        let removals = edits.remove.iter().map(|element| (NFT_MSG_DELSETELEM, 0, element));
        let additions = edits.add.iter().map(|element| (NFT_MSG_NEWSETELEM, NLM_F_CREATE, element));
        for (kind, flags, (place, element)) in removals.chain(additions) {
            let family = match place.family {
                Family::Inet => NFPROTO_INET,
                Family::Arp => NFPROTO_ARP,
            };
            batch.push(kind, flags, family, &in_set(place, element)?)?;
        }
        for counter in &edits.old_counters {
            batch.push(NFT_MSG_DELOBJ, 0, NFPROTO_INET, &object(counter))?;
        }
        batch.bytes.extend(frame(NFNL_MSG_BATCH_END));
        Some(batch)
    }

    fn push(&mut self, kind: u16, flags: u16, family: u8, body: &[u8]) -> Option<()> {
        self.messages += 1;
        let flags = flags | NLM_F_REQUEST | NLM_F_ACK;
        self.bytes.extend(message(kind, flags, self.messages, family, 0, body));
        (self.bytes.len() <= MAX_BATCH).then_some(())
    }
}

fn of_chain(chain: &str) -> Vec<u8> {
    [text(NFTA_RULE_TABLE, TABLE), text(NFTA_RULE_CHAIN, chain)].concat()
}

fn rule(chain: &str, line: &Line) -> Option<Vec<u8>> {
    let expressions = nested(NFTA_RULE_EXPRESSIONS, &expressions::of(line)?);
    Some([of_chain(chain), expressions].concat())
}

fn object(counter: &str) -> Vec<u8> {
    let kind = be32(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
    [text(NFTA_OBJ_TABLE, TABLE), text(NFTA_OBJ_NAME, counter), kind].concat()
}

fn in_set(place: &Place, element: &Element) -> Option<Vec<u8>> {
    let key = nested(NFTA_SET_ELEM_KEY, &attribute(NFTA_DATA_VALUE, &key(element)?));
    let list = nested(NFTA_SET_ELEM_LIST_ELEMENTS, &nested(NFTA_LIST_ELEM, &key));
    Some([text(NFTA_SET_ELEM_LIST_TABLE, TABLE), text(NFTA_SET_ELEM_LIST_SET, &place.set), list].concat())
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
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
            [&tap(name)[..], &mac.octets(), &[0, 0], &octets(*address)].concat()
        }
        Element::Address(address) => octets(*address),
        Element::Counter(..) | Element::Chain(..) | Element::Range(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use kiln_model::MacAddr;
    use kiln_model::security::{Direction, Traffic};

    use super::*;
    use crate::nft::{self, Allow, Match, PeerMatch};

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
        let source = Element::Source("kt1".into(), mac, "fd00::4".parse().unwrap());
        assert_eq!(key(&source).unwrap().len(), 16 + 8 + 16);
    }

    /// What `nft` makes of the text of a rule, and what it reads of the same rule written here.
    fn both_ways(lines: &[Line]) -> (String, String) {
        let nft = |script: &str| nft::run(None, script, "a test").unwrap();
        nft("add table inet kiln; add chain inet kiln a; add chain inet kiln b; add chain inet kiln c;
            add set inet kiln s { type ipv4_addr; }; add set inet kiln s6 { type ipv6_addr; }; add counter inet kiln r");
        for line in lines {
            nft(&format!("add rule inet kiln a {line}"));
        }
        let edits = Edits { new_counters: vec!["r"], rewrite: vec![("b", lines)], ..Edits::default() };
        // The second time is the same as the first.
        assert_eq!([(); 2].map(|()| apply(&edits).unwrap()), [Outcome::Done; 2]);
        let list = |chain: &str| {
            let mut program = std::process::Command::new("nft");
            let output = program.args(["list", "chain", "inet", "kiln", chain]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        (list("a"), list("b").replace("chain b", "chain a"))
    }

    #[test]
    fn rules_written_here_read_as_those_of_nft() {
        if !nix::unistd::geteuid().is_root() || std::process::Command::new("nft").arg("-v").output().is_err()
        {
            println!("SKIPPED: needs root and nft");
            return;
        }
        let traffics = [
            ("all", None, None),
            ("tcp", Some(22), Some(22)),
            ("udp", Some(1), Some(65534)),
            ("tcp", Some(0), Some(65535)),
            ("icmp", Some(-1), Some(-1)),
            ("icmp", Some(8), Some(-1)),
            ("icmp", Some(8), Some(0)),
            ("47", None, None),
        ];
        let mut lines = vec![Line::Jump("c".to_owned())];
        for (protocol, from, to) in traffics {
            let traffic = Traffic::from_fields(protocol, from, to).unwrap();
            let ranges =
                ["0.0.0.0/0", "10.0.0.0/8", "10.32.0.0/11", "10.50.2.133/32"].map(|r| r.parse().unwrap());
            let peers = ranges.map(PeerMatch::Ipv4).into_iter().chain([PeerMatch::Set("s".to_owned())]);
            for (peer, direction) in
                peers.flat_map(|p| [(p.clone(), Direction::Ingress), (p, Direction::Egress)])
            {
                lines.push(Line::Allow(Allow {
                    matching: Match { direction, peer, traffic },
                    counter: "r".to_owned(),
                }));
            }
        }
        let range = |text: &str| PeerMatch::Ipv6(text.parse().unwrap());
        for (protocol, peer) in [
            ("icmpv6", range("::/0")),
            ("tcp", range("2001:db8::/33")),
            ("udp", range("::1/128")),
            ("tcp", PeerMatch::Set6("s6".to_owned())),
            ("icmpv6", PeerMatch::Set6("s6".to_owned())),
        ] {
            let traffic = Traffic::from_fields(protocol, Some(2), Some(2)).unwrap();
            for direction in [Direction::Ingress, Direction::Egress] {
                let peer = peer.clone();
                lines.push(Line::Allow(Allow {
                    matching: Match { direction, peer, traffic },
                    counter: "r".to_owned(),
                }));
            }
        }
        let (text, own) = crate::netns::on_thread(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            both_ways(&lines)
        });
        assert_eq!(text.lines().count(), lines.len() + 4);
        assert_eq!(own, text);
    }

    #[test]
    fn too_many_elements_are_not_one_batch() {
        let element =
            (Place { family: Family::Inet, set: "s".into() }, Element::Address([10, 0, 0, 4].into()));
        let edits = |count| Edits { add: vec![&element; count], ..Edits::default() };
        assert_eq!(Batch::of(&edits(100)).unwrap().messages, 100);
        assert!(Batch::of(&edits(MAX_BATCH / 50)).is_none());
    }
}
