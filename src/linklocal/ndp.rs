//! Neighbour discovery (RFC 4861): everybody whom the guest can ask for has the router's hardware address.
//!
//! ```text
//!   who has a service (fd00:ec2::/32), the router, a neighbour in the subnet? ──▶ the router's hardware address
//!   who is the router? ──▶ advertisement: the prefix is on this link, addresses come by DHCPv6 (M and O)
//! ```
//! A guest learns nothing of its neighbours: whatever it sends to them goes by way of the router, as it
//! does on IPv4. No frame of these ever leaves the VMM, and none from outside reaches the guest, so there
//! is nobody who could claim to be the router.

use std::net::{IpAddr, Ipv6Addr};

use kiln_vmspec::LinkLocalIpv6;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv6Packet, Icmpv6Repr, IpProtocol, NdiscNeighborFlags, NdiscRepr, RawHardwareAddress,
};

use crate::address::ALL_NODES;
use crate::packet::{IpPacket, Link};

/// Neighbour discovery is only valid with this hop limit: nobody has forwarded it.
const HOP_LIMIT: u8 = 255;
/// Hardware address of [`ALL_NODES`].
const ALL_NODES_HARDWARE: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

const ROUTER_ADVERTISEMENT: u8 = 134;
/// Addresses (M) and other settings (O) come by DHCPv6.
const MANAGED_AND_OTHER: u8 = 0xc0;
/// How long the router is one after an advertisement, in seconds.
const ROUTER_LIFETIME: u16 = 1800;
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const PREFIX_INFORMATION: u8 = 3;
const MTU: u8 = 5;
/// The prefix is on this link (L); no address is to be made of it (not A).
const ON_LINK: u8 = 0x80;

/// What a guest asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// Who has this address?
    Neighbor(Ipv6Addr),
    /// Who is the router?
    Router,
}

/// What `packet` asks, if it asks.
pub(crate) fn question(packet: &IpPacket<'_>) -> Option<Question> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (packet.src, packet.dst) else { return None };
    if packet.protocol != IpProtocol::Icmpv6 || packet.hop_limit != HOP_LIMIT {
        return None;
    }
    let message = Icmpv6Packet::new_checked(packet.payload).ok()?;
    // The checksum was verified before, where the guest had not left it to the device.
    match Icmpv6Repr::parse(&src, &dst, &message, &ChecksumCapabilities::ignored()) {
        Ok(Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. })) => {
            Some(Question::Neighbor(target_addr))
        }
        Ok(Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { .. })) => Some(Question::Router),
        _ => None,
    }
}

/// The advertisement of `target` for whoever sent `packet`.
pub(crate) fn advertise(
    link: &Link,
    packet: &IpPacket<'_>,
    target: Ipv6Addr,
    router: bool,
) -> Option<Vec<u8>> {
    let IpAddr::V6(asker) = packet.src else { return None };
    // A probe for a duplicate has no address of its own.
    let probing = asker.is_unspecified();
    let to = if probing { ALL_NODES } else { asker };
    let solicited = if probing { NdiscNeighborFlags::empty() } else { NdiscNeighborFlags::SOLICITED };
    let router = if router { NdiscNeighborFlags::ROUTER } else { NdiscNeighborFlags::empty() };
    let advertisement = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags: solicited | router | NdiscNeighborFlags::OVERRIDE,
        target_addr: target,
        lladdr: Some(RawHardwareAddress::from(link.router)),
    });
    let ends = (IpAddr::V6(target), IpAddr::V6(to));
    let mut frame = link.ip(ends, IpProtocol::Icmpv6, HOP_LIMIT, advertisement.buffer_len(), |buffer| {
        let mut message = Icmpv6Packet::new_unchecked(buffer);
        advertisement.emit(&target, &to, &mut message, &ChecksumCapabilities::default());
    });
    if probing {
        frame.get_mut(..6)?.copy_from_slice(&ALL_NODES_HARDWARE);
    }
    Some(frame)
}

/// The router's advertisement, for one machine or for [`ALL_NODES`] (RFC 4861 section 4.2).
pub(crate) fn advertise_router(
    link: &Link,
    router: Ipv6Addr,
    to: Ipv6Addr,
    ipv6: LinkLocalIpv6,
    mtu: u16,
) -> Vec<u8> {
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, crate::packet::HOP_LIMIT, MANAGED_AND_OTHER];
    message.extend(ROUTER_LIFETIME.to_be_bytes());
    // Reachable and retransmission times: the guest's own.
    message.extend([0; 8]);
    message.extend([SOURCE_LINK_LAYER_ADDRESS, 1]);
    message.extend(link.router.0);
    message.extend([MTU, 1, 0, 0]);
    message.extend(u32::from(mtu).to_be_bytes());
    let prefix_len = ipv6.prefix_len.min(128);
    message.extend([PREFIX_INFORMATION, 4, prefix_len, ON_LINK]);
    // Valid and preferred for ever: an interface stays in its subnet.
    message.extend([0xff; 8]);
    message.extend([0; 4]);
    message.extend((ipv6.address.to_bits() & prefix_mask(prefix_len)).to_be_bytes());
    let ends = (IpAddr::V6(router), IpAddr::V6(to));
    let mut frame = link.ip(ends, IpProtocol::Icmpv6, HOP_LIMIT, message.len(), |buffer| {
        if buffer.len() == message.len() {
            buffer.copy_from_slice(&message);
            Icmpv6Packet::new_unchecked(buffer).fill_checksum(&router, &to);
        }
    });
    if let (true, Some(destination)) = (to == ALL_NODES, frame.get_mut(..6)) {
        destination.copy_from_slice(&ALL_NODES_HARDWARE);
    }
    frame
}

/// Whether `address` is in the subnet of the interface.
pub(crate) fn in_subnet(ipv6: LinkLocalIpv6, address: Ipv6Addr) -> bool {
    let mask = prefix_mask(ipv6.prefix_len);
    (ipv6.address.to_bits() ^ address.to_bits()) & mask == 0
}

fn prefix_mask(prefix_len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix_len.min(128))).unwrap_or(0)
}
