//! Where things are: BAR 0 and the capabilities that say so (virtio 1.2 §4.1.4).
//!
//! ```text
//!  BAR 0, 32 KiB
//!  0x0000 common configuration   0x1000 ISR status   0x2000 device configuration
//!  0x3000 notifications, 4 bytes per queue           0x4000 MSI-X table   0x5000 MSI-X pending bits
//! ```
//!
//! A page each, so that a guest may map them apart, and four bytes per queue, so that every queue
//! has a doorbell of its own.

use std::ops::Range;

use super::registers::COMMON_LEN;
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::msix::{self, Msix};

/// The BAR.
pub(super) const BAR: usize = 0;
/// Its size.
pub(super) const BAR_LEN: u32 = 0x8000;

const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const ISR_LEN: u64 = 1;
const DEVICE: u64 = 0x2000;
const DEVICE_LEN: u64 = 0x1000;
/// Start of the notification area.
pub(super) const NOTIFY: u64 = 0x3000;
/// Address distance of two queues' notification addresses.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;
const TABLE: u64 = 0x4000;
const PBA: u64 = 0x5000;
const PAGE: u64 = 0x1000;

/// Most queues of one device: far more than any has, and little enough for a page of notifications
/// and a page of MSI-X table.
pub(super) const MAX_QUEUES: usize = 128;

const VENDOR_ID: u16 = 0x1af4;
const DEVICE_ID_BASE: u16 = 0x1040;
const CAP_ID_VENDOR: u8 = 0x09;
const CAP_ID_MSIX: u8 = 0x11;

const VIRTIO_PCI_CAP_COMMON_CFG: u8 = 1;
const VIRTIO_PCI_CAP_NOTIFY_CFG: u8 = 2;
const VIRTIO_PCI_CAP_ISR_CFG: u8 = 3;
const VIRTIO_PCI_CAP_DEVICE_CFG: u8 = 4;
const VIRTIO_PCI_CAP_PCI_CFG: u8 = 5;

/// A part of BAR 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Region {
    Common,
    Isr,
    Device,
    Notify,
    Table,
    Pba,
}

impl Region {
    /// The region that holds an access whole, and the offset in it.
    pub(super) fn of(offset: u64, len: usize) -> Option<(Self, u64)> {
        let regions = [
            (Self::Common, COMMON..COMMON + COMMON_LEN as u64),
            (Self::Isr, ISR..ISR + ISR_LEN),
            (Self::Device, DEVICE..DEVICE + DEVICE_LEN),
            (Self::Notify, NOTIFY..NOTIFY + MAX_QUEUES as u64 * u64::from(NOTIFY_MULTIPLIER)),
            (Self::Table, TABLE..TABLE + PAGE),
            (Self::Pba, PBA..PBA + PAGE),
        ];
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        let within = |range: &Range<u64>| range.contains(&offset) && end <= range.end;
        let (region, range) = regions.into_iter().find(|(_, range)| within(range))?;
        Some((region, offset - range.start))
    }
}

/// Offsets of the capabilities that the transport looks at itself.
pub(super) struct Capabilities {
    /// MSI-X message control.
    pub msix_control: usize,
    /// `struct virtio_pci_cfg_cap`.
    pub pci_cfg: usize,
}

/// Offset of `cap.bar` in a capability of virtio.
pub(super) const CAP_BAR: usize = 4;
/// Offset of `cap.offset`.
pub(super) const CAP_OFFSET: usize = 8;
/// Offset of `cap.length`.
pub(super) const CAP_LENGTH: usize = 12;
/// Offset of `pci_cfg_data`.
pub(super) const CAP_DATA: usize = 16;
/// Length of `pci_cfg_data`.
pub(super) const CAP_DATA_LEN: usize = 4;

/// The configuration space of a device of type `device_type`.
pub(super) fn config_space(device_type: u32, queues: usize, msix: &Msix) -> (ConfigSpace, Capabilities) {
    let device = DEVICE_ID_BASE + (device_type & 0x3f) as u16;
    let mut config = ConfigSpace::new(&Identity {
        vendor: VENDOR_ID,
        device,
        // Revision and subsystem id keep transitional drivers away (virtio 1.2 §4.1.2.1).
        revision: 1,
        class: class(device_type),
        subsystem_vendor: VENDOR_ID,
        subsystem: device,
    });
    config.add_memory_bar(BAR, BAR_LEN);

    let table = msix.capability(BAR as u8, TABLE as u32, PBA as u32);
    let control = msix::CONTROL_WRITABLE.to_le_bytes();
    let msix_control = config.add_capability(CAP_ID_MSIX, &table, &control) + 2;

    let notify_len = queues as u64 * u64::from(NOTIFY_MULTIPLIER);
    let mut add = |kind, offset, len, extra: &[u8], writable: &[u8]| {
        config.add_capability(CAP_ID_VENDOR, &capability(kind, offset, len, extra), writable)
    };
    add(VIRTIO_PCI_CAP_COMMON_CFG, COMMON, COMMON_LEN as u64, &[], &[]);
    add(VIRTIO_PCI_CAP_ISR_CFG, ISR, ISR_LEN, &[], &[]);
    add(VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE, DEVICE_LEN, &[], &[]);
    add(VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY, notify_len, &NOTIFY_MULTIPLIER.to_le_bytes(), &[]);
    // The driver chooses BAR, offset and length; the data go through to the BAR.
    let chooses = [0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let pci_cfg = add(VIRTIO_PCI_CAP_PCI_CFG, 0, 0, &[0; CAP_DATA_LEN], &chooses);
    (config, Capabilities { msix_control, pci_cfg })
}

/// `struct virtio_pci_cap` without its first two bytes.
fn capability(kind: u8, offset: u64, len: u64, extra: &[u8]) -> Vec<u8> {
    let mut body = vec![(16 + extra.len()) as u8, kind, BAR as u8, 0, 0, 0];
    body.extend_from_slice(&(offset as u32).to_le_bytes());
    body.extend_from_slice(&(len as u32).to_le_bytes());
    body.extend_from_slice(extra);
    body
}

/// PCI class by device type (virtio 1.2 §5): what tools and installers show.
fn class(device_type: u32) -> u32 {
    match device_type {
        1 => 0x02_00_00, // network: Ethernet controller
        2 => 0x01_80_00, // block: other mass storage controller
        3 => 0x07_80_00, // console: other communication controller
        _ => 0xff_00_00,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_belongs_to_a_region_only_as_a_whole() {
        assert_eq!(Region::of(0x14, 1), Some((Region::Common, 0x14)));
        assert_eq!(Region::of(0x3004, 2), Some((Region::Notify, 4)));
        assert_eq!(Region::of(0x37, 2), None);
        assert_eq!(Region::of(0x1000, 1), Some((Region::Isr, 0)));
        assert_eq!(Region::of(0x1000, 2), None);
        assert_eq!(Region::of(0x2ffc, 8), None);
        assert_eq!(Region::of(0x7fff, 1), None);
        assert_eq!(Region::of(u64::MAX, 1), None);
    }
}
