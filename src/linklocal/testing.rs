//! A fake guest on a virtual clock: a smoltcp host wired frame by frame to [`LinkLocal`].

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kiln_vmspec::{LinkLocalSpec, MetadataSnapshot};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, HardwareAddress, IpCidr, IpProtocol, Ipv4Packet,
    Ipv6Packet, TcpControl, TcpPacket,
};

pub(crate) use crate::fixtures::*;
use crate::{LinkLocal, Time, Verdict};

/// In the range of the services, so that the fake guest needs no route to them.
pub(crate) const GUEST_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 1, 0x10);

/// A TCP segment of the guest to the metadata service, without options.
pub(crate) fn segment(port: u16, control: TcpControl, seq: i32, ack: Option<i32>, payload: &[u8]) -> Vec<u8> {
    segment_to(IMDS, port, control, seq, ack, payload)
}

/// Hop limit and TCP segment of a frame for the guest.
pub(crate) fn tcp_of(frame: &[u8]) -> Option<(u8, TcpPacket<&[u8]>)> {
    let ethernet = EthernetFrame::new_checked(frame).unwrap();
    let (hop_limit, protocol, payload) = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
            assert!(ip.verify_checksum());
            (ip.hop_limit(), ip.next_header(), ip.payload())
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(ethernet.payload()).unwrap();
            (ip.hop_limit(), ip.next_header(), ip.payload())
        }
        _ => return None,
    };
    (protocol == IpProtocol::Tcp).then(|| (hop_limit, TcpPacket::new_checked(payload).unwrap()))
}

/// The guest's network card.
#[derive(Default)]
struct Card {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

struct Rx(Vec<u8>);
struct Tx<'c>(&'c mut VecDeque<Vec<u8>>);

impl Device for Card {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.incoming.pop_front()?), Tx(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(MTU) + 14;
        capabilities
    }
}

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

/// What happens to a frame on the wire; false loses it. The argument says whether it goes to the guest.
pub(crate) type Fate = Box<dyn FnMut(bool, &[u8]) -> bool>;

/// A guest and its services.
pub(crate) struct Bench {
    pub(crate) now: Time,
    pub(crate) service: LinkLocal,
    /// Frames that went to the guest.
    pub(crate) to_guest: Vec<Vec<u8>>,
    /// Frames that were not for the services.
    pub(crate) tapped: Vec<Vec<u8>>,
    pub(crate) fate: Fate,
    /// Swaps neighbours among frames that come to the guest at the same moment.
    pub(crate) reorder: bool,
    pub(crate) guest: Interface,
    pub(crate) sockets: SocketSet<'static>,
    card: Card,
    next_port: u16,
}

impl Bench {
    pub(crate) fn new(metadata: MetadataSnapshot) -> Self {
        Self::with(&spec(), metadata)
    }

    pub(crate) fn with(spec: &LinkLocalSpec, metadata: MetadataSnapshot) -> Self {
        let now = Time { uptime: Duration::from_millis(4_321), wall: WALL };
        let mut card = Card::default();
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC.octets())));
        let mut guest = Interface::new(config, &mut card, now.instant());
        guest.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddr::V4(spec.private_ipv4).into(), spec.prefix_len)).unwrap();
            addresses.push(IpCidr::new(IpAddr::V6(GUEST_IPV6).into(), 32)).unwrap();
        });
        guest.routes_mut().add_default_ipv4_route(spec.router).unwrap();
        Bench {
            now,
            service: LinkLocal::new(spec, GUEST_MAC, MTU, Arc::new(metadata), [7; 32], now),
            to_guest: Vec::new(),
            tapped: Vec::new(),
            fate: Box::new(|_, _| true),
            reorder: false,
            guest,
            sockets: SocketSet::new(Vec::new()),
            card,
            next_port: 40_000,
        }
    }

    /// Lets time pass.
    pub(crate) fn wait(&mut self, time: Duration) {
        self.now.uptime += time;
        self.now.wall += time;
    }

    /// Exchanges what there is to exchange at this moment.
    pub(crate) fn settle(&mut self) {
        loop {
            self.guest.poll(self.now.instant(), &mut self.card, &mut self.sockets);
            let mut moved = false;
            while let Some(frame) = self.card.outgoing.pop_front() {
                moved = true;
                match self.service.classifier().classify(&frame) {
                    Verdict::Tap => self.tapped.push(frame),
                    Verdict::Ours if (self.fate)(false, &frame) => {
                        self.service.transmit(self.now, &frame, false)
                    }
                    Verdict::Ours => {}
                }
            }
            let mut batch: Vec<_> = std::iter::from_fn(|| self.service.receive(self.now)).collect();
            if self.reorder {
                batch.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
            }
            for frame in batch {
                moved = true;
                if (self.fate)(true, &frame) {
                    self.card.incoming.push_back(frame.clone());
                }
                self.to_guest.push(frame);
            }
            if !moved {
                return;
            }
        }
    }

    /// Lets time pass until `done`, jumping from one timer to the next. Gives up after `limit`.
    pub(crate) fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now.uptime + limit;
        loop {
            self.settle();
            if done(self) {
                return true;
            }
            let service = self.service.next_deadline(self.now);
            let guest = self.guest.poll_delay(self.now.instant(), &self.sockets).map(Duration::from);
            if self.now.uptime >= end {
                return false;
            }
            let step = [service, guest].into_iter().flatten().min().unwrap_or(Duration::from_secs(1));
            let step = step.clamp(Duration::from_millis(1), Duration::from_secs(1));
            self.wait(step.min(end - self.now.uptime));
        }
    }

    /// Sends one frame as it is and returns what comes back at once.
    pub(crate) fn exchange(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.service.transmit(self.now, frame, false);
        std::iter::from_fn(|| self.service.receive(self.now)).collect()
    }

    pub(crate) fn connect(&mut self, to: SocketAddr) -> SocketHandle {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; 32 * 1024]),
            tcp::SocketBuffer::new(vec![0; 32 * 1024]),
        );
        self.next_port += 1;
        socket.connect(self.guest.context(), to, self.next_port).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Sends `bytes` as one write, once connected.
    pub(crate) fn send(&mut self, handle: SocketHandle, bytes: &[u8]) {
        assert!(self.run_until(Duration::from_secs(30), |b| b.tcp(handle).may_send()), "not connected");
        assert_eq!(self.tcp(handle).send_slice(bytes), Ok(bytes.len()));
    }

    /// Takes what has arrived.
    pub(crate) fn received(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut all = Vec::new();
        let socket = self.tcp(handle);
        while socket.can_recv() {
            socket
                .recv(|bytes| {
                    all.extend_from_slice(bytes);
                    (bytes.len(), ())
                })
                .unwrap();
        }
        all
    }

    /// Reads one response (of a request that was not HEAD) off the connection.
    pub(crate) fn response(&mut self, handle: SocketHandle) -> Response {
        let mut all = Vec::new();
        let whole = self.run_until(Duration::from_secs(60), |bench| {
            all.extend(bench.received(handle));
            Response::is_whole(&all) || !bench.tcp(handle).may_recv()
        });
        assert!(whole, "no response: {:?}", String::from_utf8_lossy(&all));
        Response::parse(&all)
    }

    /// Sends `request` on a connection of its own and reads the stream to its end or to the end of
    /// the response.
    pub(crate) fn http(&mut self, request: &str) -> Response {
        let handle = self.connect(IMDS);
        self.send(handle, request.as_bytes());
        let response = self.response(handle);
        self.tcp(handle).close();
        self.settle();
        self.sockets.remove(handle);
        response
    }

    pub(crate) fn get(&mut self, path: &str) -> Response {
        self.http(&format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"))
    }

    pub(crate) fn token(&mut self, ttl: u32) -> String {
        let reply = self.http(&format!(
            "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: {ttl}\r\n\r\n"
        ));
        assert_eq!(reply.status, 200);
        String::from_utf8(reply.body).unwrap()
    }

    pub(crate) fn get_with(&mut self, token: &str, path: &str) -> Response {
        self.http(&format!("GET {path} HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"))
    }

    /// Sends a datagram and waits six seconds for the answer.
    pub(crate) fn ask(&mut self, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 8192]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        self.next_port += 1;
        socket.bind(self.next_port).unwrap();
        socket.send_slice(payload, to).unwrap();
        let handle = self.sockets.add(socket);
        let mut answer = None;
        self.run_until(Duration::from_secs(6), |bench| {
            let socket = bench.sockets.get_mut::<udp::Socket>(handle);
            answer = socket.recv().ok().map(|(bytes, _)| bytes.to_vec());
            answer.is_some()
        });
        self.sockets.remove(handle);
        answer
    }
}

/// An HTTP response taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Bytes behind the body.
    pub(crate) rest: Vec<u8>,
}

impl Response {
    fn split(bytes: &[u8]) -> Option<(String, usize)> {
        let at = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
        Some((String::from_utf8(bytes[..at].to_vec()).unwrap(), at + 4))
    }

    fn is_whole(bytes: &[u8]) -> bool {
        Self::split(bytes).is_some_and(|(head, at)| bytes.len() >= at + Self::length(&head))
    }

    fn length(head: &str) -> usize {
        let line = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        line.map_or(0, |value| value.parse().unwrap())
    }

    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let (head, at) = Self::split(bytes)
            .unwrap_or_else(|| panic!("not a response: {:?}", String::from_utf8_lossy(bytes)));
        let mut lines = head.lines();
        let first = lines.next().unwrap();
        let (status, reason) = first.strip_prefix("HTTP/1.1 ").unwrap().split_once(' ').unwrap();
        let (body, rest) = bytes[at..].split_at(Self::length(&head).min(bytes.len() - at));
        Response {
            status: status.parse().unwrap(),
            reason: reason.to_owned(),
            headers: lines
                .map(|line| line.split_once(": ").unwrap())
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            body: body.to_vec(),
            rest: rest.to_vec(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.headers.iter().map(|(name, _)| name.as_str()).collect()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}
