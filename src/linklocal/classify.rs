//! Is this frame of the guest for the services in the VMM, or for the tap?
//!
//! The answer follows from addresses in the frame's headers and from nothing else, so the NIC can
//! ask it for each frame without a lock. It is asked on a private copy of the headers, and that copy
//! is what must then be sent: the guest may change the original at any time.
//!
//! ```text
//!   IPv4 to 169.254.0.0/16 or to VPC base + 2 ......... ours, whatever the port
//!   UDP to port 67 of 255.255.255.255 or the router ... ours (DHCP)
//!   ARP for 169.254.0.0/16, router, VPC base + 2 ...... ours
//!   IPv6 to fd00:ec2::/32, fe80::/10 or ff00::/8 ...... ours: services, DHCPv6, multicast
//!   ICMPv6 of neighbour and router discovery .......... ours, wherever it goes
//!   tagged (802.1Q, 802.1ad) and headless frames ...... ours, and dropped there
//!   anything else ..................................... tap
//! ```

use std::net::Ipv4Addr;

use kiln_vmspec::LinkLocalSpec;

use crate::address::{is_link_local_v4, is_service_v6, stays_on_link_v6};

/// Bytes of a frame that [`Classifier::classify`] looks at, at most. With fewer (of a longer frame)
/// neighbour discovery or DHCP behind IP options may go to the tap, nothing else.
pub const CLASSIFY_PREFIX: usize = 96;

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To [`crate::LinkLocal::transmit`]; must never reach the tap.
    Ours,
    /// To the tap.
    Tap,
}

/// The addresses of one interface that decide.
#[derive(Debug, Clone, Copy)]
pub struct Classifier {
    router: Ipv4Addr,
    resolver: Option<Ipv4Addr>,
}

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const ETHERTYPES_TAGGED: [[u8; 2]; 3] = [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]];
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const DHCP_SERVER_PORT: [u8; 2] = [0, 67];
/// Router and neighbour solicitations and advertisements, and redirects.
const DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;

impl Classifier {
    /// For the interface that `spec` describes.
    pub fn new(spec: &LinkLocalSpec) -> Self {
        Classifier { router: spec.router, resolver: spec.resolver }
    }

    /// Decides from the first bytes of an Ethernet frame, up to [`CLASSIFY_PREFIX`].
    pub fn classify(&self, prefix: &[u8]) -> Verdict {
        if self.is_ours(prefix) { Verdict::Ours } else { Verdict::Tap }
    }

    fn is_ours(&self, prefix: &[u8]) -> bool {
        let Some(ethertype) = bytes_at::<2>(prefix, 12) else { return true };
        match ethertype {
            ETHERTYPE_IPV4 => self.is_ours_v4(prefix),
            ETHERTYPE_ARP => {
                let Some(target) = bytes_at::<4>(prefix, 38) else { return true };
                is_link_local_v4(target)
                    || target == self.router.octets()
                    || Some(Ipv4Addr::from(target)) == self.resolver
            }
            ETHERTYPE_IPV6 => {
                let Some(dst) = bytes_at::<16>(prefix, 38) else { return true };
                is_service_v6(dst) || stays_on_link_v6(dst) || is_discovery(prefix)
            }
            tag => ETHERTYPES_TAGGED.contains(&tag),
        }
    }

    fn is_ours_v4(&self, prefix: &[u8]) -> bool {
        let Some(dst) = bytes_at::<4>(prefix, 30) else { return true };
        if is_link_local_v4(dst) || Some(Ipv4Addr::from(dst)) == self.resolver {
            return true;
        }
        if dst != [255; 4] && dst != self.router.octets() {
            return false;
        }
        let (Some([version_and_length]), Some([protocol])) = (bytes_at(prefix, 14), bytes_at(prefix, 23))
        else {
            return true;
        };
        let udp = 14 + usize::from(version_and_length & 0x0f) * 4;
        protocol == UDP && bytes_at(prefix, udp + 2) == Some(DHCP_SERVER_PORT)
    }
}

/// ICMPv6 directly behind the IPv6 header that is about the link.
fn is_discovery(prefix: &[u8]) -> bool {
    bytes_at(prefix, 20) == Some([ICMPV6])
        && bytes_at(prefix, 54).is_some_and(|[kind]| DISCOVERY.contains(&kind))
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;
    use smoltcp::wire::IpProtocol;

    use super::*;
    use crate::testing::{GUEST_IP, from_guest, spec};

    fn verdict(frame: &[u8]) -> Verdict {
        let prefix = &frame[..frame.len().min(CLASSIFY_PREFIX)];
        Classifier::new(&spec()).classify(prefix)
    }

    fn udp(to: impl Into<IpAddr>, port: u16) -> Vec<u8> {
        let to = to.into();
        let from = if to.is_ipv4() { IpAddr::V4(GUEST_IP) } else { "2001:db8::10".parse().unwrap() };
        from_guest().udp((from, 68), (to, port), b"payload")
    }

    #[test]
    fn destination_address_decides() {
        use Verdict::{Ours, Tap};
        for (to, port, expected) in [
            ("169.254.169.254", 80, Ours),
            ("169.254.169.254", 1, Ours),
            ("169.254.0.0", 9, Ours),
            ("169.254.255.255", 9, Ours),
            ("169.253.169.254", 80, Tap),
            ("169.255.169.254", 80, Tap),
            ("10.0.0.2", 53, Ours),
            ("10.0.0.2", 443, Ours),
            ("10.0.0.3", 53, Tap),
            ("10.0.1.1", 67, Ours),
            ("10.0.1.1", 53, Tap),
            ("255.255.255.255", 67, Ours),
            ("255.255.255.255", 68, Tap),
            ("10.0.1.255", 67, Tap),
            ("10.0.1.20", 67, Tap),
            ("8.8.8.8", 53, Tap),
            ("fd00:ec2::254", 80, Ours),
            ("fd00:ec2:ffff::1", 9, Ours),
            ("fd00:ec3::254", 80, Tap),
            ("2001:db8::1", 80, Tap),
            ("fe80::1", 80, Ours),
            ("febf:ffff::1", 80, Ours),
            ("fec0::1", 80, Tap),
            ("ff02::1:2", 547, Ours),
            ("ff0e::1", 9, Ours),
        ] {
            assert_eq!(verdict(&udp(to.parse::<IpAddr>().unwrap(), port)), expected, "{to} {port}");
        }
    }

    #[test]
    fn dhcp_is_found_behind_options() {
        let mut frame = udp([255, 255, 255, 255], 67);
        frame.splice(34..34, [1; 40]);
        frame[14] = 0x4f;
        assert_eq!(verdict(&frame), Verdict::Ours);
        frame[14] = 0x45;
        assert_eq!(verdict(&frame), Verdict::Tap);
    }

    #[test]
    fn discovery_stays_on_the_link_wherever_it_goes() {
        for (kind, expected) in [
            (128, Verdict::Tap),
            (132, Verdict::Tap),
            (133, Verdict::Ours),
            (134, Verdict::Ours),
            (135, Verdict::Ours),
            (136, Verdict::Ours),
            (137, Verdict::Ours),
            (138, Verdict::Tap),
        ] {
            let ends = ("2001:db8::2".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap());
            let frame = from_guest().ip(ends, IpProtocol::Icmpv6, 255, 24, |message| message[0] = kind);
            assert_eq!(verdict(&frame), expected, "{kind}");
        }
    }

    #[test]
    fn frames_without_a_whole_header_and_tagged_frames_stay() {
        let frame = udp([8, 8, 8, 8], 53);
        for length in 0..34 {
            assert_eq!(verdict(&frame[..length]), Verdict::Ours, "{length}");
        }
        assert_eq!(verdict(&frame[..34]), Verdict::Tap);
        for tag in ETHERTYPES_TAGGED {
            let mut frame = frame.clone();
            frame.splice(12..12, [tag[0], tag[1], 0, 7]);
            assert_eq!(verdict(&frame), Verdict::Ours);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn nothing_for_the_link_goes_to_the_tap(
            noise in proptest::collection::vec(any::<u8>(), 14..128),
            low in any::<[u8; 2]>(),
        ) {
            let mut frame = noise;
            frame.resize(128, 0);
            frame[12..14].copy_from_slice(&ETHERTYPE_IPV4);
            frame[30..34].copy_from_slice(&[169, 254, low[0], low[1]]);
            prop_assert_eq!(verdict(&frame), Verdict::Ours);
            frame[12..14].copy_from_slice(&ETHERTYPE_IPV6);
            frame[38..42].copy_from_slice(&[0xfd, 0, 0x0e, 0xc2]);
            prop_assert_eq!(verdict(&frame), Verdict::Ours);
        }
    }
}
