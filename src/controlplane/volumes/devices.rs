//! What an image has of devices, what a launch or a new image says of them, and what comes out.

use std::collections::BTreeSet;

use kiln_model::{ByteSize, SnapshotId};
use serde::{Deserialize, Serialize};

use super::{MAX_ATTACHED, VolumeError, VolumeKind};

/// Device under which an instance has its root volume, unless its image says the other of [`ROOT_DEVICES`].
pub const ROOT_DEVICE: &str = "/dev/xvda";
/// Names that a root device can have. Both mean the root volume, whichever an image has.
pub const ROOT_DEVICES: [&str; 2] = [ROOT_DEVICE, "/dev/sda1"];

/// What an image says of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// Such as `/dev/sdf`.
    pub device: String,
    /// Its size; by default that of the snapshot.
    pub size: Option<ByteSize>,
    /// What is on it.
    pub snapshot: Option<SnapshotId>,
    /// Whether it goes with its instance.
    pub delete_on_termination: bool,
    /// Its type.
    #[serde(default)]
    pub kind: VolumeKind,
}

impl BlockDevice {
    /// A root volume of which an image says nothing.
    pub fn plain_root() -> Self {
        BlockDevice {
            device: ROOT_DEVICE.to_owned(),
            size: None,
            snapshot: None,
            delete_on_termination: true,
            kind: VolumeKind::default(),
        }
    }

    /// Takes over what a wish says.
    pub(crate) fn change(&mut self, wish: &DeviceWish) {
        if wish.snapshot.is_some() && wish.snapshot != self.snapshot {
            // Its size was that of the other one.
            (self.snapshot, self.size) = (wish.snapshot, None);
        }
        self.size = wish.size.or(self.size);
        self.delete_on_termination = wish.delete_on_termination.unwrap_or(self.delete_on_termination);
        self.kind = wish.kind.unwrap_or(self.kind);
    }
}

/// What somebody says of one device. What is not said is as the image has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceWish {
    /// Such as `/dev/sdf`.
    pub device: String,
    /// There shall be no volume (`NoDevice`).
    pub none: bool,
    /// Its size; by default that of the snapshot.
    pub size: Option<ByteSize>,
    /// What is on it.
    pub snapshot: Option<SnapshotId>,
    /// Whether it goes with its instance; a volume that the image does not have does, if not said.
    pub delete_on_termination: Option<bool>,
    /// Its type.
    pub kind: Option<VolumeKind>,
}

/// What tells devices apart: `/dev/sdf`, `/dev/xvdf` and `xvdf` are one.
pub(crate) fn slot(device: &str) -> &str {
    let name = device.strip_prefix("/dev/").unwrap_or(device);
    name.strip_prefix("xvd").or_else(|| name.strip_prefix("sd")).unwrap_or(name)
}

/// Whether a name is that of a root volume.
pub fn is_root_device(device: &str) -> bool {
    ROOT_DEVICES.contains(&device)
}

/// Checks that a volume besides the root volume can be called so.
pub(crate) fn check_device(device: &str) -> Result<(), VolumeError> {
    let name = device.strip_prefix("/dev/").unwrap_or(device);
    let good = (2..=16).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric());
    let root = ROOT_DEVICES.iter().any(|root| slot(root) == slot(device));
    if good && !root { Ok(()) } else { Err(VolumeError::Device(device.to_owned())) }
}

/// The volumes besides the root volume that come out of what an image has and what is said of it.
pub(crate) fn resolve(
    wishes: &[DeviceWish],
    of_image: &[BlockDevice],
) -> Result<Vec<BlockDevice>, VolumeError> {
    let mut devices = of_image.to_vec();
    let mut said = BTreeSet::new();
    for wish in wishes {
        check_device(&wish.device)?;
        if !said.insert(slot(&wish.device)) {
            return Err(VolumeError::DeviceTwice(wish.device.clone()));
        }
        let there = devices.iter().position(|device| slot(&device.device) == slot(&wish.device));
        match there.and_then(|at| devices.get_mut(at)) {
            Some(device) if !wish.none => device.change(wish),
            Some(_) => devices.retain(|device| slot(&device.device) != slot(&wish.device)),
            None if wish.none => {}
            None => {
                let device = wish.device.clone();
                let mut device = BlockDevice { device, ..BlockDevice::plain_root() };
                device.change(wish);
                devices.push(device);
            }
        }
    }
    if devices.len() > MAX_ATTACHED {
        return Err(VolumeError::TooManyDevices);
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(device: &str) -> DeviceWish {
        DeviceWish { device: device.to_owned(), ..DeviceWish::default() }
    }

    fn gib(count: u64) -> Option<ByteSize> {
        Some(ByteSize::bytes(count << 30))
    }

    #[test]
    fn what_is_said_goes_over_what_the_image_has() {
        let snapshot = Some(SnapshotId::from_bits(1));
        let of_image = |device: &str| BlockDevice {
            device: device.to_owned(),
            size: gib(4),
            snapshot,
            delete_on_termination: false,
            kind: VolumeKind::default(),
        };
        let image = [of_image("/dev/sdf"), of_image("/dev/sdg"), of_image("/dev/sdh")];
        let wishes = [
            DeviceWish { size: gib(8), ..wish("/dev/xvdf") },
            DeviceWish { none: true, ..wish("sdg") },
            DeviceWish { none: true, ..wish("/dev/sdz") },
            DeviceWish { snapshot: Some(SnapshotId::from_bits(2)), ..wish("/dev/sdh") },
            DeviceWish { size: gib(1), ..wish("/dev/sdi") },
        ];
        let out = resolve(&wishes, &image).unwrap();
        let seen: Vec<_> = out
            .iter()
            .map(|d| {
                (d.device.as_str(), d.size, d.snapshot.map(SnapshotId::low_bits), d.delete_on_termination)
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("/dev/sdf", gib(8), Some(1), false),
                ("/dev/sdh", None, Some(2), false),
                ("/dev/sdi", gib(1), None, true)
            ]
        );
    }

    #[test]
    fn devices_that_cannot_be_are_refused() {
        for bad in ["", "/dev/", "/dev/../x", "/dev/xvda", "/dev/sda1", "sda", "/dev/abcdefghijklmnopq"] {
            assert!(matches!(resolve(&[wish(bad)], &[]), Err(VolumeError::Device(_))), "{bad}");
        }
        let twice = [wish("/dev/sdf"), wish("xvdf")];
        assert!(matches!(resolve(&twice, &[]), Err(VolumeError::DeviceTwice(_))));
        let many: Vec<_> = ('b'..='z').map(|letter| wish(&format!("/dev/sd{letter}"))).collect();
        assert!(matches!(resolve(&many, &[]), Err(VolumeError::TooManyDevices)));
        assert_eq!(resolve(&many[..MAX_ATTACHED], &[]).unwrap().len(), MAX_ATTACHED);
    }
}
