//! Block device mappings: of launches and images, and the types of volumes in them.

use kiln_controlplane::volumes::{BlockDevice, DeviceWish, VolumeError, VolumeKind, is_root_device};
use kiln_model::{ByteSize, SnapshotId};
use serde_json::{Value, json};

use super::ids::SNAPSHOT;
use super::input;
use crate::error::ApiError;

/// Mappings of one request: more than an instance has devices.
const MAX_MAPPINGS: usize = 64;

input!(Ebs { volume_size: Option<u64>, snapshot_id: Option<String>, delete_on_termination: Option<bool>,
    volume_type: Option<String>, encrypted: bool, iops: Option<u32>, throughput: Option<u32> });
input!(Mapping { device_name: Option<String>, ebs: Option<Ebs>, no_device: Option<String>,
    virtual_name: Option<String> });

/// What mappings say.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// Of the root volume.
    pub root: Option<DeviceWish>,
    /// Of the others.
    pub others: Vec<DeviceWish>,
}

/// Bytes of a number of GiB.
pub(super) fn bytes(gib: u64) -> Result<ByteSize, ApiError> {
    let too_large = || ApiError::value("The volume is too large");
    gib.checked_mul(1 << 30).map(ByteSize::bytes).ok_or_else(too_large)
}

/// GiB, as volumes are shown.
pub(super) fn gib(size: ByteSize) -> u64 {
    size.as_bytes().div_ceil(1 << 30)
}

/// The type that is asked for, if anything is said of it.
pub(super) fn kind(
    volume_type: Option<&str>,
    iops: Option<u32>,
    throughput: Option<u32>,
) -> Result<Option<VolumeKind>, VolumeError> {
    if volume_type.is_none() && iops.is_none() && throughput.is_none() {
        return Ok(None);
    }
    let volume_type = volume_type.map(str::parse).transpose()?.unwrap_or_default();
    VolumeKind { volume_type, iops, throughput }.check().map(Some)
}

/// Errors about mappings have a code of their own.
pub(super) fn refused(error: VolumeError) -> ApiError {
    match error {
        VolumeError::Device(_)
        | VolumeError::DeviceTwice(_)
        | VolumeError::TooSmall { .. }
        | VolumeError::Size(_)
        | VolumeError::NoSize => ApiError::new("InvalidBlockDeviceMapping", error.to_string()),
        error => error.into(),
    }
}

fn invalid(message: String) -> ApiError {
    ApiError::new("InvalidBlockDeviceMapping", message)
}

impl Mapping {
    fn wish(self) -> Result<DeviceWish, ApiError> {
        let device = self.device_name.unwrap_or_default();
        if device.is_empty() {
            return Err(invalid("A mapping needs a DeviceName".to_owned()));
        }
        if self.virtual_name.is_some() {
            return Err(ApiError::unsupported("There are no instance store volumes"));
        }
        // EC2 takes any text; an empty one is what the command line sends.
        let none = self.no_device.is_some();
        let Some(ebs) = self.ebs else {
            if !none {
                return Err(invalid(format!(
                    "Either snapshot ID or volume size must be provided for: {device}"
                )));
            }
            return Ok(DeviceWish { device, none, ..DeviceWish::default() });
        };
        if none {
            return Err(invalid(format!("{device} cannot have both Ebs and NoDevice")));
        }
        if ebs.encrypted {
            return Err(ApiError::unsupported("Volumes are not encrypted"));
        }
        if ebs.volume_size == Some(0) {
            return Err(invalid(format!("Volume of size 0GB is too small for: {device}")));
        }
        let snapshot: Option<SnapshotId> = ebs.snapshot_id.map(|id| SNAPSHOT.parse(&id)).transpose()?;
        Ok(DeviceWish {
            device,
            none,
            size: ebs.volume_size.map(bytes).transpose().map_err(|e| invalid(e.message))?,
            snapshot,
            delete_on_termination: ebs.delete_on_termination,
            kind: kind(ebs.volume_type.as_deref(), ebs.iops, ebs.throughput)?,
        })
    }
}

/// Reads mappings. Both usual names of a root device mean the root volume.
pub(super) fn read(mappings: Vec<Mapping>) -> Result<Devices, ApiError> {
    if mappings.len() > MAX_MAPPINGS {
        return Err(invalid(format!("A request has at most {MAX_MAPPINGS} block device mappings")));
    }
    let mut devices = Devices::default();
    for mapping in mappings {
        let wish = mapping.wish()?;
        if !is_root_device(&wish.device) {
            devices.others.push(wish);
            continue;
        }
        if wish.none {
            return Err(invalid(format!("{} is the root device", wish.device)));
        }
        if devices.root.is_some() {
            return Err(refused(VolumeError::DeviceTwice(wish.device)));
        }
        devices.root = Some(wish);
    }
    Ok(devices)
}

/// A device as an image shows it.
pub(super) fn shown(device: &BlockDevice) -> Value {
    let size = device.size;
    json!({
        "DeviceName": device.device,
        "Ebs": {
            "SnapshotId": device.snapshot.map(|id| id.to_string()), "VolumeSize": size.map(gib),
            "VolumeType": device.kind.volume_type.name(), "Iops": device.kind.iops,
            "Throughput": device.kind.throughput, "DeleteOnTermination": device.delete_on_termination,
            "Encrypted": false,
        },
    })
}
