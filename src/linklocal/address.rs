//! Addresses of the services on the link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kiln_model::MacAddr;

/// Instance metadata.
pub const IMDS_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Instance metadata, where `HttpProtocolIpv6` is enabled.
pub const IMDS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// Resolver, besides VPC base + 2.
pub const DNS_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);
/// Resolver.
pub const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x253);
/// Time.
pub const NTP_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 123);
/// Time.
pub const NTP_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x123);
/// Windows activation: nothing listens, so that a client fails at once instead of waiting.
pub const ACTIVATION_V4: [Ipv4Addr; 2] =
    [Ipv4Addr::new(169, 254, 169, 250), Ipv4Addr::new(169, 254, 169, 251)];

/// What answers at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    Imds,
    Dns,
    Ntp,
    /// The host exists and has no open port.
    Silent,
}

/// The service at `addr`, if there is one. `resolver` is VPC base + 2.
pub(crate) fn host_at(addr: IpAddr, resolver: Option<Ipv4Addr>) -> Option<Host> {
    match addr {
        IpAddr::V4(IMDS_V4) | IpAddr::V6(IMDS_V6) => Some(Host::Imds),
        IpAddr::V4(DNS_V4) | IpAddr::V6(DNS_V6) => Some(Host::Dns),
        IpAddr::V4(NTP_V4) | IpAddr::V6(NTP_V6) => Some(Host::Ntp),
        IpAddr::V4(a) if Some(a) == resolver => Some(Host::Dns),
        IpAddr::V4(a) if ACTIVATION_V4.contains(&a) => Some(Host::Silent),
        _ => None,
    }
}

/// Whether packets to `addr` stay on the link, whoever answers there: 169.254.0.0/16.
pub(crate) fn is_link_local_v4(addr: [u8; 4]) -> bool {
    matches!(addr, [169, 254, ..])
}

/// All machines of the link.
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// All DHCPv6 servers and relays of the link (RFC 8415 section 7.1).
pub(crate) const ALL_DHCP_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// The link-local address of a hardware address (RFC 4291 appendix A).
pub(crate) fn link_local_v6(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.octets();
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Whether packets to `addr` go no further than the link: link-local and multicast addresses. There is
/// no multicast between links.
pub(crate) fn stays_on_link_v6(addr: [u8; 16]) -> bool {
    matches!(addr, [0xfe, 0x80..=0xbf, ..] | [0xff, ..])
}

/// Whether packets to `addr` stay on the link: fd00:ec2::/32.
pub(crate) fn is_service_v6(addr: [u8; 16]) -> bool {
    matches!(addr, [0xfd, 0x00, 0x0e, 0xc2, ..])
}
