//! TCP connections to the services, on smoltcp.
//!
//! smoltcp has no listen backlog, so a socket is made for each SYN that comes, and nothing ever sits
//! and listens. Connections are bounded in number; when there is no room, the least valuable one is
//! reset: half-open before closing before idle before one that has sent part of a request before one
//! that does not take its answer, and the oldest of its kind. So a flood of half-open or of very slow
//! connections only displaces itself.

mod connection;
mod wire;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::socket::tcp::State;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, TcpPacket};

use crate::counters::Counters;
use crate::output::Output;
use crate::packet::{IpPacket, Link};
use crate::time::Time;
pub(crate) use connection::{Answer, Outcome};
use connection::{Connection, Phase};
use wire::Wire;

/// Most connections of one interface. Each costs 12 KiB of buffers, plus the request and the answer
/// under way.
pub(crate) const MAX_CONNECTIONS: usize = 128;

/// How long an answer under way is never given up for a new connection. On a link inside one machine
/// it takes milliseconds.
const UNDISTURBED: Duration = Duration::from_secs(2);

/// Something that answers on connections.
pub(crate) trait Server {
    /// Whether a service listens there.
    fn listens(&self, local: SocketAddr) -> bool;

    /// Longest request of the service that listens there.
    fn longest_request(&self, local: SocketAddr) -> usize;

    /// Where connections are counted.
    fn counters(&mut self) -> &mut Counters;

    /// What to do with the bytes received so far on a connection.
    fn serve(&mut self, now: Time, connection: u64, local: SocketAddr, received: &[u8]) -> Outcome;
}

/// All connections of one interface.
pub(crate) struct Tcp {
    interface: Interface,
    /// Answers segments that belong to no connection.
    nobody: SocketSet<'static>,
    connections: Vec<Connection>,
    next_id: u64,
    /// Connection that may send first in the next round.
    first: usize,
    link: Link,
    mtu: u16,
}

impl Tcp {
    pub(crate) fn new(link: Link, mtu: u16, seed: u64, now: Time) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut output = Output::default();
        let mut wire = Wire { link, mtu, packet: None, output: &mut output };
        let mut interface = Interface::new(config, &mut wire, now.instant());
        // Which addresses are ours was decided before a packet comes here.
        interface.set_any_ip(true);
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(Ipv4Addr::new(169, 254, 169, 254)), 32));
        });
        Tcp {
            interface,
            nobody: SocketSet::new(Vec::new()),
            connections: Vec::new(),
            next_id: 0,
            first: 0,
            link,
            mtu,
        }
    }

    /// Takes a segment of the guest.
    pub(crate) fn ingress(
        &mut self,
        now: Time,
        packet: &IpPacket<'_>,
        server: &mut impl Server,
        output: &mut Output,
    ) {
        let Ok(segment) = TcpPacket::new_checked(packet.payload) else { return };
        let local = SocketAddr::new(packet.dst, segment.dst_port());
        let peer = SocketAddr::new(packet.src, segment.src_port());
        if peer.port() == 0 || local.port() == 0 || !is_unicast(peer.ip()) {
            server.counters().malformed += 1;
            return;
        }
        let opening = segment.syn() && !segment.ack() && !segment.rst();
        let mut at = self.connections.iter().position(|c| c.local == local && c.peer == peer);
        // A new connection may take the place of one that only waits for stray segments.
        if let Some(index) = at
            && opening
            && self.connections.get(index).is_some_and(|c| c.worth().0 == Phase::Over)
        {
            self.connections.swap_remove(index);
            at = None;
        }
        if at.is_none() && opening && server.listens(local) {
            if !self.make_room(now, output, server.counters()) {
                server.counters().connections_refused += 1;
                return;
            }
            if let Some(connection) = Connection::listen(self.next_id, local, peer, now) {
                self.next_id += 1;
                server.counters().connections += 1;
                self.connections.push(connection);
                at = self.connections.len().checked_sub(1);
            }
        }
        let connection = at.and_then(|at| self.connections.get_mut(at));
        let mut wire = Wire { link: self.link, mtu: self.mtu, packet: Some(packet.whole), output };
        let Some(connection) = connection else {
            self.interface.poll_ingress_single(now.instant(), &mut wire, &mut self.nobody);
            return;
        };
        self.interface.poll_ingress_single(now.instant(), &mut wire, &mut connection.sockets);
        pump(connection, now, server);
        self.remove_gone();
    }

    /// Hands the answer to a request that was left [`Outcome::Later`] to its connection, if it is
    /// still there.
    pub(crate) fn resume(&mut self, now: Time, id: u64, bytes: Vec<u8>, server: &mut impl Server) {
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) {
            connection.resume(now, bytes);
            pump(connection, now, server);
        }
    }

    /// Gives up what has waited too long, and sends what may be sent while the queue has room.
    pub(crate) fn egress(&mut self, now: Time, server: &mut impl Server, output: &mut Output) {
        for connection in &mut self.connections {
            if connection.deadline() <= now.uptime && connection.worth().0 != Phase::Over {
                server.counters().connections_timed_out += 1;
                connection.give_up(now);
            }
        }
        let count = self.connections.len();
        let mut wire = Wire { link: self.link, mtu: self.mtu, packet: None, output };
        // Each connection sends one segment per round, so that a long answer does not hold up others.
        let mut sending = count > 0;
        while sending && wire.output.has_room() {
            sending = false;
            for offset in 0..count {
                let at = (self.first + offset) % count;
                let Some(connection) = self.connections.get_mut(at) else { continue };
                if !wire.output.has_room() {
                    self.first = at;
                    break;
                }
                let sent = self.interface.poll_egress(now.instant(), &mut wire, &mut connection.sockets);
                if sent == PollResult::SocketStateChanged {
                    sending = true;
                    pump(connection, now, server);
                }
            }
        }
        self.remove_gone();
    }

    /// When [`Tcp::egress`] should be called next, as uptime.
    pub(crate) fn next_event(&mut self, now: Time) -> Option<Duration> {
        let Tcp { interface, connections, .. } = self;
        connections
            .iter()
            .map(|connection| {
                let timer = interface
                    .poll_at(now.instant(), &connection.sockets)
                    .map(|at| Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)));
                let deadline = connection.deadline();
                let over = connection.worth().0 == Phase::Over;
                match timer {
                    Some(timer) if over => timer,
                    Some(timer) => timer.min(deadline),
                    None => deadline,
                }
            })
            .min()
    }

    /// Connections that are there.
    pub(crate) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Resets all connections that `end` points at, such as those to a service that was disabled.
    pub(crate) fn reset(&mut self, end: impl Fn(SocketAddr) -> bool) {
        for connection in self.connections.iter_mut().filter(|c| end(c.local)) {
            connection.abort();
        }
    }

    /// Makes sure that one more connection fits.
    fn make_room(&mut self, now: Time, output: &mut Output, counters: &mut Counters) -> bool {
        if self.connections.len() < MAX_CONNECTIONS {
            return true;
        }
        let Some((at, worth)) = self
            .connections
            .iter()
            .enumerate()
            .map(|(at, connection)| (at, connection.worth()))
            .min_by_key(|&(_, worth)| worth)
        else {
            return true;
        };
        if worth.0 >= Phase::Pending && now.uptime.saturating_sub(worth.1) < UNDISTURBED {
            return false;
        }
        let mut victim = self.connections.swap_remove(at);
        if worth.0 != Phase::Over {
            counters.connections_evicted += 1;
            victim.abort();
            let mut wire = Wire { link: self.link, mtu: self.mtu, packet: None, output };
            self.interface.poll_egress(now.instant(), &mut wire, &mut victim.sockets);
        }
        true
    }

    /// Forgets connections on which nothing can happen any more, and those whose first segment was
    /// no good.
    fn remove_gone(&mut self) {
        self.connections.retain(|connection| !connection.is_gone() && connection.state() != State::Listen);
    }
}

fn pump(connection: &mut Connection, now: Time, server: &mut impl Server) {
    let (id, local) = (connection.id, connection.local);
    let limit = server.longest_request(local);
    connection.pump(now, limit, |received| server.serve(now, id, local, received));
}

fn is_unicast(addr: IpAddr) -> bool {
    let broadcast = matches!(addr, IpAddr::V4(addr) if addr.is_broadcast());
    !(addr.is_unspecified() || addr.is_multicast() || addr.is_loopback() || broadcast)
}

#[cfg(test)]
mod tests;
