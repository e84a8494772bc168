//! DHCPv6 server (RFC 8415) for the one IPv6 address of the interface.
//!
//! ```text
//!   SOLICIT ─────────────────────────────▶ ADVERTISE, or REPLY with rapid commit
//!   REQUEST, RENEW to this server, REBIND ▶ REPLY with the address; others are given no time
//!   CONFIRM ─────────────────────────────▶ REPLY: whether the addresses are the interface's
//!   RELEASE, DECLINE to this server ─────▶ REPLY: it is noted, which changes nothing
//!   INFORMATION-REQUEST ─────────────────▶ REPLY with name servers alone
//!   anything else, relayed, for another server ─▶ nothing
//! ```
//!
//! As on IPv4 the address never changes, so there is no lease to store: the server is a pure function of
//! the interface's spec.

use std::net::{IpAddr, Ipv6Addr};

use kiln_vmspec::LinkLocalSpec;

use crate::address::{DNS_V6, link_local_v6};
use crate::packet::Link;

/// Port of the server.
pub(crate) const SERVER_PORT: u16 = 547;
const CLIENT_PORT: u16 = 546;

/// How long an address is good for, in seconds; preferred until, and renewed at, half of it.
const VALID_LIFETIME: u32 = 3600;
const PREFERRED_LIFETIME: u32 = 1800;
const RENEW_AT: u32 = 900;
const REBIND_AT: u32 = 1440;

/// Longest client identifier (RFC 8415 section 11.1: 128 bytes and the type).
const MAX_IDENTIFIER: usize = 130;
/// Most associations of one message that are looked at; a client has one per interface.
const MAX_ASSOCIATIONS: usize = 4;
/// Most addresses that a client may name in one association.
const MAX_ADDRESSES: usize = 8;
/// Labels of a domain name are at most this long.
const MAX_LABEL: usize = 63;

// Message types.
const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const CONFIRM: u8 = 4;
const RENEW: u8 = 5;
const REBIND: u8 = 6;
const REPLY: u8 = 7;
const RELEASE: u8 = 8;
const DECLINE: u8 = 9;
const INFORMATION_REQUEST: u8 = 11;

// Option codes.
const CLIENT_IDENTIFIER: u16 = 1;
const SERVER_IDENTIFIER: u16 = 2;
const IA_NA: u16 = 3;
const IA_ADDRESS: u16 = 5;
const PREFERENCE: u16 = 7;
const STATUS: u16 = 13;
const RAPID_COMMIT: u16 = 14;
const NAME_SERVERS: u16 = 23;
const DOMAIN_LIST: u16 = 24;

// Status codes.
const SUCCESS: u16 = 0;
const NO_ADDRESSES: u16 = 2;
const NOT_ON_LINK: u16 = 4;

/// Options one after the other; `None` in place of one that is cut short, and then no more.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = Option<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let whole = self.0.split_first_chunk::<4>().and_then(|([a, b, c, d], rest)| {
            let length = usize::from(u16::from_be_bytes([*c, *d]));
            let (value, rest) = rest.split_at_checked(length)?;
            Some((u16::from_be_bytes([*a, *b]), value, rest))
        });
        self.0 = whole.map_or(&[], |(_, _, rest)| rest);
        Some(whole.map(|(code, value, _)| (code, value)))
    }
}

/// An association of the client with addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Association {
    id: [u8; 4],
    addresses: Vec<Ipv6Addr>,
}

/// The fields of a client's message that decide the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message<'a> {
    kind: u8,
    transaction: [u8; 3],
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    associations: Vec<Association>,
    rapid_commit: bool,
}

fn parse(bytes: &[u8]) -> Option<Message<'_>> {
    let ([kind, transaction @ ..], options) = bytes.split_first_chunk::<4>()?;
    let mut message = Message {
        kind: *kind,
        transaction: *transaction,
        client: None,
        server: None,
        associations: Vec::new(),
        rapid_commit: false,
    };
    for option in Options(options) {
        let (code, value) = option?;
        match code {
            CLIENT_IDENTIFIER => message.client = Some(value),
            SERVER_IDENTIFIER => message.server = Some(value),
            IA_NA if message.associations.len() < MAX_ASSOCIATIONS => {
                message.associations.push(association(value)?);
            }
            RAPID_COMMIT => message.rapid_commit = true,
            _ => {}
        }
    }
    message.client.is_none_or(|client| (1..=MAX_IDENTIFIER).contains(&client.len())).then_some(message)
}

fn association(value: &[u8]) -> Option<Association> {
    let (header, options) = value.split_first_chunk::<12>()?;
    let mut association = Association { id: *header.first_chunk()?, addresses: Vec::new() };
    for option in Options(options) {
        let (code, value) = option?;
        if code == IA_ADDRESS && association.addresses.len() < MAX_ADDRESSES {
            association.addresses.push(value.first_chunk::<16>().copied()?.into());
        }
    }
    Some(association)
}

/// The frame that answers the message `bytes` of the client at `from`, if it deserves one.
pub(crate) fn answer(link: &Link, spec: &LinkLocalSpec, from: Ipv6Addr, bytes: &[u8]) -> Option<Vec<u8>> {
    let address = spec.ipv6?.address;
    let own = server_identifier(link);
    let message = parse(bytes)?;
    let kind = decide(&message, &own)?;
    let mut reply = vec![kind];
    reply.extend(message.transaction);
    if let Some(client) = message.client {
        option(&mut reply, CLIENT_IDENTIFIER, client);
    }
    option(&mut reply, SERVER_IDENTIFIER, &own);
    match message.kind {
        CONFIRM => {
            let mut named = message.associations.iter().flat_map(|association| &association.addresses);
            // Without an address there is nothing to confirm (RFC 8415 section 18.3.3).
            named.clone().next()?;
            let all = named.all(|wanted| *wanted == address);
            option(&mut reply, STATUS, &status(if all { SUCCESS } else { NOT_ON_LINK }));
        }
        RELEASE | DECLINE => option(&mut reply, STATUS, &status(SUCCESS)),
        INFORMATION_REQUEST => {}
        _ => {
            if kind == ADVERTISE {
                // The highest, so that the client need not wait for others.
                option(&mut reply, PREFERENCE, &[255]);
            } else if message.kind == SOLICIT {
                option(&mut reply, RAPID_COMMIT, &[]);
            }
            for (n, association) in message.associations.iter().enumerate() {
                option(&mut reply, IA_NA, &granted(association, (n == 0).then_some(address)));
            }
        }
    }
    option(&mut reply, NAME_SERVERS, &DNS_V6.octets());
    if let Some(domain) = labels(&spec.domain_name) {
        option(&mut reply, DOMAIN_LIST, &domain);
    }
    let router = IpAddr::V6(link_local_v6(spec.router_mac));
    Some(link.udp((router, SERVER_PORT), (IpAddr::V6(from), CLIENT_PORT), &reply))
}

/// The type of the answer.
fn decide(message: &Message<'_>, own: &[u8]) -> Option<u8> {
    let known = message.client.is_some();
    let to_us = message.server == Some(own);
    match message.kind {
        SOLICIT if known && message.server.is_none() => {
            Some(if message.rapid_commit { REPLY } else { ADVERTISE })
        }
        REQUEST | RENEW | RELEASE | DECLINE if known && to_us => Some(REPLY),
        CONFIRM | REBIND if known && message.server.is_none() => Some(REPLY),
        INFORMATION_REQUEST if message.server.is_none() || to_us => Some(REPLY),
        _ => None,
    }
}

/// An association as it is answered: with the address, and no time for others.
fn granted(association: &Association, address: Option<Ipv6Addr>) -> Vec<u8> {
    let mut value = association.id.to_vec();
    value.extend(RENEW_AT.to_be_bytes());
    value.extend(REBIND_AT.to_be_bytes());
    let Some(address) = address else {
        option(&mut value, STATUS, &status(NO_ADDRESSES));
        return value;
    };
    let mut add = |address: Ipv6Addr, preferred: u32, valid: u32| {
        let lifetimes = [preferred.to_be_bytes(), valid.to_be_bytes()].concat();
        option(&mut value, IA_ADDRESS, &[&address.octets()[..], &lifetimes].concat());
    };
    add(address, PREFERRED_LIFETIME, VALID_LIFETIME);
    for other in association.addresses.iter().filter(|other| **other != address) {
        add(*other, 0, 0);
    }
    value
}

/// DUID-LL (RFC 8415 section 11.4) of the router.
fn server_identifier(link: &Link) -> [u8; 10] {
    let [a, b, c, d, e, f] = link.router.0;
    [0, 3, 0, 1, a, b, c, d, e, f]
}

fn status(code: u16) -> [u8; 2] {
    code.to_be_bytes()
}

/// A domain name as DNS has it; `None` where it is none.
fn labels(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok()?;
        if !(1..=MAX_LABEL).contains(&label.len()) || bytes.len() > 190 {
            return None;
        }
        bytes.push(length);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    Some(bytes)
}

/// Appends an option; an overlong value is left out.
fn option(to: &mut Vec<u8>, code: u16, value: &[u8]) {
    if let Ok(length) = u16::try_from(value.len()) {
        to.extend(code.to_be_bytes());
        to.extend(length.to_be_bytes());
        to.extend(value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{GUEST_MAC, OWN_IPV6, dual_spec};

    const CLIENT: &[u8] = &[0, 3, 0, 1, 2, 0, 0x0a, 0, 1, 0x0a];
    const FROM: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 5);

    fn link() -> Link {
        Link::new(GUEST_MAC, dual_spec().router_mac)
    }

    fn message(kind: u8, options: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![kind, 1, 2, 3];
        for (code, value) in options {
            option(&mut bytes, *code, value);
        }
        bytes
    }

    fn wish(addresses: &[Ipv6Addr]) -> Vec<u8> {
        let mut value = vec![0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0];
        for address in addresses {
            option(&mut value, IA_ADDRESS, &[&address.octets()[..], &[0; 8]].concat());
        }
        value
    }

    type Answered = Vec<(u16, Vec<u8>)>;

    /// Type and options of the answer.
    fn ask(bytes: &[u8]) -> Option<(u8, Answered)> {
        let frame = answer(&link(), &dual_spec(), FROM, bytes)?;
        assert_eq!(frame[38..54], FROM.octets());
        assert_eq!(frame[54..58], [2, 35, 2, 34], "ports 547 and 546");
        let reply = &frame[62..];
        assert_eq!(reply[1..4], [1, 2, 3]);
        let options = Options(&reply[4..]).map(|option| option.unwrap());
        Some((reply[0], options.map(|(code, value)| (code, value.to_vec())).collect()))
    }

    fn of(options: &[(u16, Vec<u8>)], code: u16) -> Option<&[u8]> {
        options.iter().find(|(c, _)| *c == code).map(|(_, value)| &value[..])
    }

    #[test]
    fn client_gets_the_address_in_four_messages_or_two() {
        let wish = wish(&[]);
        let (kind, options) = ask(&message(SOLICIT, &[(CLIENT_IDENTIFIER, CLIENT), (IA_NA, &wish)])).unwrap();
        assert_eq!(kind, ADVERTISE);
        assert_eq!(of(&options, PREFERENCE), Some(&[255][..]));
        let server = of(&options, SERVER_IDENTIFIER).unwrap().to_vec();
        let request = [(CLIENT_IDENTIFIER, CLIENT), (SERVER_IDENTIFIER, &server[..]), (IA_NA, &wish)];
        let (kind, options) = ask(&message(REQUEST, &request)).unwrap();
        assert_eq!(kind, REPLY);
        assert_eq!(of(&options, CLIENT_IDENTIFIER), Some(CLIENT));
        let granted = of(&options, IA_NA).unwrap();
        assert_eq!(granted[..4], [0, 0, 0, 7]);
        let inner: Vec<_> = Options(&granted[12..]).map(|option| option.unwrap()).collect();
        let lifetimes = [PREFERRED_LIFETIME.to_be_bytes(), VALID_LIFETIME.to_be_bytes()].concat();
        assert_eq!(inner, [(IA_ADDRESS, &[&OWN_IPV6.octets()[..], &lifetimes].concat()[..])]);
        assert_eq!(of(&options, NAME_SERVERS), Some(&DNS_V6.octets()[..]));
        assert_eq!(of(&options, DOMAIN_LIST), Some(&b"\x03ec2\x08internal\0"[..]));

        let rapid = [(CLIENT_IDENTIFIER, CLIENT), (RAPID_COMMIT, &[]), (IA_NA, &wish)];
        let (kind, options) = ask(&message(SOLICIT, &rapid)).unwrap();
        assert_eq!((kind, of(&options, RAPID_COMMIT)), (REPLY, Some(&[][..])));
    }

    #[test]
    fn addresses_of_others_are_given_no_time_and_not_confirmed() {
        let other: Ipv6Addr = "2001:db8:1::99".parse().unwrap();
        let named = wish(&[other, OWN_IPV6]);
        let (_, options) = ask(&message(REBIND, &[(CLIENT_IDENTIFIER, CLIENT), (IA_NA, &named)])).unwrap();
        let inner: Vec<_> =
            Options(&of(&options, IA_NA).unwrap()[12..]).map(|option| option.unwrap().1).collect();
        assert_eq!(inner.len(), 2);
        assert_eq!(inner[1], [&other.octets()[..], &[0; 8]].concat());
        let confirm = |addresses: &[Ipv6Addr]| {
            let named = wish(addresses);
            let answer = ask(&message(CONFIRM, &[(CLIENT_IDENTIFIER, CLIENT), (IA_NA, &named)]))?;
            Some(of(&answer.1, STATUS)?.to_vec())
        };
        assert_eq!(confirm(&[OWN_IPV6]), Some(vec![0, 0]));
        assert_eq!(confirm(&[OWN_IPV6, other]), Some(vec![0, 4]));
        assert_eq!(confirm(&[]), None);
    }

    #[test]
    fn second_association_of_a_message_gets_nothing() {
        let wish = wish(&[]);
        let bytes = message(SOLICIT, &[(CLIENT_IDENTIFIER, CLIENT), (IA_NA, &wish), (IA_NA, &wish)]);
        let (_, options) = ask(&bytes).unwrap();
        let second = options.iter().filter(|(code, _)| *code == IA_NA).nth(1).unwrap();
        assert_eq!(second.1[12..], [0, 13, 0, 2, 0, 2]);
    }

    #[test]
    fn messages_for_others_and_broken_ones_are_ignored() {
        let wish = wish(&[]);
        let client = (CLIENT_IDENTIFIER, CLIENT);
        let own = server_identifier(&link());
        let (ours, theirs) = ((SERVER_IDENTIFIER, &own[..]), (SERVER_IDENTIFIER, &[0, 3, 0, 1, 9][..]));
        let ia = (IA_NA, &wish[..]);
        for (kind, options, answered) in [
            (SOLICIT, vec![ia], false),
            (SOLICIT, vec![client, ours, ia], false),
            (REQUEST, vec![client, ia], false),
            (REQUEST, vec![client, theirs, ia], false),
            (RENEW, vec![client, ours, ia], true),
            (RENEW, vec![ours, ia], false),
            (REBIND, vec![client, ours, ia], false),
            (RELEASE, vec![client, ours, ia], true),
            (DECLINE, vec![client, theirs, ia], false),
            (INFORMATION_REQUEST, vec![], true),
            (INFORMATION_REQUEST, vec![theirs], false),
            (ADVERTISE, vec![client, ours, ia], false),
            (REPLY, vec![client, ours, ia], false),
            (12, vec![client, ia], false),
            (SOLICIT, vec![client, (IA_NA, &[0; 11])], false),
            (SOLICIT, vec![(CLIENT_IDENTIFIER, &[]), ia], false),
            (SOLICIT, vec![(CLIENT_IDENTIFIER, &[7; 131]), ia], false),
        ] {
            assert_eq!(ask(&message(kind, &options)).is_some(), answered, "{kind} {options:?}");
        }
        let whole = message(SOLICIT, &[client, ia]);
        for len in (0..whole.len()).filter(|len| ![4, 18].contains(len)) {
            assert_eq!(ask(&whole[..len]), None, "{len}");
        }
        assert!(answer(&link(), &crate::testing::spec(), FROM, &whole).is_none(), "no IPv6");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn any_bytes_are_answered_within_bounds_or_ignored(kind in 0..14u8, noise in proptest::collection::vec(any::<u8>(), 0..1400)) {
            let mut bytes = message(kind, &[(CLIENT_IDENTIFIER, CLIENT), (IA_NA, &wish(&[OWN_IPV6]))]);
            bytes.extend(&noise);
            for bytes in [&bytes, &noise] {
                if let Some(frame) = answer(&link(), &dual_spec(), FROM, bytes) {
                    prop_assert!(frame.len() <= 14 + 1280, "{}", frame.len());
                }
            }
        }
    }
}
