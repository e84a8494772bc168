//! Frames of the guest taken apart, and frames for the guest put together.
//!
//! What comes out of [`parse`] has passed every check that does not depend on a service: lengths,
//! IPv4 header checksum, no options, no fragments, no extension headers, and the checksum of the
//! transport where the guest did not leave it to the device.

use std::net::IpAddr;

use kiln_model::MacAddr;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv6Packet,
    IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket, UdpRepr,
};

pub(crate) const ETHERNET_HEADER: usize = 14;

/// Hop limit of everything except token replies.
pub(crate) const HOP_LIMIT: u8 = 64;

/// The two ends of the link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) guest: EthernetAddress,
    pub(crate) router: EthernetAddress,
}

impl Link {
    pub(crate) fn new(guest: MacAddr, router: MacAddr) -> Self {
        Link { guest: EthernetAddress(guest.octets()), router: EthernetAddress(router.octets()) }
    }

    /// A frame for the guest with room for `payload` bytes of zeros.
    pub(crate) fn frame(&self, ethertype: EthernetProtocol, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0; ETHERNET_HEADER.saturating_add(payload)];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes);
        frame.set_dst_addr(self.guest);
        frame.set_src_addr(self.router);
        frame.set_ethertype(ethertype);
        bytes
    }

    /// An IP packet for the guest, complete with checksums; `fill` writes `payload` bytes.
    pub(crate) fn ip(
        &self,
        (src, dst): (IpAddr, IpAddr),
        protocol: IpProtocol,
        hop_limit: u8,
        payload: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Vec<u8> {
        let repr = IpRepr::new(src.into(), dst.into(), protocol, payload, hop_limit);
        let ethertype = if src.is_ipv4() { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 };
        let mut bytes = self.frame(ethertype, repr.buffer_len());
        if let Some(packet) = bytes.get_mut(ETHERNET_HEADER..) {
            repr.emit(&mut *packet, &ChecksumCapabilities::default());
            if let Some(payload) = packet.get_mut(repr.header_len()..) {
                fill(payload);
            }
        }
        bytes
    }

    /// The answer to a datagram, ends swapped.
    pub(crate) fn udp_reply(&self, datagram: &Datagram<'_>, payload: &[u8]) -> Vec<u8> {
        self.udp(datagram.dst, datagram.src, payload)
    }

    /// A UDP datagram for the guest.
    pub(crate) fn udp(&self, from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
        let repr = UdpRepr { src_port: from.1, dst_port: to.1 };
        let (src, dst): (IpAddress, IpAddress) = (from.0.into(), to.0.into());
        let length = repr.header_len().saturating_add(payload.len());
        self.ip((from.0, to.0), IpProtocol::Udp, HOP_LIMIT, length, |buffer| {
            repr.emit(
                &mut UdpPacket::new_unchecked(buffer),
                &src,
                &dst,
                payload.len(),
                |to| to.copy_from_slice(payload),
                &ChecksumCapabilities::default(),
            );
        })
    }
}

/// Why a frame goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Lengths, versions or addresses that do not fit together.
    Malformed,
    /// A transport or header checksum that does not hold.
    Checksum,
    /// IPv4 options or IPv6 extension headers, fragments, tagged frames, unknown ethertypes.
    Unsupported,
    /// Hardware address of somebody else.
    ForeignSource,
}

/// A frame with meaning.
#[derive(Debug)]
pub(crate) enum Parsed<'a> {
    Arp(ArpRepr),
    Ip(IpPacket<'a>),
}

/// An IP packet without options or fragments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IpPacket<'a> {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: IpProtocol,
    pub(crate) hop_limit: u8,
    /// From the IP header to the end of the payload.
    pub(crate) whole: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// A UDP datagram, ends as (address, port).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Datagram<'a> {
    pub(crate) src: (IpAddr, u16),
    pub(crate) dst: (IpAddr, u16),
    pub(crate) payload: &'a [u8],
}

impl<'a> IpPacket<'a> {
    /// The datagram inside.
    pub(crate) fn datagram(&self) -> Result<Datagram<'a>, Refusal> {
        let udp = UdpPacket::new_checked(self.payload).map_err(|_| Refusal::Malformed)?;
        Ok(Datagram {
            src: (self.src, udp.src_port()),
            dst: (self.dst, udp.dst_port()),
            payload: udp.payload(),
        })
    }
}

/// Takes a frame apart. `csum_partial`: the guest left the transport checksum to the device.
pub(crate) fn parse<'a>(link: &Link, frame: &'a [u8], csum_partial: bool) -> Result<Parsed<'a>, Refusal> {
    let ethernet = EthernetFrame::new_checked(frame).map_err(|_| Refusal::Malformed)?;
    if ethernet.src_addr() != link.guest {
        return Err(Refusal::ForeignSource);
    }
    let payload = ethernet.payload();
    match ethernet.ethertype() {
        EthernetProtocol::Arp => {
            let packet = ArpPacket::new_checked(payload).map_err(|_| Refusal::Malformed)?;
            ArpRepr::parse(&packet).map(Parsed::Arp).map_err(|_| Refusal::Malformed)
        }
        EthernetProtocol::Ipv4 => parse_ipv4(payload, csum_partial).map(Parsed::Ip),
        EthernetProtocol::Ipv6 => parse_ipv6(payload, csum_partial).map(Parsed::Ip),
        _ => Err(Refusal::Unsupported),
    }
}

fn parse_ipv4(bytes: &[u8], csum_partial: bool) -> Result<IpPacket<'_>, Refusal> {
    let packet = Ipv4Packet::new_checked(bytes).map_err(|_| Refusal::Malformed)?;
    if packet.version() != 4 || packet.header_len() < 20 {
        return Err(Refusal::Malformed);
    }
    if packet.header_len() != 20 || packet.more_frags() || packet.frag_offset() != 0 {
        return Err(Refusal::Unsupported);
    }
    if !packet.verify_checksum() {
        return Err(Refusal::Checksum);
    }
    let parsed = IpPacket {
        src: packet.src_addr().into(),
        dst: packet.dst_addr().into(),
        protocol: packet.next_header(),
        hop_limit: packet.hop_limit(),
        whole: bytes.get(..usize::from(packet.total_len())).ok_or(Refusal::Malformed)?,
        payload: packet.payload(),
    };
    verify_transport(parsed, csum_partial)
}

fn parse_ipv6(bytes: &[u8], csum_partial: bool) -> Result<IpPacket<'_>, Refusal> {
    let packet = Ipv6Packet::new_checked(bytes).map_err(|_| Refusal::Malformed)?;
    if packet.version() != 6 {
        return Err(Refusal::Malformed);
    }
    let parsed = IpPacket {
        src: packet.src_addr().into(),
        dst: packet.dst_addr().into(),
        protocol: packet.next_header(),
        hop_limit: packet.hop_limit(),
        whole: bytes.get(..packet.total_len()).ok_or(Refusal::Malformed)?,
        payload: packet.payload(),
    };
    verify_transport(parsed, csum_partial)
}

fn verify_transport(packet: IpPacket<'_>, csum_partial: bool) -> Result<IpPacket<'_>, Refusal> {
    let (src, dst): (IpAddress, IpAddress) = (packet.src.into(), packet.dst.into());
    let holds = match (packet.protocol, packet.src, packet.dst) {
        (IpProtocol::Tcp, ..) => {
            let tcp = TcpPacket::new_checked(packet.payload).map_err(|_| Refusal::Malformed)?;
            csum_partial || tcp.verify_checksum(&src, &dst)
        }
        (IpProtocol::Udp, ..) => {
            let udp = UdpPacket::new_checked(packet.payload).map_err(|_| Refusal::Malformed)?;
            csum_partial || udp.verify_checksum(&src, &dst)
        }
        (IpProtocol::Icmp, IpAddr::V4(_), _) => {
            Icmpv4Packet::new_checked(packet.payload).map_err(|_| Refusal::Malformed)?.verify_checksum()
        }
        (IpProtocol::Icmpv6, IpAddr::V6(src), IpAddr::V6(dst)) => {
            let icmp = Icmpv6Packet::new_checked(packet.payload).map_err(|_| Refusal::Malformed)?;
            csum_partial || icmp.verify_checksum(&src, &dst)
        }
        // Extension headers among them.
        _ => return Err(Refusal::Unsupported),
    };
    if holds { Ok(packet) } else { Err(Refusal::Checksum) }
}
