//! The header before every frame (virtio 1.2 §5.1.6), always 12 bytes since `VIRTIO_F_VERSION_1`.
//!
//! ```text
//!  0 flags u8 · 1 gso_type u8 · 2 hdr_len u16 · 4 gso_size u16 · 6 csum_start u16
//!  8 csum_offset u16 · 10 num_buffers u16                                    (little endian)
//! ```

use super::features::Offloads;

/// Length of the header.
pub const HEADER_LEN: usize = 12;
/// Shortest frame: an Ethernet header.
pub const MIN_FRAME: usize = 14;
/// Longest frame in either direction: Ethernet header, one VLAN tag, the longest IP packet.
pub const MAX_FRAME: usize = 14 + 4 + 65_535;

/// The checksum at `csum_start + csum_offset` is to be completed.
pub const VIRTIO_NET_HDR_F_NEEDS_CSUM: u8 = 1;
/// The checksum was verified.
pub const VIRTIO_NET_HDR_F_DATA_VALID: u8 = 2;
/// Not segmented.
pub const VIRTIO_NET_HDR_GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub const VIRTIO_NET_HDR_GSO_TCPV4: u8 = 1;
/// TCP over IPv6.
pub const VIRTIO_NET_HDR_GSO_TCPV6: u8 = 4;
/// UDP datagrams.
pub const VIRTIO_NET_HDR_GSO_UDP_L4: u8 = 5;
/// Or-ed to a TCP type: the frame has ECN.
pub const VIRTIO_NET_HDR_GSO_ECN: u8 = 0x80;

/// A decoded header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetHeader {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Length of the headers of a segmented frame, a hint.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where the checksum starts, from the start of the frame.
    pub csum_start: u16,
    /// Where the sum goes, from `csum_start`.
    pub csum_offset: u16,
    /// Receive buffers that the frame fills.
    pub num_buffers: u16,
}

/// A header that the device must not act upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Shorter than an Ethernet header or longer than [`MAX_FRAME`].
    #[error("frame of {0} bytes")]
    FrameLength(usize),
    /// A partial checksum without the feature.
    #[error("partial checksum was not negotiated")]
    ChecksumNotNegotiated,
    /// The checksum does not lie in the frame.
    #[error("checksum lies outside the frame")]
    ChecksumOutside,
    /// An unknown or not negotiated kind of segmentation.
    #[error("segmentation type {0:#x} was not negotiated")]
    SegmentationType(u8),
    /// Segments of no bytes, or segmentation without a partial checksum.
    #[error("segmentation without a segment size or without a partial checksum")]
    Segmentation,
}

impl NetHeader {
    /// Decodes the wire form.
    pub fn from_bytes(bytes: [u8; HEADER_LEN]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h, i, j] = bytes;
        NetHeader {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([a, b]),
            gso_size: u16::from_le_bytes([c, d]),
            csum_start: u16::from_le_bytes([e, f]),
            csum_offset: u16::from_le_bytes([g, h]),
            num_buffers: u16::from_le_bytes([i, j]),
        }
    }

    /// Encodes the wire form.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [a, b] = self.hdr_len.to_le_bytes();
        let [c, d] = self.gso_size.to_le_bytes();
        let [e, f] = self.csum_start.to_le_bytes();
        let [g, h] = self.csum_offset.to_le_bytes();
        let [i, j] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h, i, j]
    }

    /// Whether the checksum is still to be completed.
    pub fn needs_csum(&self) -> bool {
        self.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0
    }

    /// Turns the header of a frame of `frame_len` bytes from the guest into one that the host may
    /// be given: only what was negotiated, everything within the frame, everything unused zero
    /// (virtio 1.2 §5.1.6.2.2: unknown flags are ignored).
    pub fn from_guest(self, allowed: Offloads, frame_len: usize) -> Result<NetHeader, HeaderError> {
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame_len) {
            return Err(HeaderError::FrameLength(frame_len));
        }
        let mut out = NetHeader::default();
        if self.needs_csum() {
            if !allowed.contains(Offloads::CSUM) {
                return Err(HeaderError::ChecksumNotNegotiated);
            }
            let end = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
            if end > frame_len {
                return Err(HeaderError::ChecksumOutside);
            }
            out.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
            out.csum_start = self.csum_start;
            out.csum_offset = self.csum_offset;
        }
        if self.gso_type != VIRTIO_NET_HDR_GSO_NONE {
            let needed = match self.gso_type & !VIRTIO_NET_HDR_GSO_ECN {
                VIRTIO_NET_HDR_GSO_TCPV4 => Offloads::TSO4,
                VIRTIO_NET_HDR_GSO_TCPV6 => Offloads::TSO6,
                VIRTIO_NET_HDR_GSO_UDP_L4 if self.gso_type & VIRTIO_NET_HDR_GSO_ECN == 0 => Offloads::USO,
                _ => return Err(HeaderError::SegmentationType(self.gso_type)),
            };
            let ecn = self.gso_type & VIRTIO_NET_HDR_GSO_ECN != 0;
            if !allowed.contains(needed) || (ecn && !allowed.contains(Offloads::ECN)) {
                return Err(HeaderError::SegmentationType(self.gso_type));
            }
            if self.gso_size == 0 || !self.needs_csum() {
                return Err(HeaderError::Segmentation);
            }
            out.gso_type = self.gso_type;
            out.gso_size = self.gso_size;
            // Only a hint; the host refuses one beyond the frame.
            out.hdr_len = self.hdr_len.min(u16::try_from(frame_len).unwrap_or(u16::MAX));
        }
        Ok(out)
    }

    /// The header to show the guest for a frame from the backend that fills `num_buffers` buffers.
    pub fn to_guest(self, accepted: Offloads, num_buffers: u16) -> NetHeader {
        if !accepted.contains(Offloads::CSUM) {
            // virtio 1.2 §5.1.6.4.1: flags MUST be zero; the backend sends such a driver only
            // frames with a complete checksum.
            return NetHeader { num_buffers, ..NetHeader::default() };
        }
        NetHeader {
            flags: self.flags & (VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID),
            num_buffers,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TCP4: NetHeader = NetHeader {
        flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
        gso_type: VIRTIO_NET_HDR_GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };

    #[test]
    fn wire_form_is_little_endian_in_spec_order() {
        let header = NetHeader { num_buffers: 0x0201, ..TCP4 };
        let bytes = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 1, 2];
        assert_eq!(header.to_bytes(), bytes);
        assert_eq!(NetHeader::from_bytes(bytes), header);
    }

    #[test]
    fn segmented_frame_passes_unchanged() {
        assert_eq!(TCP4.from_guest(Offloads::all(), 20_000), Ok(TCP4));
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        let no = |allowed| TCP4.from_guest(allowed, 20_000);
        assert_eq!(no(Offloads::empty()), Err(HeaderError::ChecksumNotNegotiated));
        assert_eq!(no(Offloads::CSUM), Err(HeaderError::SegmentationType(1)));
        assert_eq!(no(Offloads::CSUM | Offloads::TSO6), Err(HeaderError::SegmentationType(1)));
        let ecn = NetHeader { gso_type: 0x81, ..TCP4 };
        let allowed = Offloads::CSUM | Offloads::TSO4;
        assert_eq!(ecn.from_guest(allowed, 20_000), Err(HeaderError::SegmentationType(0x81)));
        assert!(ecn.from_guest(allowed | Offloads::ECN, 20_000).is_ok());
    }

    #[test]
    fn malformed_headers_are_refused() {
        let all = Offloads::all();
        let cases = [
            (TCP4, 13, HeaderError::FrameLength(13)),
            (TCP4, MAX_FRAME + 1, HeaderError::FrameLength(MAX_FRAME + 1)),
            (TCP4, 51, HeaderError::ChecksumOutside),
            (
                NetHeader { csum_start: 65_535, csum_offset: 65_535, ..TCP4 },
                1000,
                HeaderError::ChecksumOutside,
            ),
            (NetHeader { gso_size: 0, ..TCP4 }, 1000, HeaderError::Segmentation),
            (NetHeader { flags: 0, ..TCP4 }, 1000, HeaderError::Segmentation),
            (NetHeader { gso_type: 0x80, ..TCP4 }, 1000, HeaderError::SegmentationType(0x80)),
            (NetHeader { gso_type: 0x85, ..TCP4 }, 1000, HeaderError::SegmentationType(0x85)),
            (NetHeader { gso_type: 3, ..TCP4 }, 1000, HeaderError::SegmentationType(3)),
        ];
        for (header, len, error) in cases {
            assert_eq!(header.from_guest(all, len), Err(error), "{header:?} of {len}");
        }
    }

    #[test]
    fn fields_without_meaning_are_cleared() {
        let junk = NetHeader { flags: 0xfe, gso_type: 0, ..TCP4 };
        assert_eq!(junk.from_guest(Offloads::all(), 60), Ok(NetHeader::default()));
    }

    #[test]
    fn guest_without_checksum_offload_sees_only_the_buffer_count() {
        let shown = TCP4.to_guest(Offloads::empty(), 1);
        assert_eq!(shown, NetHeader { num_buffers: 1, ..NetHeader::default() });
    }

    proptest! {
        #[test]
        fn accepted_headers_stay_inside_the_frame(bytes: [u8; 12], len in 0usize..70_000, bits: u8) {
            let allowed = Offloads::from_bits_truncate(bits).closed();
            if let Ok(header) = NetHeader::from_bytes(bytes).from_guest(allowed, len) {
                prop_assert!((MIN_FRAME..=MAX_FRAME).contains(&len));
                prop_assert!(usize::from(header.hdr_len) <= len);
                if header.needs_csum() {
                    let end = usize::from(header.csum_start) + usize::from(header.csum_offset) + 2;
                    prop_assert!(end <= len);
                }
                prop_assert!(header.gso_type == 0 || (header.gso_size > 0 && header.needs_csum()));
                prop_assert_eq!(header.num_buffers, 0);
            }
        }
    }
}
