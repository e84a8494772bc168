//! Frames: Ethernet, ARP, IPv4, UDP and TCP, as far as the tests need them.

pub type Mac = [u8; 6];
pub type Ip = [u8; 4];

pub const BROADCAST: Mac = [0xff; 6];
pub const ANY: Ip = [0; 4];

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const UDP: u8 = 17;
const TCP: u8 = 6;

/// Largest frame that the tests send.
const MAX_FRAME: usize = 1514;

/// A frame under construction.
pub struct Frame {
    bytes: [u8; MAX_FRAME],
    len: usize,
}

impl Frame {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn ethernet(to: Mac, from: Mac, ethertype: [u8; 2]) -> Self {
        let mut frame = Frame { bytes: [0; MAX_FRAME], len: 0 };
        frame.push(&to).push(&from).push(&ethertype);
        frame
    }

    fn push(&mut self, bytes: &[u8]) -> &mut Self {
        let room = &mut self.bytes[self.len..];
        let len = bytes.len().min(room.len());
        room[..len].copy_from_slice(&bytes[..len]);
        self.len += len;
        self
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Who has `target`?
    pub fn arp_request(mac: Mac, ip: Ip, target: Ip) -> Self {
        let mut frame = Self::ethernet(BROADCAST, mac, ETHERTYPE_ARP);
        frame.push(&[0, 1, 8, 0, 6, 4, 0, 1]);
        frame.push(&mac).push(&ip).push(&[0; 6]).push(&target);
        frame
    }

    pub fn udp(from: (Mac, Ip, u16), to: (Mac, Ip, u16), payload: &[u8]) -> Self {
        let mut frame = Self::ipv4((from.0, from.1), (to.0, to.1), UDP, 8 + payload.len());
        let start = frame.len;
        frame.push(&from.2.to_be_bytes()).push(&to.2.to_be_bytes());
        frame.push(&(8 + payload.len() as u16).to_be_bytes()).push(&[0, 0]).push(payload);
        frame.checksum_transport(UDP, start, 6);
        frame
    }

    pub fn tcp(from: (Mac, Ip, u16), to: (Mac, Ip, u16), segment: &Segment<'_>) -> Self {
        let mut frame = Self::ipv4((from.0, from.1), (to.0, to.1), TCP, 20 + segment.payload.len());
        let start = frame.len;
        frame.push(&from.2.to_be_bytes()).push(&to.2.to_be_bytes());
        frame.push(&segment.seq.to_be_bytes()).push(&segment.ack.to_be_bytes());
        frame.push(&[5 << 4, segment.flags, 0x20, 0, 0, 0, 0, 0]).push(segment.payload);
        frame.checksum_transport(TCP, start, 16);
        frame
    }

    fn ipv4(from: (Mac, Ip), to: (Mac, Ip), protocol: u8, len: usize) -> Self {
        let mut frame = Self::ethernet(to.0, from.0, ETHERTYPE_IPV4);
        let start = frame.len;
        frame.push(&[0x45, 0]).push(&(20 + len as u16).to_be_bytes());
        frame.push(&[0, 0, 0x40, 0, 64, protocol, 0, 0]).push(&from.1).push(&to.1);
        let sum = checksum(&frame.bytes[start..frame.len], 0);
        frame.put(start + 10, &sum.to_be_bytes());
        frame
    }

    fn checksum_transport(&mut self, protocol: u8, start: usize, at: usize) {
        let addresses = &self.bytes[start - 8..start];
        let pseudo = add(addresses, u32::from(protocol) + (self.len - start) as u32);
        let sum = checksum(&self.bytes[start..self.len], pseudo);
        self.put(start + at, &sum.to_be_bytes());
    }
}

fn add(bytes: &[u8], sum: u32) -> u32 {
    bytes
        .chunks(2)
        .fold(sum, |sum, pair| sum + (u32::from(pair[0]) << 8) + u32::from(pair.get(1).copied().unwrap_or(0)))
}

fn checksum(bytes: &[u8], sum: u32) -> u16 {
    let mut sum = add(bytes, sum);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What varies in a TCP segment.
pub struct Segment<'a> {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub payload: &'a [u8],
}

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// MAC address that an ARP reply gives for `ip`.
pub fn arp_reply(frame: &[u8], ip: Ip) -> Option<Mac> {
    let body = frame.get(14..42)?;
    let is_reply = frame[12..14] == ETHERTYPE_ARP && body[..8] == [0, 1, 8, 0, 6, 4, 0, 2];
    (is_reply && body[14..18] == ip).then(|| body[8..14].try_into().unwrap_or_default())
}

/// Payload of a transport protocol: source address and the rest after the IPv4 header.
fn ipv4_payload(frame: &[u8], protocol: u8) -> Option<(Ip, &[u8])> {
    let packet = frame.get(14..)?;
    if frame[12..14] != ETHERTYPE_IPV4 || packet.len() < 20 || packet[9] != protocol {
        return None;
    }
    let (header, total) = (usize::from(packet[0] & 15) * 4, usize::from(u16_at(packet, 2)));
    let source = packet[12..16].try_into().ok()?;
    Some((source, packet.get(header..total)?))
}

/// Payload of a UDP datagram to `port`, and whence it came.
pub fn udp_payload(frame: &[u8], port: u16) -> Option<(Ip, &[u8])> {
    let (source, datagram) = ipv4_payload(frame, UDP)?;
    let is_ours = datagram.len() >= 8 && u16_at(datagram, 2) == port;
    is_ours.then(|| (source, &datagram[8..]))
}

/// A TCP segment to `port`.
pub fn tcp_segment(frame: &[u8], port: u16) -> Option<Segment<'_>> {
    let (_, segment) = ipv4_payload(frame, TCP)?;
    if segment.len() < 20 || u16_at(segment, 2) != port {
        return None;
    }
    let word = |at: usize| u32::from(u16_at(segment, at)) << 16 | u32::from(u16_at(segment, at + 2));
    let payload = segment.get(usize::from(segment[12] >> 4) * 4..)?;
    Some(Segment { seq: word(4), ack: word(8), flags: segment[13], payload })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
