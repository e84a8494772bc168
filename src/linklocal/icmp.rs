//! ICMP echo (RFC 792, RFC 4443 §4).

use std::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol};

use crate::packet::{HOP_LIMIT, IpPacket, Link};

/// The answer to an echo request. `None` for other messages, and for one whose answer would be
/// longer than `mtu`.
pub(crate) fn echo(link: &Link, mtu: u16, packet: &IpPacket<'_>) -> Option<Vec<u8>> {
    if packet.whole.len() > usize::from(mtu) {
        return None;
    }
    let checksums = ChecksumCapabilities::default();
    let ends = (packet.dst, packet.src);
    match (packet.protocol, packet.src, packet.dst) {
        (IpProtocol::Icmp, IpAddr::V4(_), IpAddr::V4(_)) => {
            let request = Icmpv4Packet::new_checked(packet.payload).ok()?;
            let Ok(Icmpv4Repr::EchoRequest { ident, seq_no, data }) = Icmpv4Repr::parse(&request, &checksums)
            else {
                return None;
            };
            let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
            Some(link.ip(ends, IpProtocol::Icmp, HOP_LIMIT, reply.buffer_len(), |buffer| {
                reply.emit(&mut Icmpv4Packet::new_unchecked(buffer), &checksums);
            }))
        }
        (IpProtocol::Icmpv6, IpAddr::V6(src), IpAddr::V6(dst)) => {
            let request = Icmpv6Packet::new_checked(packet.payload).ok()?;
            // The checksum was verified before, where the guest had not left it to the device.
            let Ok(Icmpv6Repr::EchoRequest { ident, seq_no, data }) =
                Icmpv6Repr::parse(&src, &dst, &request, &ChecksumCapabilities::ignored())
            else {
                return None;
            };
            let reply = Icmpv6Repr::EchoReply { ident, seq_no, data };
            Some(link.ip(ends, IpProtocol::Icmpv6, HOP_LIMIT, reply.buffer_len(), |buffer| {
                reply.emit(&dst, &src, &mut Icmpv6Packet::new_unchecked(buffer), &checksums);
            }))
        }
        _ => None,
    }
}
