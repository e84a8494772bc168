//! Neighbour discovery (RFC 4861 §7.2): the services at fd00:ec2::/32 have the router's hardware
//! address.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv6Packet, Icmpv6Repr, IpProtocol, NdiscNeighborFlags, NdiscRepr, RawHardwareAddress,
};

use crate::packet::{IpPacket, Link};

/// Neighbour discovery is only valid with this hop limit: nobody has forwarded it.
const HOP_LIMIT: u8 = 255;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The address that `packet` asks for, if it is a solicitation.
pub(crate) fn solicited(packet: &IpPacket<'_>) -> Option<Ipv6Addr> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (packet.src, packet.dst) else { return None };
    if packet.protocol != IpProtocol::Icmpv6 || packet.hop_limit != HOP_LIMIT {
        return None;
    }
    let message = Icmpv6Packet::new_checked(packet.payload).ok()?;
    // The checksum was verified before, where the guest had not left it to the device.
    match Icmpv6Repr::parse(&src, &dst, &message, &ChecksumCapabilities::ignored()) {
        Ok(Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. })) => Some(target_addr),
        _ => None,
    }
}

/// The advertisement of `target` for whoever sent `packet`.
pub(crate) fn advertise(link: &Link, packet: &IpPacket<'_>, target: Ipv6Addr) -> Option<Vec<u8>> {
    let IpAddr::V6(asker) = packet.src else { return None };
    // A probe for a duplicate has no address of its own.
    let probing = asker.is_unspecified();
    let to = if probing { ALL_NODES } else { asker };
    let solicited = if probing { NdiscNeighborFlags::empty() } else { NdiscNeighborFlags::SOLICITED };
    let advertisement = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags: solicited | NdiscNeighborFlags::OVERRIDE,
        target_addr: target,
        lladdr: Some(RawHardwareAddress::from(link.router)),
    });
    let ends = (IpAddr::V6(target), IpAddr::V6(to));
    let mut frame = link.ip(ends, IpProtocol::Icmpv6, HOP_LIMIT, advertisement.buffer_len(), |buffer| {
        let mut message = Icmpv6Packet::new_unchecked(buffer);
        advertisement.emit(&target, &to, &mut message, &ChecksumCapabilities::default());
    });
    if probing {
        frame.get_mut(..6)?.copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    }
    Some(frame)
}
