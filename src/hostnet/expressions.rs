//! Rules as the kernel takes them: lists of expressions, in the attributes of `nf_tables.h`.
//!
//! ```text
//!  Allow ─▶ meta nfproto · compare │ payload (address) · mask · compare or look up │ … ports … │ count │ accept
//! ```
//! Each expression loads into a register or looks at one and goes on only if it matches. These are the
//! expressions that `nft` makes of the same [`Line`]; a test holds the two against each other.

use std::net::IpAddr;

use kiln_model::security::{Direction, IcmpMatch, PortRange, Traffic};

use crate::nfnetlink::{attribute, nested};
use crate::nft::{Allow, Line, PeerMatch};

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_OBJREF_IMM_TYPE: u16 = 1;
const NFTA_OBJREF_IMM_NAME: u16 = 2;

/// The register of verdicts, and the one of everything else.
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_LTE: u32 = 3;
const NFT_CMP_GTE: u32 = 5;
/// Kind of object: a counter.
pub(crate) const NFT_OBJECT_COUNTER: u32 = 1;
const NF_ACCEPT: i32 = 1;
const NFT_JUMP: i32 = -3;

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;
/// Where destination ports are in TCP and UDP.
const DESTINATION_PORT: u32 = 2;

/// The expressions of a rule; `None` for those that only `nft` writes.
pub(crate) fn of(line: &Line) -> Option<Vec<u8>> {
    match line {
        Line::Jump(chain) => Some(verdict(NFT_JUMP, Some(chain))),
        Line::Allow(allow) => Some(allowing(allow)),
        Line::Allowance { .. }
        | Line::SameSubnet { .. }
        | Line::SameSubnet6 { .. }
        | Line::AclEntry { .. }
        | Line::AclEnd
        | Line::Table(_) => None,
    }
}

/// A number in an attribute.
pub(crate) fn be32(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

/// A text in an attribute.
pub(crate) fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

fn allowing(Allow { matching, counter }: &Allow) -> Vec<u8> {
    let mut all = Vec::new();
    match &matching.peer {
        PeerMatch::Ipv4(range) => {
            let (network, prefix) = (range.network(), range.prefix_len());
            all.extend(address(matching.direction, network.into(), prefix));
        }
        PeerMatch::Ipv6(range) => {
            let (network, prefix) = (range.network(), range.prefix_len());
            all.extend(address(matching.direction, network.into(), prefix));
        }
        PeerMatch::Set(set) => all.extend(in_set(matching.direction, NFPROTO_IPV4, set)),
        PeerMatch::Set6(set) => all.extend(in_set(matching.direction, NFPROTO_IPV6, set)),
    }
    match matching.traffic {
        Traffic::All => {}
        Traffic::Tcp(ports) => all.extend(destination_ports(IPPROTO_TCP, ports)),
        Traffic::Udp(ports) => all.extend(destination_ports(IPPROTO_UDP, ports)),
        Traffic::Icmp(wanted) => all.extend(icmp(IPPROTO_ICMP, wanted)),
        Traffic::Icmpv6(wanted) => all.extend(icmp(IPPROTO_ICMPV6, wanted)),
        Traffic::Protocol(number) => all.extend(meta(NFT_META_L4PROTO, number)),
    }
    let count =
        [be32(NFTA_OBJREF_IMM_TYPE, NFT_OBJECT_COUNTER), text(NFTA_OBJREF_IMM_NAME, counter)].concat();
    all.extend(expression("objref", &count));
    all.extend(verdict(NF_ACCEPT, None));
    all
}

/// The family, and the peer's address in a range of it.
fn address(direction: Direction, network: IpAddr, prefix: u8) -> Vec<u8> {
    let (family, bytes) = match network {
        IpAddr::V4(network) => (NFPROTO_IPV4, network.octets().to_vec()),
        IpAddr::V6(network) => (NFPROTO_IPV6, network.octets().to_vec()),
    };
    let mut all = meta(NFT_META_NFPROTO, family);
    if prefix == 0 {
        return all;
    }
    all.extend(load_address(direction, family == NFPROTO_IPV4));
    if usize::from(prefix) < 8 * bytes.len() {
        all.extend(mask(bytes.len(), prefix));
    }
    all.extend(compare(NFT_CMP_EQ, &bytes));
    all
}

/// The family, and the peer's address in a set.
fn in_set(direction: Direction, family: u8, set: &str) -> Vec<u8> {
    let lookup = [text(NFTA_LOOKUP_SET, set), be32(NFTA_LOOKUP_SREG, NFT_REG_1)].concat();
    [
        meta(NFT_META_NFPROTO, family),
        load_address(direction, family == NFPROTO_IPV4),
        expression("lookup", &lookup),
    ]
    .concat()
}

fn load_address(direction: Direction, ipv4: bool) -> Vec<u8> {
    let (offset, len) = match (ipv4, direction) {
        (true, Direction::Ingress) => (12, 4),
        (true, Direction::Egress) => (16, 4),
        (false, Direction::Ingress) => (8, 16),
        (false, Direction::Egress) => (24, 16),
    };
    load(NFT_PAYLOAD_NETWORK_HEADER, offset, len)
}

/// Clears what is behind the prefix.
fn mask(len: usize, prefix: u8) -> Vec<u8> {
    let bits = u128::MAX.checked_shl(u32::from(128 - prefix.min(128))).unwrap_or(0).to_be_bytes();
    let mask = bits.get(..len).unwrap_or_default();
    let data = [
        be32(NFTA_BITWISE_SREG, NFT_REG_1),
        be32(NFTA_BITWISE_DREG, NFT_REG_1),
        be32(NFTA_BITWISE_LEN, u32::try_from(len).unwrap_or(0)),
        nested(NFTA_BITWISE_MASK, &attribute(NFTA_DATA_VALUE, mask)),
        nested(NFTA_BITWISE_XOR, &attribute(NFTA_DATA_VALUE, &vec![0; len])),
    ];
    expression("bitwise", &data.concat())
}

fn destination_ports(protocol: u8, ports: PortRange) -> Vec<u8> {
    let mut all = meta(NFT_META_L4PROTO, protocol);
    if ports == PortRange::ALL {
        return all;
    }
    all.extend(load(NFT_PAYLOAD_TRANSPORT_HEADER, DESTINATION_PORT, 2));
    let [from, to] = [ports.from(), ports.to()].map(u16::to_be_bytes);
    if from == to {
        all.extend(compare(NFT_CMP_EQ, &from));
    } else {
        all.extend(compare(NFT_CMP_GTE, &from));
        all.extend(compare(NFT_CMP_LTE, &to));
    }
    all
}

fn icmp(protocol: u8, wanted: IcmpMatch) -> Vec<u8> {
    let mut all = meta(NFT_META_L4PROTO, protocol);
    for (offset, value) in (0..).zip([wanted.kind, wanted.code]) {
        if let Some(value) = value {
            all.extend(load(NFT_PAYLOAD_TRANSPORT_HEADER, offset, 1));
            all.extend(compare(NFT_CMP_EQ, &[value]));
        }
    }
    all
}

/// A property of the packet that must have this value.
fn meta(key: u32, value: u8) -> Vec<u8> {
    let load = [be32(NFTA_META_DREG, NFT_REG_1), be32(NFTA_META_KEY, key)].concat();
    [expression("meta", &load), compare(NFT_CMP_EQ, &[value])].concat()
}

/// Bytes of a header.
fn load(base: u32, offset: u32, len: u32) -> Vec<u8> {
    let data = [
        be32(NFTA_PAYLOAD_DREG, NFT_REG_1),
        be32(NFTA_PAYLOAD_BASE, base),
        be32(NFTA_PAYLOAD_OFFSET, offset),
        be32(NFTA_PAYLOAD_LEN, len),
    ];
    expression("payload", &data.concat())
}

fn compare(how: u32, value: &[u8]) -> Vec<u8> {
    let value = nested(NFTA_CMP_DATA, &attribute(NFTA_DATA_VALUE, value));
    expression("cmp", &[be32(NFTA_CMP_SREG, NFT_REG_1), be32(NFTA_CMP_OP, how), value].concat())
}

fn verdict(code: i32, chain: Option<&str>) -> Vec<u8> {
    let mut inner = attribute(NFTA_VERDICT_CODE, &code.to_be_bytes());
    if let Some(chain) = chain {
        inner.extend(text(NFTA_VERDICT_CHAIN, chain));
    }
    let data = nested(NFTA_IMMEDIATE_DATA, &nested(NFTA_DATA_VERDICT, &inner));
    expression("immediate", &[be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT), data].concat())
}

fn expression(name: &str, data: &[u8]) -> Vec<u8> {
    nested(NFTA_LIST_ELEM, &[text(NFTA_EXPR_NAME, name), nested(NFTA_EXPR_DATA, data)].concat())
}
