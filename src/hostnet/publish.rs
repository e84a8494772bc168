//! Public addresses of interfaces, and ports of the host that lead to them.
//!
//! ```text
//!  client ─▶ host:8080 ─(host: to 198.18.x.y:80)─▶ kg… ─▶ gateway ─(to 172.31.0.4:80)─▶ up0 ─▶ groups ─▶ tap
//!  instance ─▶ groups ─▶ gateway ─(from 198.18.x.y)─▶ host ─(from the host's address)─▶ world
//! ```
//! A public address is of one interface on this host, whatever its private address is, so VPCs with
//! the same range do not meet here either. The client's own address arrives at the groups.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::str::FromStr;

use kiln_model::Ipv4Cidr;

use crate::enforce::forget_connections;
use crate::error::HostNetError;
use crate::fabric::{Transit, host_of};
use crate::names::{self, TABLE};
use crate::netlink::{Netlink, Via};
use crate::netns::{NetNs, on_thread};
use crate::nft;
use crate::record::{Record, Records};

/// Public addresses: a range for tests of networks (RFC 2544), which nobody routes. From other
/// machines they are reached where a route leads to this host.
const POOL: ([u8; 4], u8) = ([198, 18, 0, 0], 16);

/// A port of the host that leads to a port of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Published {
    /// Which of the two.
    pub transport: Transport,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the interface.
    pub port: u16,
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}

impl std::fmt::Display for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}/{}", self.host_port, self.port, self.transport.name())
    }
}

/// Not a published port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not HOST_PORT:PORT (expected such as 8080:80 or 5353:53/udp, ports from 1 to 65535)")]
pub struct ParsePublishedError(String);

impl FromStr for Published {
    type Err = ParsePublishedError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParsePublishedError(text.to_owned());
        let (ports, transport) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.strip_suffix("/tcp").unwrap_or(text), Transport::Tcp),
            Some((ports, "udp")) => (ports, Transport::Udp),
            Some(_) => return Err(bad()),
        };
        let port = |text: &str| {
            let decimal = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|port| decimal && *port > 0).ok_or_else(bad)
        };
        let (host_port, inner) = ports.split_once(':').ok_or_else(bad)?;
        Ok(Published { transport, host_port: port(host_port)?, port: port(inner)? })
    }
}

/// A public address of a private one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OneToOne {
    /// An address of the interface.
    pub private: Ipv4Addr,
    /// The address that leads to it, and that it is seen with.
    pub public: Ipv4Addr,
}

/// What an interface shall have besides its private address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Public {
    /// The public address; any free one if not said.
    pub address: Option<Ipv4Addr>,
    /// Ports of the host that lead to it.
    pub ports: Vec<Published>,
}

/// Chooses an address if need be, and refuses what others have: those of `others`.
pub(crate) fn settle(
    wanted: &Public,
    others: &[Record],
    start: u64,
) -> Result<(Ipv4Addr, Vec<Published>), HostNetError> {
    for port in &wanted.ports {
        let same = |other: &Published| (other.transport, other.host_port) == (port.transport, port.host_port);
        let taken = others.iter().flat_map(|record| &record.ports).any(same)
            || wanted.ports.iter().filter(|other| same(other)).count() > 1;
        if taken || in_use(*port) {
            return Err(HostNetError::PortInUse(port.host_port, port.transport.name()));
        }
    }
    let taken = |address: &Ipv4Addr| is_taken(*address, others);
    match wanted.address {
        Some(address) if taken(&address) => Err(HostNetError::PublicInUse(address)),
        Some(address) => Ok((address, wanted.ports.clone())),
        None => {
            let (base, prefix) = POOL;
            let pool = Ipv4Cidr::containing(base.into(), prefix).into_iter();
            let free = pool.flat_map(|pool| {
                let size = pool.size().saturating_sub(1).max(1);
                let step = move |n: u64| u32::try_from(1 + start.wrapping_add(n) % size).ok();
                (0..size).filter_map(move |n| pool.nth(step(n)?))
            });
            let mut free = free.filter(|address| !taken(address));
            let address = free.next().ok_or(HostNetError::NoPublic)?;
            Ok((address, wanted.ports.clone()))
        }
    }
}

/// Whether a public address is one of these interfaces'.
fn is_taken(address: Ipv4Addr, others: &[Record]) -> bool {
    others.iter().flat_map(Record::publics).any(|pair| pair.public == address)
}

/// Refuses public addresses that others have.
pub(crate) fn settle_more(wanted: &[OneToOne], others: &[Record]) -> Result<(), HostNetError> {
    match wanted.iter().find(|pair| is_taken(pair.public, others)) {
        Some(pair) => Err(HostNetError::PublicInUse(pair.public)),
        None => Ok(()),
    }
}

/// Whether a program on the host listens there: it would be cut off.
fn in_use(port: Published) -> bool {
    let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port.host_port);
    match port.transport {
        Transport::Tcp => TcpListener::bind(address).is_err(),
        Transport::Udp => UdpSocket::bind(address).is_err(),
    }
}

/// Makes the addresses and the ports of a record work. The VPC and the host's filter are there.
pub(crate) fn publish(
    records: &Records,
    record: &Record,
    host: Ipv4Addr,
    transit: Transit,
) -> Result<(), HostNetError> {
    if record.publics().next().is_none() {
        return Ok(());
    }
    let Some(gateway) = NetNs::open(&names::gateway_namespace(record.vpc))? else { return Ok(()) };
    let held = Some(records.held());
    gateway.run(|| nft::apply(held, &translation(record, &["add"]), "the gateway"))?;
    on_thread(|| {
        nft::apply(held, &ports(record, &["add"]), "the host")?;
        let netlink = Netlink::open()?;
        let link = netlink.require(&names::host_link(record.vpc))?;
        record.publics().try_for_each(|OneToOne { public, .. }| {
            let via = Via::Router { link, router: transit.gateway.into(), source: Some(host.into()) };
            match netlink.add_route(public, 32, via)? {
                true => Ok(()),
                false => Err(HostNetError::PublicInUse(public)),
            }
        })
    })
}

/// Undoes [`publish`], whether or not it was done, and ends what came that way.
pub(crate) fn retract(records: &Records, record: &Record) -> Result<(), HostNetError> {
    if record.publics().next().is_none() {
        return Ok(());
    }
    let held = Some(records.held());
    let forget = || record.publics().for_each(|pair| forget_connections(pair.public));
    on_thread(|| {
        let netlink = Netlink::open()?;
        if let Some(link) = netlink.find(&names::host_link(record.vpc))? {
            record.publics().try_for_each(|pair| netlink.remove_route(pair.public, 32, link))?;
        }
        // Without a table there is nothing to take out of it.
        nft::run(held, &ports(record, &["add", "delete"]), "the host")?;
        forget();
        Ok(())
    })?;
    let Some(gateway) = NetNs::open(&names::gateway_namespace(record.vpc))? else { return Ok(()) };
    gateway.run(|| {
        nft::run(held, &translation(record, &["add", "delete"]), "the gateway")?;
        forget();
        Ok(())
    })
}

/// Changes the public address of a private one of an attached interface. Ports lead to that of the primary.
/// Whatever else the interface has stays as it is, with its conversations.
pub(crate) fn replace(
    records: &Records,
    record: &Record,
    private: Ipv4Addr,
    address: Option<Ipv4Addr>,
) -> Result<Option<Ipv4Addr>, HostNetError> {
    let mut others = records.list()?;
    others.retain(|other| other.interface != record.interface);
    // What is taken out, what is put in, and what there is in the end.
    let (mut before, mut after) = (record.without_publics(), record.without_publics());
    let mut whole = record.clone();
    if private == record.address {
        (before.public, before.ports) = (record.public, record.ports.clone());
        after.ports.clone_from(&record.ports);
        if address.is_some() || !record.ports.is_empty() {
            // Its own other addresses are taken too.
            others.push(Record { more_public: record.more_public.clone(), ..record.without_publics() });
            let wanted = Public { address, ports: record.ports.clone() };
            after.public = Some(settle(&wanted, &others, start_of(record))?.0);
        }
        whole.public = after.public;
    } else {
        let (old, kept): (Vec<_>, Vec<_>) =
            record.more_public.iter().partition(|pair| pair.private == private);
        before.more_public = old;
        after.more_public = address.map(|public| OneToOne { private, public }).into_iter().collect();
        others.push(Record { more_public: kept.clone(), public: record.public, ..record.without_publics() });
        settle_more(&after.more_public, &others)?;
        whole.more_public = kept.into_iter().chain(after.more_public.iter().copied()).collect();
    }
    retract(records, &before)?;
    records.put(&whole)?;
    let host = on_thread(|| host_of(record.vpc))?;
    if let Some((host, transit)) = host {
        publish(records, &after, host, transit)?;
    }
    Ok(after.publics().next().map(|pair| pair.public))
}

/// Where the search for a free address begins: the same interface gets different ones over time, and
/// different ones at one time do not look at the same.
pub(crate) fn start_of(record: &Record) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let interface = u64::from_str_radix(&record.interface.short(), 16).unwrap_or(0);
    interface.wrapping_add(now.map_or(0, |now| now.as_secs()))
}

/// Elements of the gateway's maps, with each of the verbs.
fn translation(record: &Record, verbs: &[&str]) -> String {
    let line = |verb: &str, OneToOne { private, public }: OneToOne| {
        format!(
            "{verb} element ip {TABLE} public_in {{ {public} : {private} }}
{verb} element ip {TABLE} public_out {{ {private} : {public} }}
{verb} element ip {TABLE} public_of {{ {private} }}
"
        )
    };
    // In gateways of an older release there is no such set, and nobody asks for it.
    let set = format!("add set ip {TABLE} public_of {{ type ipv4_addr; }}\n");
    set + &verbs.iter().flat_map(|verb| record.publics().map(|pair| line(verb, pair))).collect::<String>()
}

/// Elements of the host's sets and maps.
fn ports(record: &Record, verbs: &[&str]) -> String {
    let mut script = String::new();
    for verb in verbs {
        for OneToOne { public, .. } in record.publics() {
            script += &format!("{verb} element inet {TABLE} public {{ {public} }}\n");
        }
        // They lead to the address of the primary.
        let Some(public) = record.public else { continue };
        for Published { transport, host_port, port } in &record.ports {
            let map = format!("publish_{}", transport.name());
            script += &format!("{verb} element inet {TABLE} {map} {{ {host_port} : {public} . {port} }}\n");
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_are_read_and_nonsense_is_refused() {
        for (text, meaning) in
            [("8080:80", "8080:80/tcp"), ("53:5353/udp", "53:5353/udp"), ("1:65535/tcp", "1:65535/tcp")]
        {
            assert_eq!(text.parse::<Published>().unwrap().to_string(), meaning);
        }
        for text in ["", "80", "0:80", "80:0", "80:65536", "80:80/sctp", "a:b", "+1:2", "1:2:3", "1:2/"] {
            assert!(text.parse::<Published>().is_err(), "{text:?}");
        }
    }
}
