//! The interface and the metadata that tests and fuzzing are about.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use kiln_model::MacAddr;
use kiln_vmspec::{LeafValue, LinkLocalIpv6, LinkLocalSpec, MetadataSnapshot};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use crate::packet::Link;

pub(crate) const GUEST_MAC: MacAddr = MacAddr::new([0x02, 0, 0x0a, 0, 1, 0x0a]);
pub(crate) const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
pub(crate) const IMDS: SocketAddr = SocketAddr::new(IpAddr::V4(crate::address::IMDS_V4), 80);
pub(crate) const WALL: Duration = Duration::from_secs(1_719_527_491);
pub(crate) const MTU: u16 = 1500;

pub(crate) fn spec() -> LinkLocalSpec {
    LinkLocalSpec {
        private_ipv4: GUEST_IP,
        prefix_len: 24,
        router: Ipv4Addr::new(10, 0, 1, 1),
        router_mac: MacAddr::new([0x02, 0, 0, 0, 0, 1]),
        dns: vec![Ipv4Addr::new(10, 0, 0, 2)],
        resolver: Some(Ipv4Addr::new(10, 0, 0, 2)),
        host_name: "ip-10-0-1-10".into(),
        domain_name: "ec2.internal".into(),
        ipv6: None,
    }
}

/// The address of [`dual_spec`].
pub(crate) const OWN_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);

/// As [`spec`], with IPv6.
pub(crate) fn dual_spec() -> LinkLocalSpec {
    LinkLocalSpec { ipv6: Some(LinkLocalIpv6 { address: OWN_IPV6, prefix_len: 64 }), ..spec() }
}

pub(crate) fn metadata() -> MetadataSnapshot {
    let leaves = [
        ("dynamic/instance-identity/document", LeafValue::from("{}")),
        ("meta-data/instance-id", "i-0123456789abcdef0".into()),
        ("meta-data/placement/availability-zone", "us-east-1a".into()),
        ("meta-data/placement/region", "us-east-1".into()),
        ("meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAA my-key".into()),
        ("meta-data/tags/instance/a=b", "tag value".into()),
        ("user-data", (0..=255u8).cycle().take(16_384).collect::<Vec<u8>>().into()),
    ];
    MetadataSnapshot {
        generation: 1,
        published: WALL.as_secs() - 831,
        instance_id: "i-0123456789abcdef0".into(),
        leaves: leaves.map(|(path, value)| (path.to_owned(), value)).into(),
        listings: [("meta-data/public-keys".to_owned(), "0=my-key".to_owned())].into(),
        ..MetadataSnapshot::default()
    }
}

/// Frames as the guest makes them.
pub(crate) fn from_guest() -> Link {
    Link::new(spec().router_mac, GUEST_MAC)
}

/// A TCP segment of the guest, without options.
pub(crate) fn segment_to(
    to: SocketAddr,
    port: u16,
    control: TcpControl,
    seq: i32,
    ack: Option<i32>,
    payload: &[u8],
) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: port,
        dst_port: to.port(),
        control,
        seq_number: TcpSeqNumber(seq),
        ack_number: ack.map(TcpSeqNumber),
        window_len: 65_535,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let ends = (IpAddr::V4(GUEST_IP), to.ip());
    from_guest().ip(ends, IpProtocol::Tcp, 64, repr.buffer_len(), |buffer| {
        let mut packet = TcpPacket::new_unchecked(buffer);
        repr.emit(&mut packet, &ends.0.into(), &ends.1.into(), &ChecksumCapabilities::default());
    })
}
