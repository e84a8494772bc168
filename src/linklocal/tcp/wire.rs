//! The device that smoltcp sees: one packet in, any number out.
//!
//! The medium is plain IP. There is exactly one station on the link, so there is no neighbour to
//! discover, and the frame header is put on here.

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket,
};

use crate::output::Output;
use crate::packet::{ETHERNET_HEADER, HOP_LIMIT, Link};

/// Borrows what one call into smoltcp needs.
pub(crate) struct Wire<'w> {
    pub(crate) link: Link,
    pub(crate) mtu: u16,
    pub(crate) packet: Option<&'w [u8]>,
    pub(crate) output: &'w mut Output,
}

pub(crate) struct Incoming<'w>(&'w [u8]);

pub(crate) struct Outgoing<'w> {
    link: Link,
    output: &'w mut Output,
}

impl Device for Wire<'_> {
    type RxToken<'a>
        = Incoming<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Outgoing<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        let packet = self.packet.take()?;
        Some((Incoming(packet), Outgoing { link: self.link, output: self.output }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_>> {
        self.output.has_room().then_some(Outgoing { link: self.link, output: self.output })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(self.mtu);
        // Verified before, with regard to checksums that the guest left to the device.
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = Checksum::Tx;
        capabilities.checksum = checksum;
        capabilities
    }
}

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = self.link.frame(EthernetProtocol::Ipv4, len);
        let result = f(bytes.get_mut(ETHERNET_HEADER..).unwrap_or_default());
        finish(&mut bytes);
        self.output.push(bytes);
        result
    }
}

/// Names the protocol in the frame header, and gives the usual hop limit back to segments without
/// payload: a socket has one hop limit, but only what carries a token may be confined by it.
fn finish(frame: &mut [u8]) {
    let Some((header, packet)) = frame.split_at_mut_checked(ETHERNET_HEADER) else { return };
    match IpVersion::of_packet(packet) {
        Ok(IpVersion::Ipv4) => {
            let Ok(mut ip) = Ipv4Packet::new_checked(packet) else { return };
            if ip.next_header() == IpProtocol::Tcp && ip.hop_limit() != HOP_LIMIT && is_bare(ip.payload_mut())
            {
                ip.set_hop_limit(HOP_LIMIT);
                ip.fill_checksum();
            }
        }
        Ok(IpVersion::Ipv6) => {
            EthernetFrame::<&mut [u8]>::new_unchecked(header).set_ethertype(EthernetProtocol::Ipv6);
            let Ok(mut ip) = Ipv6Packet::new_checked(packet) else { return };
            if ip.next_header() == IpProtocol::Tcp && ip.hop_limit() != HOP_LIMIT && is_bare(ip.payload_mut())
            {
                ip.set_hop_limit(HOP_LIMIT);
            }
        }
        Err(_) => {}
    }
}

/// Whether a TCP segment has no payload.
fn is_bare(segment: &mut [u8]) -> bool {
    TcpPacket::new_checked(&*segment).is_ok_and(|segment| segment.payload().is_empty())
}
