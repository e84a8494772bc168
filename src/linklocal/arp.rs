//! ARP (RFC 826): the router, VPC base + 2 and the services all have the router's hardware address.
//!
//! A request for anything else is not answered: the kernel behind the tap speaks for the subnet, and
//! an answer to a probe for the guest's own address would tell it of a conflict (RFC 5227).

use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetProtocol};

use crate::address::host_at;
use crate::packet::{ETHERNET_HEADER, Link};

/// The reply to `request`, if it asks for one of ours.
pub(crate) fn answer(
    link: &Link,
    router: Ipv4Addr,
    resolver: Option<Ipv4Addr>,
    request: &ArpRepr,
) -> Option<Vec<u8>> {
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = *request
    else {
        return None;
    };
    let ours =
        target_protocol_addr == router || host_at(IpAddr::V4(target_protocol_addr), resolver).is_some();
    // A gratuitous request announces its own sender; nothing is asked.
    if !ours || source_hardware_addr != link.guest || source_protocol_addr == target_protocol_addr {
        return None;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: link.router,
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: link.guest,
        target_protocol_addr: source_protocol_addr,
    };
    let mut frame = link.frame(EthernetProtocol::Arp, reply.buffer_len());
    reply.emit(&mut ArpPacket::new_unchecked(frame.get_mut(ETHERNET_HEADER..)?));
    Some(frame)
}
