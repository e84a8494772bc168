//! DNS messages (RFC 1035 §4) as far as a forwarding resolver must read and write them.
//!
//! Of a query the header, the one question and the size in an OPT record are read; compression
//! pointers have no place in a question and are refused, so reading never goes backwards.

use std::net::IpAddr;

pub(super) const HEADER: usize = 12;
/// Longest name on the wire.
const MAX_NAME: usize = 255;
/// UDP answer that every client takes.
const PLAIN_SIZE: u16 = 512;
/// Largest UDP answer sent: fits any path without fragments (DNS flag day 2020).
const EDNS_SIZE: u16 = 1232;
/// Most records in front of an OPT that are skipped.
const MAX_SKIPPED: usize = 4;

pub(super) const TYPE_A: u16 = 1;
pub(super) const TYPE_PTR: u16 = 12;
pub(super) const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
pub(super) const TYPE_IXFR: u16 = 251;
pub(super) const TYPE_AXFR: u16 = 252;
pub(super) const TYPE_ANY: u16 = 255;
pub(super) const CLASS_IN: u16 = 1;
pub(super) const CLASS_ANY: u16 = 255;

/// Seconds that clients may keep a local answer: addresses of instances come and go.
const TTL_SECONDS: u32 = 60;

/// RCODEs of RFC 1035 §4.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Code {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
}

/// A query with exactly one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) id: [u8; 2],
    /// `RD`.
    recursion_desired: bool,
    /// Lower case, labels joined by dots, none at the end. Empty for the root.
    pub(super) name: String,
    pub(super) kind: u16,
    pub(super) class: u16,
    /// The question as it came.
    question: Vec<u8>,
    /// Largest UDP answer the client takes; `None` without EDNS.
    edns: Option<u16>,
}

/// Why a message is no query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoQuery {
    /// Not even worth an answer: too short, or itself an answer.
    Ignore,
    /// Answered with this code and no question.
    Answer([u8; 2], Code),
}

/// Parses a query.
pub(super) fn parse(message: &[u8]) -> Result<Query, NoQuery> {
    let (header, rest) = message.split_first_chunk::<HEADER>().ok_or(NoQuery::Ignore)?;
    let [id0, id1, flags, _, q0, q1, an0, an1, ns0, ns1, ar0, ar1] = *header;
    let id = [id0, id1];
    if flags & 0x80 != 0 {
        return Err(NoQuery::Ignore);
    }
    if flags >> 3 & 0xf != 0 {
        return Err(NoQuery::Answer(id, Code::NotImp));
    }
    let malformed = NoQuery::Answer(id, Code::FormErr);
    if [q0, q1] != [0, 1] {
        return Err(malformed);
    }
    let (name, length) = read_name(rest).ok_or(malformed)?;
    let question = rest.get(..length + 4).ok_or(malformed)?;
    let kind = number(question, length).ok_or(malformed)?;
    let class = number(question, length + 2).ok_or(malformed)?;
    let before = usize::from(u16::from_be_bytes([an0, an1])) + usize::from(u16::from_be_bytes([ns0, ns1]));
    let records = before + usize::from(u16::from_be_bytes([ar0, ar1]));
    let edns = find_opt(rest.get(length + 4..).unwrap_or_default(), records);
    Ok(Query { id, recursion_desired: flags & 1 != 0, name, kind, class, question: question.to_vec(), edns })
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

/// The name at the start of `bytes` and its length on the wire. Bytes outside printable ASCII and
/// dots inside labels make names that nobody here has; they are kept apart by escaping.
fn read_name(bytes: &[u8]) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut at = 0;
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name, at));
        }
        if length > 63 || at + length >= MAX_NAME {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        for &byte in bytes.get(at..at + length)? {
            match byte {
                b'.' | b'\\' => name.extend(['\\', char::from(byte)]),
                0x21..=0x7e => name.push(char::from(byte.to_ascii_lowercase())),
                other => name.push_str(&format!("\\{other:03}")),
            }
        }
        at += length;
    }
}

/// The size in the OPT record (RFC 6891 §6.1.2), if one is among the first `records`.
fn find_opt(mut rest: &[u8], records: usize) -> Option<u16> {
    for _ in 0..records.min(MAX_SKIPPED) {
        let length = match rest.first()? {
            // A pointer ends a name.
            0xc0.. => 2,
            _ => read_name(rest)?.1,
        };
        let kind = number(rest, length)?;
        let class = number(rest, length + 2)?;
        if kind == TYPE_OPT {
            return Some(class);
        }
        let data = usize::from(number(rest, length + 8)?);
        rest = rest.get(length + 10 + data..)?;
    }
    None
}

impl Query {
    /// Largest UDP answer to this query.
    pub(super) fn udp_size(&self) -> usize {
        usize::from(self.edns.unwrap_or(PLAIN_SIZE).clamp(PLAIN_SIZE, EDNS_SIZE))
    }

    /// An answer from here. Each of `records` is an address or, for a reverse name, a host name.
    pub(super) fn answer(&self, code: Code, records: &[Record<'_>]) -> Vec<u8> {
        let authoritative = matches!(code, Code::NoError | Code::NxDomain);
        let mut answer = self.header(code, authoritative, false);
        let mut count: u16 = 0;
        for record in records {
            let (kind, data) = match record {
                Record::Address(IpAddr::V4(address)) => (TYPE_A, address.octets().to_vec()),
                Record::Address(IpAddr::V6(address)) => (TYPE_AAAA, address.octets().to_vec()),
                Record::Name(name) => match write_name(name) {
                    Some(name) => (TYPE_PTR, name),
                    None => continue,
                },
            };
            let Ok(length) = u16::try_from(data.len()) else { continue };
            answer.extend_from_slice(&[0xc0, HEADER as u8]);
            answer.extend_from_slice(&kind.to_be_bytes());
            answer.extend_from_slice(&CLASS_IN.to_be_bytes());
            answer.extend_from_slice(&TTL_SECONDS.to_be_bytes());
            answer.extend_from_slice(&length.to_be_bytes());
            answer.extend_from_slice(&data);
            count = count.saturating_add(1);
        }
        if let Some(at) = answer.get_mut(6..8) {
            at.copy_from_slice(&count.to_be_bytes());
        }
        self.add_opt(&mut answer);
        answer
    }

    /// An answer that only says that the real one is too long for UDP.
    pub(super) fn truncated(&self) -> Vec<u8> {
        let mut answer = self.header(Code::NoError, false, true);
        self.add_opt(&mut answer);
        answer
    }

    /// `reply` of another resolver as an answer to this query: with its id, if it is an answer to the
    /// same question.
    pub(super) fn adopt(&self, reply: &[u8]) -> Option<Vec<u8>> {
        let flags = *reply.get(2)?;
        let same = reply.get(HEADER..)?.get(..self.question.len())?.eq_ignore_ascii_case(&self.question);
        if flags & 0x80 == 0 || number(reply, 4)? != 1 || !same {
            return None;
        }
        let mut answer = reply.to_vec();
        answer.get_mut(..2)?.copy_from_slice(&self.id);
        Some(answer)
    }

    fn header(&self, code: Code, authoritative: bool, truncated: bool) -> Vec<u8> {
        let flags = 0x80
            | if authoritative { 0x04 } else { 0 }
            | if truncated { 0x02 } else { 0 }
            | u8::from(self.recursion_desired);
        let mut answer = header(self.id, flags, code);
        if let Some(questions) = answer.get_mut(5) {
            *questions = 1;
        }
        answer.extend_from_slice(&self.question);
        answer
    }

    fn add_opt(&self, answer: &mut Vec<u8>) {
        if self.edns.is_some() {
            answer.push(0);
            answer.extend_from_slice(&TYPE_OPT.to_be_bytes());
            answer.extend_from_slice(&EDNS_SIZE.to_be_bytes());
            answer.extend_from_slice(&[0; 6]);
            if let Some(additional) = answer.get_mut(11) {
                *additional = 1;
            }
        }
    }
}

/// What a local answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record<'a> {
    Address(IpAddr),
    Name(&'a str),
}

/// Whether a message says that its sender had more to say.
pub(super) fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// An answer to something that could not be read.
pub(super) fn refusal(id: [u8; 2], code: Code) -> Vec<u8> {
    header(id, 0x80, code)
}

fn header(id: [u8; 2], flags: u8, code: Code) -> Vec<u8> {
    const RECURSION_AVAILABLE: u8 = 0x80;
    vec![id[0], id[1], flags, RECURSION_AVAILABLE | code as u8, 0, 0, 0, 0, 0, 0, 0, 0]
}

fn write_name(name: &str) -> Option<Vec<u8>> {
    let mut wire = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let length = u8::try_from(label.len()).ok().filter(|length| *length <= 63)?;
        wire.push(length);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    (wire.len() <= MAX_NAME).then_some(wire)
}

/// The address that a reverse name (`10.1.0.10.in-addr.arpa`, RFC 1035 §3.5, RFC 3596 §2.5) asks for.
pub(super) fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0u8; 4];
        let mut labels = digits.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = labels.next()?.parse().ok()?;
        }
        return labels.next().is_none().then(|| octets.into());
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let mut bits: u128 = 0;
    let mut count = 0;
    for label in digits.split('.').rev() {
        let nibble = u128::from_str_radix(label, 16).ok().filter(|_| label.len() == 1)?;
        bits = bits << 4 | nibble;
        count += 1;
    }
    (count == 32).then(|| IpAddr::V6(bits.into()))
}
