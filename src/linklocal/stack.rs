//! The services of one interface behind one door.
//!
//! ```text
//!   transmit(frame) ─ parse ─┬─ ARP ──────────────────────────────────────┐
//!                            ├─ DHCP, DHCPv6, neighbours, routers ────────┤
//!                            └─ source check ─ allowance ─┬─ ICMP echo ───┤
//!                                                         ├─ UDP: NTP, DNS ┼─▶ output ─▶ receive()
//!                                                         └─ TCP: IMDS, DNS ┘
//! ```
//!
//! Nothing here reads a clock, a socket or a file. Memory is bounded by the connection table, the
//! output queue and the metadata.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kiln_model::MacAddr;
use kiln_vmspec::{LinkLocalIpv6, LinkLocalSpec, MetadataSnapshot};
use smoltcp::wire::IpProtocol;

use crate::address::{ALL_DHCP_SERVERS, ALL_NODES, Host, IMDS_V6, host_at, link_local_v6};
use crate::allowance::Allowance;
use crate::classify::Classifier;
use crate::counters::Counters;
use crate::dns::{self, Asker, DnsForward, Resolver};
use crate::imds::{self, Imds};
use crate::output::Output;
use crate::packet::{self, Datagram, IpPacket, Link, Parsed, Refusal};
use crate::secret::{Unpredictable, derive};
use crate::tcp::{Answer, Outcome, Server, Tcp};
use crate::time::Time;
use crate::{arp, dhcp, dhcpv6, icmp, ndp, ntp};

/// Smallest MTU that smoltcp and IPv6 work with (RFC 8200 §5).
const MIN_MTU: u16 = 1280;

const HTTP: u16 = 80;

/// Time between router advertisements that nobody asks for: a third of what they are good for.
const ADVERTISE_EVERY: Duration = Duration::from_secs(600);

/// The link-local services of one interface.
pub struct LinkLocal {
    spec: LinkLocalSpec,
    guest_mac: MacAddr,
    link: Link,
    mtu: u16,
    services: Services,
    tcp: Tcp,
    output: Output,
    /// For the services that EC2 counts.
    allowance: Allowance,
    /// For what an interface needs to come up at all: ARP, DHCP.
    link_allowance: Allowance,
    addresses: BTreeSet<IpAddr>,
    source_dest_check: bool,
    /// The router's own address on the link.
    router_v6: Ipv6Addr,
    /// When the next router advertisement is due, from the guest's first question on.
    next_advertisement: Option<Duration>,
}

/// What answers behind TCP and what it counts.
struct Services {
    imds: Imds,
    dns: Resolver,
    counters: Counters,
    resolver: Option<Ipv4Addr>,
    /// Whether metadata are served over IPv6.
    imds_v6: bool,
}

impl LinkLocal {
    /// Services for the interface `guest_mac` that `spec` describes.
    ///
    /// `mtu` is the largest IP packet of the link. `seed` must be fresh random bytes for each start
    /// and each restore of the machine, the same for all its interfaces: session tokens hang on it.
    pub fn new(
        spec: &LinkLocalSpec,
        guest_mac: MacAddr,
        mtu: u16,
        metadata: Arc<MetadataSnapshot>,
        seed: [u8; 32],
        now: Time,
    ) -> Self {
        let link = Link::new(guest_mac, spec.router_mac);
        let mtu = mtu.max(MIN_MTU);
        let mac = guest_mac.octets();
        let sequence_numbers = Unpredictable::new(&derive(&seed, "sequence numbers", &mac)).next_u64();
        let dns_ids = Unpredictable::new(&derive(&seed, "DNS ids", &mac));
        let mut new = LinkLocal {
            spec: spec.clone(),
            guest_mac,
            link,
            mtu,
            services: Services {
                imds: Imds::new(Arc::clone(&metadata), &seed),
                dns: Resolver::new(&spec.domain_name, dns_ids),
                counters: Counters::default(),
                resolver: spec.resolver,
                imds_v6: false,
            },
            tcp: Tcp::new(link, mtu, sequence_numbers, now),
            output: Output::default(),
            allowance: Allowance::new(now.uptime),
            link_allowance: Allowance::new(now.uptime),
            addresses: BTreeSet::new(),
            source_dest_check: true,
            router_v6: link_local_v6(spec.router_mac),
            next_advertisement: None,
        };
        new.update_metadata(metadata);
        new
    }

    /// What decides which frames come here; a copy that needs no lock.
    pub fn classifier(&self) -> Classifier {
        Classifier::new(&self.spec)
    }

    /// Swaps the metadata. Requests that have been answered keep their answer.
    pub fn update_metadata(&mut self, metadata: Arc<MetadataSnapshot>) {
        let facts = metadata.interfaces.get(&self.guest_mac);
        self.addresses = facts.map(|facts| facts.addresses.iter().copied().collect()).unwrap_or_default();
        self.addresses.insert(IpAddr::V4(self.spec.private_ipv4));
        self.addresses.extend(self.spec.ipv6.map(|ipv6| IpAddr::V6(ipv6.address)));
        self.source_dest_check = facts.is_none_or(|facts| facts.source_dest_check);
        if !metadata.options.ipv6_enabled {
            self.tcp.reset(|local| local.ip() == IpAddr::V6(IMDS_V6));
        }
        self.services.imds_v6 = metadata.options.ipv6_enabled;
        self.services.dns.set_snapshot(&metadata);
        self.services.imds.set_snapshot(metadata);
    }

    /// Makes all session tokens worthless and resets all connections, as after a restore from a
    /// snapshot.
    pub fn reseed(&mut self, seed: [u8; 32]) {
        self.services.imds.reseed(&seed);
        self.tcp.reset(|_| true);
    }

    /// Counts since the interface was made.
    pub fn counters(&self) -> Counters {
        Counters { output_full: self.output.dropped, ..self.services.counters }
    }

    /// TCP connections that are open.
    pub fn connections(&self) -> usize {
        self.tcp.len()
    }

    /// Takes a whole frame of the guest for which the classifier said `Ours`. It may be a segment
    /// that was left for the device to cut (up to 64 KiB). `csum_partial`: the guest left the
    /// transport checksum to the device (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    pub fn transmit(&mut self, now: Time, frame: &[u8], csum_partial: bool) {
        self.services.counters.frames_in += 1;
        match packet::parse(&self.link, frame, csum_partial) {
            Ok(Parsed::Arp(request)) => {
                if self.link_allowance.take(now.uptime, 1)
                    && let Some(reply) =
                        arp::answer(&self.link, self.spec.router, self.spec.resolver, &request)
                {
                    self.services.counters.neighbor_replies += 1;
                    self.output.push(reply);
                }
            }
            Ok(Parsed::Ip(packet)) => self.ip(now, &packet),
            Err(refusal) => self.count_refusal(refusal),
        }
    }

    /// The next frame for the guest, with complete checksums.
    pub fn receive(&mut self, now: Time) -> Option<Vec<u8>> {
        if self.output.is_empty() {
            while let Some((asker, answer)) = self.services.dns.expire(now, &mut self.services.counters) {
                self.deliver(now, asker, &answer);
            }
            self.tcp.egress(now, &mut self.services, &mut self.output);
            if self.next_advertisement.is_some_and(|due| due <= now.uptime) {
                self.advertise_router(now, ALL_NODES);
            }
        }
        let frame = self.output.pop()?;
        self.services.counters.frames_out += 1;
        Some(frame)
    }

    /// How long until [`LinkLocal::receive`] may have something without a frame from the guest.
    /// `None`: not before the next frame.
    pub fn next_deadline(&mut self, now: Time) -> Option<Duration> {
        if !self.output.is_empty() {
            return Some(Duration::ZERO);
        }
        let next = [self.tcp.next_event(now), self.services.dns.next_event(), self.next_advertisement];
        let next = next.into_iter().flatten().min();
        next.map(|at| at.saturating_sub(now.uptime))
    }

    /// Says that somebody calls [`LinkLocal::take_forward`]. Until then names that are not of the VPC
    /// get SERVFAIL at once.
    pub fn enable_dns_forwarding(&mut self) {
        self.services.dns.set_forwarding(true);
    }

    /// The next DNS query for the host to resolve, after [`LinkLocal::transmit`].
    pub fn take_forward(&mut self) -> Option<DnsForward> {
        self.services.dns.take_forward()
    }

    /// Brings a DNS message that came back. What answers no forwarded query is ignored, and so may be
    /// anything.
    pub fn forward_reply(&mut self, now: Time, reply: &[u8]) {
        if let Some((asker, answer)) = self.services.dns.reply(reply, &mut self.services.counters) {
            self.deliver(now, asker, &answer);
        }
    }

    /// Says that a forwarded query will have no reply, so that the guest need not wait.
    pub fn forward_failed(&mut self, now: Time, id: u16) {
        if let Some((asker, answer)) = self.services.dns.fail(id, &mut self.services.counters) {
            self.deliver(now, asker, &answer);
        }
    }
}

impl LinkLocal {
    fn count_refusal(&mut self, refusal: Refusal) {
        let counters = &mut self.services.counters;
        match refusal {
            Refusal::Malformed => counters.malformed += 1,
            Refusal::Checksum => counters.bad_checksum += 1,
            Refusal::Unsupported => counters.unsupported += 1,
            Refusal::ForeignSource => counters.foreign_source += 1,
        }
    }

    fn ip(&mut self, now: Time, packet: &IpPacket<'_>) {
        if packet.protocol == IpProtocol::Udp
            && (packet.dst == IpAddr::V4(self.spec.router) || packet.dst == IpAddr::V4(Ipv4Addr::BROADCAST))
        {
            return self.dhcp(now, packet);
        }
        match ndp::question(packet) {
            Some(ndp::Question::Neighbor(target)) => return self.solicitation(now, packet, target),
            Some(ndp::Question::Router) => return self.router_solicitation(now, packet),
            None => {}
        }
        let to_server = [ALL_DHCP_SERVERS, self.router_v6].map(IpAddr::V6).contains(&packet.dst);
        if packet.protocol == IpProtocol::Udp && to_server {
            return self.dhcpv6(now, packet);
        }
        let Some(host) = self.host_at(packet.dst) else {
            self.services.counters.unserved += 1;
            return;
        };
        if !self.may_send_from(packet.src) {
            self.services.counters.foreign_source += 1;
            return;
        }
        // A segment left for the device to cut counts as what it is cut into.
        let packets = packet.whole.len().div_ceil(usize::from(self.mtu));
        if !self.allowance.take(now.uptime, u64::try_from(packets).unwrap_or(u64::MAX)) {
            self.services.counters.allowance_exceeded += 1;
            return;
        }
        match packet.protocol {
            IpProtocol::Tcp => self.tcp.ingress(now, packet, &mut self.services, &mut self.output),
            IpProtocol::Udp => match packet.datagram() {
                Ok(datagram) => self.datagram(now, host, &datagram),
                Err(refusal) => self.count_refusal(refusal),
            },
            _ => match icmp::echo(&self.link, self.mtu, packet) {
                Some(reply) => {
                    self.services.counters.echo_replies += 1;
                    self.output.push(reply);
                }
                None => self.services.counters.unserved += 1,
            },
        }
    }

    /// What answers at `addr` with the options of the moment.
    fn host_at(&self, addr: IpAddr) -> Option<Host> {
        let has_v6 = || self.services.imds_v6 || self.addresses.iter().any(IpAddr::is_ipv6);
        host_at(addr, self.spec.resolver).filter(|&host| match (addr, host) {
            (IpAddr::V4(_), _) => true,
            (IpAddr::V6(_), Host::Imds) => self.services.imds_v6,
            (IpAddr::V6(_), _) => has_v6(),
        })
    }

    fn solicitation(&mut self, now: Time, packet: &IpPacket<'_>, target: Ipv6Addr) {
        let router = self.is_router(target);
        if !router && !self.is_neighbor(packet, target) && self.host_at(IpAddr::V6(target)).is_none() {
            self.services.counters.unserved += 1;
        } else if !self.link_allowance.take(now.uptime, 1) {
            self.services.counters.allowance_exceeded += 1;
        } else if let Some(reply) = ndp::advertise(&self.link, packet, target, router) {
            self.services.counters.neighbor_replies += 1;
            self.output.push(reply);
        }
    }

    fn is_router(&self, target: Ipv6Addr) -> bool {
        let in_subnet = |ipv6: LinkLocalIpv6| {
            // Base + 1, as on IPv4.
            target == self.router_v6
                || (ndp::in_subnet(ipv6, target) && target.to_bits() & u128::from(u64::MAX) == 1)
        };
        self.spec.ipv6.is_some_and(in_subnet)
    }

    /// Whether somebody else in the subnet may have `target`. A probe for a duplicate of it is not answered:
    /// nobody knows here whether there is one, and the packet filter decides who may use it.
    fn is_neighbor(&self, packet: &IpPacket<'_>, target: Ipv6Addr) -> bool {
        let probing = packet.src == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let own = self.addresses.contains(&IpAddr::V6(target));
        !probing && !own && self.spec.ipv6.is_some_and(|ipv6| ndp::in_subnet(ipv6, target))
    }

    fn router_solicitation(&mut self, now: Time, packet: &IpPacket<'_>) {
        let IpAddr::V6(asker) = packet.src else { return };
        if self.spec.ipv6.is_none() {
            self.services.counters.unserved += 1;
        } else if !self.link_allowance.take(now.uptime, 1) {
            self.services.counters.allowance_exceeded += 1;
        } else {
            self.advertise_router(now, if asker.is_unspecified() { ALL_NODES } else { asker });
        }
    }

    fn advertise_router(&mut self, now: Time, to: Ipv6Addr) {
        let Some(ipv6) = self.spec.ipv6 else { return };
        self.next_advertisement = Some(now.uptime.saturating_add(ADVERTISE_EVERY));
        self.services.counters.router_advertisements += 1;
        self.output.push(ndp::advertise_router(&self.link, self.router_v6, to, ipv6, self.mtu));
    }

    fn dhcpv6(&mut self, now: Time, packet: &IpPacket<'_>) {
        let datagram = match packet.datagram() {
            Ok(datagram) => datagram,
            Err(refusal) => return self.count_refusal(refusal),
        };
        // Clients ask from their link-local address (RFC 8415 section 17); others are no neighbours.
        let from = match packet.src {
            IpAddr::V6(from) if from.is_unicast_link_local() => from,
            _ => {
                self.services.counters.foreign_source += 1;
                return;
            }
        };
        if datagram.dst.1 != dhcpv6::SERVER_PORT {
            self.services.counters.unserved += 1;
        } else if !self.link_allowance.take(now.uptime, 1) {
            self.services.counters.allowance_exceeded += 1;
        } else if let Some(reply) = dhcpv6::answer(&self.link, &self.spec, from, datagram.payload) {
            self.services.counters.dhcpv6_replies += 1;
            self.output.push(reply);
        }
    }

    /// Sends the answer to a DNS query.
    fn deliver(&mut self, now: Time, asker: Asker, answer: &[u8]) {
        match asker {
            Asker::Udp { guest, service } => self.output.push(self.link.udp(service, guest, answer)),
            Asker::Tcp(connection) => {
                self.tcp.resume(now, connection, dns::frame(answer), &mut self.services);
            }
        }
    }

    fn may_send_from(&self, src: IpAddr) -> bool {
        let unicast = match src {
            IpAddr::V4(src) => !(src.is_unspecified() || src.is_broadcast() || src.is_multicast()),
            IpAddr::V6(src) => !(src.is_unspecified() || src.is_multicast()),
        };
        let own =
            self.addresses.contains(&src) || matches!(src, IpAddr::V6(src) if src.is_unicast_link_local());
        unicast && (own || !self.source_dest_check)
    }

    fn dhcp(&mut self, now: Time, packet: &IpPacket<'_>) {
        let datagram = match packet.datagram() {
            Ok(datagram) => datagram,
            Err(refusal) => return self.count_refusal(refusal),
        };
        if datagram.dst.1 != dhcp::SERVER_PORT {
            self.services.counters.unserved += 1;
        } else if !self.link_allowance.take(now.uptime, 1) {
            self.services.counters.allowance_exceeded += 1;
        } else if let Some(reply) = dhcp::answer(&self.link, &self.spec, self.mtu, datagram.payload) {
            self.services.counters.dhcp_replies += 1;
            self.output.push(reply);
        }
    }

    fn datagram(&mut self, now: Time, host: Host, datagram: &Datagram<'_>) {
        match (host, datagram.dst.1) {
            (Host::Ntp, ntp::PORT) => {
                if let Some(reply) = ntp::answer(datagram.payload, now.wall) {
                    self.services.counters.ntp_replies += 1;
                    self.output.push(self.link.udp_reply(datagram, &reply));
                }
            }
            (Host::Dns, dns::PORT) => {
                let asker = Asker::Udp { guest: datagram.src, service: datagram.dst };
                let services = &mut self.services;
                if let dns::Outcome::Answer(answer) =
                    services.dns.ask(now, asker, datagram.payload, &mut services.counters)
                {
                    self.deliver(now, asker, &answer);
                }
            }
            _ => self.services.counters.unserved += 1,
        }
    }
}

impl Services {
    /// What listens at the end `local` of a connection.
    fn listener(&self, local: SocketAddr) -> Option<Host> {
        let host = host_at(local.ip(), self.resolver)?;
        matches!((host, local.port()), (Host::Imds, HTTP) | (Host::Dns, dns::PORT)).then_some(host)
    }
}

impl Server for Services {
    fn listens(&self, local: SocketAddr) -> bool {
        self.listener(local).is_some()
    }

    fn longest_request(&self, local: SocketAddr) -> usize {
        match self.listener(local) {
            Some(Host::Dns) => dns::MAX_TCP_QUERY,
            _ => imds::http::MAX_REQUEST,
        }
    }

    fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }

    fn serve(&mut self, now: Time, connection: u64, local: SocketAddr, received: &[u8]) -> Outcome {
        if self.listener(local) == Some(Host::Dns) {
            return self.serve_dns(now, connection, received);
        }
        match self.imds.answer(now, received, &mut self.counters) {
            Some(reply) => Outcome::Answer(Answer {
                consumed: reply.consumed,
                bytes: reply.bytes,
                hop_limit: reply.hop_limit,
                close: reply.close,
            }),
            None => Outcome::Incomplete,
        }
    }
}

impl Services {
    fn serve_dns(&mut self, now: Time, connection: u64, received: &[u8]) -> Outcome {
        let Some((message, consumed)) = dns::framed(received) else {
            // Longer than any query: there is no point in waiting for the rest.
            return if received.len() < dns::MAX_TCP_QUERY { Outcome::Incomplete } else { Outcome::Close };
        };
        match self.dns.ask(now, Asker::Tcp(connection), message, &mut self.counters) {
            dns::Outcome::Answer(answer) => Outcome::Answer(Answer {
                consumed,
                bytes: dns::frame(&answer),
                hop_limit: None,
                close: false,
            }),
            dns::Outcome::Later => Outcome::Later { consumed },
            dns::Outcome::Ignored => Outcome::Close,
        }
    }
}

#[cfg(test)]
mod tests;
