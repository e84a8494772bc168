//! The resolver at VPC base + 2 and 169.254.169.253.
//!
//! ```text
//!   query ─┬─ name of the VPC, or its reverse ──▶ answered here, authoritative
//!          ├─ others under the VPC's domain, `invalid`, one label ──▶ NXDOMAIN, never asked outside
//!          └─ the rest ──▶ DnsForward ──▶ (host) ──▶ forward_reply ──▶ answer with the guest's id
//!                              └─ 4 s without a reply, no room, nobody forwards ──▶ SERVFAIL
//! ```
//!
//! Resolving needs sockets of the host, which this crate does not have: whoever owns the interface
//! takes the queries that go on and brings the replies.

mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use kiln_vmspec::MetadataSnapshot;

use crate::counters::Counters;
use crate::secret::Unpredictable;
use crate::time::Time;
use wire::{
    CLASS_ANY, CLASS_IN, Code, NoQuery, Query, Record, TYPE_A, TYPE_AAAA, TYPE_ANY, TYPE_AXFR, TYPE_IXFR,
    TYPE_PTR,
};

/// Port of the resolver.
pub(crate) const PORT: u16 = 53;

/// Longest query over TCP, with its length in front.
pub(crate) const MAX_TCP_QUERY: usize = 4 * 1024;

/// Queries that may wait for the host at the same time.
const MAX_OUTSTANDING: usize = 64;

/// How long one waits. Clients ask again after 5 s.
const PATIENCE: Duration = Duration::from_secs(4);

/// A query for the host to resolve, ready to be sent to another resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsForward {
    /// Id of the message: not that of the guest, and not to be foretold by those who would answer in
    /// place of the other resolver.
    pub id: u16,
    /// The DNS message.
    pub query: Vec<u8>,
    /// The guest asked over TCP: so the answer may be long.
    pub tcp: bool,
}

/// Where an answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    /// Guest end and our end.
    Udp { guest: (IpAddr, u16), service: (IpAddr, u16) },
    /// Number of the connection.
    Tcp(u64),
}

/// What became of a query.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answer(Vec<u8>),
    Later,
    Ignored,
}

struct Outstanding {
    /// Id of the message that went on.
    id: u16,
    asker: Asker,
    query: Query,
    until: Duration,
}

/// The resolver of one interface.
pub(crate) struct Resolver {
    names: BTreeMap<String, Vec<IpAddr>>,
    reverse: BTreeMap<IpAddr, String>,
    /// Domain that exists nowhere else; empty where the interface has one that does.
    domain: String,
    forwarding: bool,
    outstanding: Vec<Outstanding>,
    forwards: VecDeque<DnsForward>,
    ids: Unpredictable,
}

impl Resolver {
    /// `domain_name`: what DHCP hands out. `ids`: for queries that go on.
    pub(crate) fn new(domain_name: &str, ids: Unpredictable) -> Self {
        let domain = domain_name.to_ascii_lowercase();
        let internal = domain == "ec2.internal" || domain.ends_with(".compute.internal");
        Resolver {
            names: BTreeMap::new(),
            reverse: BTreeMap::new(),
            domain: if internal { domain } else { String::new() },
            forwarding: false,
            outstanding: Vec::new(),
            forwards: VecDeque::new(),
            ids,
        }
    }

    pub(crate) fn set_snapshot(&mut self, snapshot: &MetadataSnapshot) {
        self.names.clone_from(&snapshot.host_names);
        self.reverse = snapshot
            .host_names
            .iter()
            .flat_map(|(name, addresses)| addresses.iter().map(move |&address| (address, name.clone())))
            .collect();
    }

    pub(crate) fn set_forwarding(&mut self, on: bool) {
        self.forwarding = on;
    }

    pub(crate) fn take_forward(&mut self) -> Option<DnsForward> {
        self.forwards.pop_front()
    }

    /// Takes a DNS message of the guest.
    pub(crate) fn ask(
        &mut self,
        now: Time,
        asker: Asker,
        message: &[u8],
        counters: &mut Counters,
    ) -> Outcome {
        let query = match wire::parse(message) {
            Ok(query) => query,
            Err(NoQuery::Ignore) => return Outcome::Ignored,
            Err(NoQuery::Answer(id, code)) => return Outcome::Answer(wire::refusal(id, code)),
        };
        counters.dns_queries += 1;
        if let Some(answer) = self.local(&query) {
            return Outcome::Answer(fit(&query, asker, answer));
        }
        // A client that asks again while we wait is waiting for the same answer.
        if self.outstanding.iter().any(|o| o.asker == asker && o.query.id == query.id) {
            return Outcome::Ignored;
        }
        if !self.forwarding || self.outstanding.len() >= MAX_OUTSTANDING {
            counters.dns_failed += 1;
            return Outcome::Answer(query.answer(Code::ServFail, &[]));
        }
        counters.dns_forwarded += 1;
        let id = self.fresh_id();
        let mut forward = message.to_vec();
        if let Some(at) = forward.get_mut(..2) {
            at.copy_from_slice(&id.to_be_bytes());
        }
        self.forwards.push_back(DnsForward { id, query: forward, tcp: matches!(asker, Asker::Tcp(_)) });
        self.outstanding.push(Outstanding { id, asker, query, until: now.uptime.saturating_add(PATIENCE) });
        Outcome::Later
    }

    /// An id that no waiting query has. There are a thousand times more ids than those.
    fn fresh_id(&mut self) -> u16 {
        loop {
            let id = self.ids.next_u16();
            if self.outstanding.iter().all(|outstanding| outstanding.id != id) {
                return id;
            }
        }
    }

    /// Takes a message that came back. Gives the answer and where it goes, if it is the reply to a
    /// query that still waits.
    pub(crate) fn reply(&mut self, reply: &[u8], counters: &mut Counters) -> Option<(Asker, Vec<u8>)> {
        let id = reply.first_chunk().copied().map(u16::from_be_bytes)?;
        let at = self.outstanding.iter().position(|outstanding| outstanding.id == id)?;
        let answer = self.outstanding.get(at)?.query.adopt(reply)?;
        let Outstanding { asker, query, .. } = self.outstanding.swap_remove(at);
        if matches!(asker, Asker::Tcp(_)) && wire::is_truncated(&answer) {
            counters.dns_failed += 1;
            return Some((asker, query.answer(Code::ServFail, &[])));
        }
        Some((asker, fit(&query, asker, answer)))
    }

    /// Gives up a forwarded query.
    pub(crate) fn fail(&mut self, id: u16, counters: &mut Counters) -> Option<(Asker, Vec<u8>)> {
        let at = self.outstanding.iter().position(|outstanding| outstanding.id == id)?;
        let Outstanding { asker, query, .. } = self.outstanding.swap_remove(at);
        self.forwards.retain(|forward| forward.id != id);
        counters.dns_failed += 1;
        Some((asker, query.answer(Code::ServFail, &[])))
    }

    /// The next answer to a query whose time is up.
    pub(crate) fn expire(&mut self, now: Time, counters: &mut Counters) -> Option<(Asker, Vec<u8>)> {
        let id = self.outstanding.iter().find(|outstanding| outstanding.until <= now.uptime)?.id;
        self.fail(id, counters)
    }

    /// When [`Resolver::expire`] should be called next, as uptime.
    pub(crate) fn next_event(&self) -> Option<Duration> {
        self.outstanding.iter().map(|outstanding| outstanding.until).min()
    }

    /// The answer that needs nobody else.
    fn local(&self, query: &Query) -> Option<Vec<u8>> {
        if !matches!(query.class, CLASS_IN | CLASS_ANY) || matches!(query.kind, TYPE_AXFR | TYPE_IXFR) {
            return Some(query.answer(Code::Refused, &[]));
        }
        if let Some(addresses) = self.names.get(&query.name) {
            let wanted = |address: &IpAddr| match query.kind {
                TYPE_A => address.is_ipv4(),
                TYPE_AAAA => address.is_ipv6(),
                kind => kind == TYPE_ANY,
            };
            let records: Vec<Record<'_>> =
                addresses.iter().copied().filter(wanted).map(Record::Address).collect();
            return Some(query.answer(Code::NoError, &records));
        }
        if let Some(name) = wire::reverse_address(&query.name).and_then(|address| self.reverse.get(&address))
        {
            let named = [Record::Name(name)];
            let asked = matches!(query.kind, TYPE_PTR | TYPE_ANY);
            return Some(query.answer(Code::NoError, if asked { &named } else { &[] }));
        }
        // cloud-init asks for `instance-data.` and for names that must not exist, to find out whether
        // it is lied to; without a way to the outside each would cost it two patiences.
        let one_label = !query.name.contains('.') && matches!(query.kind, TYPE_A | TYPE_AAAA | TYPE_ANY);
        if one_label && query.name != "localhost" || query.name.ends_with(".invalid") {
            return Some(query.answer(Code::NxDomain, &[]));
        }
        if self.domain.is_empty() {
            return None;
        }
        match query.name.strip_suffix(&self.domain) {
            Some("") => Some(query.answer(Code::NoError, &[])),
            Some(host) if host.ends_with('.') => Some(query.answer(Code::NxDomain, &[])),
            _ => None,
        }
    }
}

/// The answer as its way allows: over UDP a long one only says that it is long.
fn fit(query: &Query, asker: Asker, answer: Vec<u8>) -> Vec<u8> {
    match asker {
        Asker::Udp { .. } if answer.len() > query.udp_size() => query.truncated(),
        _ => answer,
    }
}

/// The message at the start of a TCP stream and the bytes it takes with its length (RFC 1035 §4.2.2).
pub(crate) fn framed(received: &[u8]) -> Option<(&[u8], usize)> {
    let (length, rest) = received.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length));
    Some((rest.get(..length)?, length + 2))
}

/// `message` as it goes over TCP; empty if it is too long for that.
pub(crate) fn frame(message: &[u8]) -> Vec<u8> {
    let Ok(length) = u16::try_from(message.len()) else { return Vec::new() };
    [&length.to_be_bytes()[..], message].concat()
}

#[cfg(test)]
mod tests;
