//! Feature bits and what a driver's choice of them means (virtio 1.2 §5.1.3).

use bitflags::bitflags;

/// Device handles frames with a partial checksum.
pub const VIRTIO_NET_F_CSUM: u32 = 0;
/// Driver handles frames with a partial checksum.
pub const VIRTIO_NET_F_GUEST_CSUM: u32 = 1;
/// The configuration space has `mtu`.
pub const VIRTIO_NET_F_MTU: u32 = 3;
/// The configuration space has `mac`.
pub const VIRTIO_NET_F_MAC: u32 = 5;
/// Driver can receive TCP over IPv4 segmentation offload.
pub const VIRTIO_NET_F_GUEST_TSO4: u32 = 7;
/// Driver can receive TCP over IPv6 segmentation offload.
pub const VIRTIO_NET_F_GUEST_TSO6: u32 = 8;
/// Driver can receive segmentation offload with ECN.
pub const VIRTIO_NET_F_GUEST_ECN: u32 = 9;
/// Device can receive TCP over IPv4 segmentation offload.
pub const VIRTIO_NET_F_HOST_TSO4: u32 = 11;
/// Device can receive TCP over IPv6 segmentation offload.
pub const VIRTIO_NET_F_HOST_TSO6: u32 = 12;
/// Device can receive segmentation offload with ECN.
pub const VIRTIO_NET_F_HOST_ECN: u32 = 13;
/// Driver can merge receive buffers.
pub const VIRTIO_NET_F_MRG_RXBUF: u32 = 15;
/// The configuration space has `status`.
pub const VIRTIO_NET_F_STATUS: u32 = 16;
/// There is a control queue.
pub const VIRTIO_NET_F_CTRL_VQ: u32 = 17;
/// There are several queue pairs, steered automatically.
pub const VIRTIO_NET_F_MQ: u32 = 22;
/// Driver can receive UDP over IPv4 segmentation offload.
pub const VIRTIO_NET_F_GUEST_USO4: u32 = 54;
/// Driver can receive UDP over IPv6 segmentation offload.
pub const VIRTIO_NET_F_GUEST_USO6: u32 = 55;
/// Device can receive UDP segmentation offload.
pub const VIRTIO_NET_F_HOST_USO: u32 = 56;

/// `VIRTIO_F_RING_EVENT_IDX` (virtio 1.2 §6), offered by the transport.
const VIRTIO_F_RING_EVENT_IDX: u32 = 29;

bitflags! {
    /// Work on frames that one side may leave to the other.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Offloads: u8 {
        /// Complete the TCP or UDP checksum.
        const CSUM = 1 << 0;
        /// Segment TCP over IPv4.
        const TSO4 = 1 << 1;
        /// Segment TCP over IPv6.
        const TSO6 = 1 << 2;
        /// Segment TCP with congestion notification.
        const ECN = 1 << 3;
        /// Segment UDP.
        const USO = 1 << 4;
    }
}

impl Offloads {
    /// Every kind of segmentation.
    pub const SEGMENTATION: Offloads =
        Offloads::TSO4.union(Offloads::TSO6).union(Offloads::ECN).union(Offloads::USO);

    /// Drops what cannot stand alone: segmentation needs checksums (virtio 1.2 §5.1.3.1), ECN needs
    /// a kind of TCP segmentation.
    pub fn closed(self) -> Offloads {
        let mut out = self;
        if !out.contains(Offloads::CSUM) {
            return Offloads::empty();
        }
        if !out.intersects(Offloads::TSO4.union(Offloads::TSO6)) {
            out.remove(Offloads::ECN);
        }
        out
    }
}

/// Device bits (frames from the guest) of each offload.
const HOST_BITS: [(Offloads, u64); 5] = [
    (Offloads::CSUM, 1 << VIRTIO_NET_F_CSUM),
    (Offloads::TSO4, 1 << VIRTIO_NET_F_HOST_TSO4),
    (Offloads::TSO6, 1 << VIRTIO_NET_F_HOST_TSO6),
    (Offloads::ECN, 1 << VIRTIO_NET_F_HOST_ECN),
    (Offloads::USO, 1 << VIRTIO_NET_F_HOST_USO),
];

/// Driver bits (frames to the guest) of each offload.
const GUEST_BITS: [(Offloads, u64); 5] = [
    (Offloads::CSUM, 1 << VIRTIO_NET_F_GUEST_CSUM),
    (Offloads::TSO4, 1 << VIRTIO_NET_F_GUEST_TSO4),
    (Offloads::TSO6, 1 << VIRTIO_NET_F_GUEST_TSO6),
    (Offloads::ECN, 1 << VIRTIO_NET_F_GUEST_ECN),
    (Offloads::USO, (1 << VIRTIO_NET_F_GUEST_USO4) | (1 << VIRTIO_NET_F_GUEST_USO6)),
];

/// The bits to offer for a backend with these offloads and this many queue pairs.
pub(super) fn offered(offloads: Offloads, queue_pairs: u16) -> u64 {
    let mut bits = (1 << VIRTIO_NET_F_MTU)
        | (1 << VIRTIO_NET_F_MAC)
        | (1 << VIRTIO_NET_F_MRG_RXBUF)
        | (1 << VIRTIO_NET_F_STATUS);
    let offloads = offloads.closed();
    for (offload, bit) in HOST_BITS.into_iter().chain(GUEST_BITS) {
        if offloads.contains(offload) {
            bits |= bit;
        }
    }
    if queue_pairs > 1 {
        bits |= (1 << VIRTIO_NET_F_MQ) | (1 << VIRTIO_NET_F_CTRL_VQ);
    }
    bits
}

/// What driver and device agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Negotiated {
    /// What the guest may leave to the host.
    pub from_guest: Offloads,
    /// What the host may leave to the guest.
    pub to_guest: Offloads,
    /// One frame may fill several receive buffers.
    pub mergeable: bool,
    /// More than one queue pair may be used.
    pub multi_queue: bool,
    /// There is a control queue.
    pub control: bool,
    /// Interrupts and notifications go by event index.
    pub event_idx: bool,
}

impl Negotiated {
    /// Reads the feature bits. Inconsistent choices are narrowed to what can be used.
    pub fn new(features: u64) -> Self {
        let has = |bit: u32| features & (1 << bit) != 0;
        let select = |table: [(Offloads, u64); 5]| {
            table
                .into_iter()
                .filter(|(_, bits)| features & bits == *bits)
                .fold(Offloads::empty(), |set, (offload, _)| set | offload)
                .closed()
        };
        let control = has(VIRTIO_NET_F_CTRL_VQ);
        Negotiated {
            from_guest: select(HOST_BITS),
            to_guest: select(GUEST_BITS),
            mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
            multi_queue: control && has(VIRTIO_NET_F_MQ),
            control,
            event_idx: has(VIRTIO_F_RING_EVENT_IDX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_queue_pair_offers_no_control_queue() {
        let bits = offered(Offloads::all(), 1);
        assert_eq!(bits & (1 << VIRTIO_NET_F_MQ), 0);
        assert_eq!(bits & (1 << VIRTIO_NET_F_CTRL_VQ), 0);
        let bits = offered(Offloads::all(), 2);
        assert_ne!(bits & (1 << VIRTIO_NET_F_MQ), 0);
        assert_ne!(bits & (1 << VIRTIO_NET_F_CTRL_VQ), 0);
    }

    #[test]
    fn what_is_offered_is_what_comes_back_when_accepted() {
        let negotiated = Negotiated::new(offered(Offloads::all(), 4));
        assert_eq!(negotiated.from_guest, Offloads::all());
        assert_eq!(negotiated.to_guest, Offloads::all());
        assert!(negotiated.mergeable && negotiated.multi_queue && negotiated.control);
    }

    #[test]
    fn segmentation_without_checksum_is_not_negotiated() {
        let negotiated = Negotiated::new((1 << VIRTIO_NET_F_HOST_TSO4) | (1 << VIRTIO_NET_F_GUEST_TSO4));
        assert_eq!(negotiated.from_guest, Offloads::empty());
        assert_eq!(negotiated.to_guest, Offloads::empty());
    }

    #[test]
    fn multi_queue_without_control_queue_is_not_negotiated() {
        assert!(!Negotiated::new(1 << VIRTIO_NET_F_MQ).multi_queue);
    }
}
