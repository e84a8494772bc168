//! Volumes and snapshots: layers that are never written below one that is.
//!
//! ```text
//!   vol-a.qcow2 (written)      vol-b.qcow2 (written)
//!        │    copied ──▶ snap-s.qcow2 ◀──┘ restored: a new child, in constant time
//!        ▼                    ▼
//!      images/sha256-….raw  ◀─┘            all below the first line is never written again
//! ```
//!
//! Every row names the files below its own, top first, so nothing has to be followed or counted: a file
//! stays as long as any row of a volume, snapshot or image names it, and a sweep removes the others. So
//! things may be deleted in any order.
//!
//! A snapshot that is uploaded is written itself, until it is complete.
//!
//! A snapshot that would lie over too many others lies over one file that says what they say together.
//!
//! Invariants: a row is written before its file is made and removed after it is gone. A file that a row
//! names below its own is complete and read-only.

mod blocks;
mod copy;
mod devices;
mod files;
mod kind;
mod layer;
mod modify;
mod service;
mod upload;

use std::path::PathBuf;

use kiln_model::{ByteSize, ImageId, InstanceId, InstanceState, SnapshotId, Tag, VolumeId};
use serde::{Deserialize, Serialize};

use crate::images::SourceError;
use crate::state::{Row, StoreError};

pub use blocks::{BLOCK, ChangedBlock, Page};
pub use copy::AlsoSnapshot;
pub(crate) use copy::put_copy;
pub use devices::{BlockDevice, DeviceWish, ROOT_DEVICE, ROOT_DEVICES, is_root_device};
pub(crate) use devices::{check_device, resolve, slot};
pub(crate) use files::{
    Unwritten, copy_layer, discard_layer, make_volume, merge_layers, open_volume, try_open_volume,
};
pub use kiln_model::AttachmentState;
pub use kind::{VolumeKind, VolumeType};
pub use layer::Layer;
pub(crate) use layer::named;
pub use modify::{Modification, VolumeChange};
pub use service::{AlsoVolume, Volumes};
pub(crate) use service::{attached, check_size, detach_all, plan_volume, remove_files_of, settle_all, sweep};
pub use upload::{LinearChecksum, NewUpload, Upload, Uploads};

/// Smallest size that can be asked for; images may be smaller.
pub const MIN_SIZE: u64 = 1 << 20;
/// Largest size, as of EC2's largest volume type.
pub const MAX_SIZE: u64 = 64 << 40;
/// Layers below a volume's own. A chain of 16 is the longest that can be opened.
pub const MAX_BELOW: usize = 15;
/// Volumes of one instance besides its root volume.
pub const MAX_ATTACHED: usize = 15;

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// What a guest sees.
    pub size: ByteSize,
    /// Layers below its own, top first; none if it was made empty.
    pub below: Vec<Layer>,
    /// The snapshot that it was made from.
    pub snapshot: Option<SnapshotId>,
    /// Who has it. Without, it is `available`.
    pub attachment: Option<Attachment>,
    /// Its type.
    #[serde(default)]
    pub kind: VolumeKind,
    /// Whether its file is there.
    #[serde(default)]
    pub progress: Progress,
    /// What was last changed of it.
    #[serde(default)]
    pub modification: Option<Modification>,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// When it was made, Unix seconds.
    pub created: u64,
}

/// Who has a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The instance.
    pub instance: InstanceId,
    /// Name of the device that was asked for, such as `/dev/sdf`. Guests see the volume's id.
    pub device: String,
    /// Whether it goes with its instance.
    pub delete_on_termination: bool,
    /// Unix seconds.
    pub since: u64,
    /// How far it is. While the instance has no machine it is always attached.
    #[serde(default)]
    pub state: AttachmentState,
}

impl Volume {
    /// Whether an instance boots from it.
    pub fn is_root(&self) -> bool {
        self.attachment.as_ref().is_some_and(|attachment| is_root_device(&attachment.device))
    }

    /// Serial number in the guest: the id without its dash, as in EC2, which is exactly 20 bytes.
    pub fn serial(&self) -> String {
        self.id.to_string().replace('-', "")
    }
}

impl Row for Volume {
    const KIND: &'static str = "volume";
    type Key = VolumeId;

    fn key(&self) -> VolumeId {
        self.id
    }

    fn holder(&self) -> Option<String> {
        self.attachment.as_ref().map(|attachment| attachment.instance.to_string())
    }
}

/// What becomes of a volume, for whoever follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Nobody has it.
    Available,
    /// An instance has it.
    InUse,
    /// It is larger, or of another type.
    Modified,
    /// It is gone.
    Deleted,
}

/// How far a snapshot, an image or a volume has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Progress {
    /// Being made.
    Pending,
    /// There: `completed`, `available`.
    #[default]
    Complete,
    /// It could not be made: `error`, `failed`.
    Failed,
}

/// What a volume held at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Of which volume; of none, if it was uploaded.
    pub volume: Option<VolumeId>,
    /// Size of the volume.
    pub size: ByteSize,
    /// Layers, top first: its own, and those below.
    pub layers: Vec<Layer>,
    /// How far it is.
    pub progress: Progress,
    /// How it is written, if not copied.
    #[serde(default)]
    pub upload: Option<Upload>,
    /// For people.
    pub description: String,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// When it was begun, Unix seconds.
    pub created: u64,
}

impl Row for Snapshot {
    const KIND: &'static str = "snapshot";
    type Key = SnapshotId;

    fn key(&self) -> SnapshotId {
        self.id
    }
}

/// A wish for a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewVolume {
    /// Its size; by default that of the snapshot.
    pub size: Option<ByteSize>,
    /// What is on it; nothing, if not said.
    pub snapshot: Option<SnapshotId>,
    /// Its type.
    pub kind: VolumeKind,
    /// Its tags.
    pub tags: Vec<Tag>,
}

/// Why something was not done with a volume or a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// `InvalidVolume.NotFound`.
    #[error("the volume '{0}' does not exist")]
    NoVolume(VolumeId),
    /// `InvalidSnapshot.NotFound`.
    #[error("the snapshot '{0}' does not exist")]
    NoSnapshot(SnapshotId),
    /// `IncorrectState`.
    #[error("the snapshot '{0}' is not complete")]
    SnapshotPending(SnapshotId),
    /// `INVALID_SNAPSHOT_ID`, as the EBS API says.
    #[error("the snapshot '{0}' is not being written")]
    NotUploading(SnapshotId),
    /// `WRITE_REQUEST_TIMEOUT`.
    #[error("nothing was written to the snapshot '{0}' for as long as was said at its start: it has failed")]
    UploadTimeout(SnapshotId),
    /// `ConcurrentLimitExceeded`.
    #[error("too many snapshots are being written already")]
    TooManyUploads,
    /// `INVALID_BLOCK`.
    #[error("the snapshot '{snapshot}' has no block {index}")]
    NoBlock {
        /// Which.
        snapshot: SnapshotId,
        /// Number of the block.
        index: u64,
    },
    /// `INVALID_PARAMETER_VALUE`.
    #[error("{found} blocks were written, not {said}")]
    BlockCount {
        /// By the client.
        said: u64,
        /// In the layer.
        found: u64,
    },
    /// `INVALID_PARAMETER_VALUE`.
    #[error("what was written has another checksum")]
    Checksum,
    /// `UNRELATED_SNAPSHOTS`.
    #[error("the snapshots '{first}' and '{second}' are not of one lineage")]
    Unrelated {
        /// One.
        first: SnapshotId,
        /// The other.
        second: SnapshotId,
    },
    /// `InvalidSnapshot.InUse`.
    #[error("the snapshot {snapshot} is currently in use by {image}")]
    SnapshotInUse {
        /// Which.
        snapshot: SnapshotId,
        /// By whom.
        image: ImageId,
    },
    /// `VolumeInUse`.
    #[error("the volume {volume} is attached to {instance}")]
    InUse {
        /// Which.
        volume: VolumeId,
        /// To whom.
        instance: InstanceId,
    },
    /// `IncorrectState`.
    #[error("the volume '{0}' is 'available'")]
    NotAttached(VolumeId),
    /// `InvalidInstanceID.NotFound`.
    #[error("the instance ID '{0}' does not exist")]
    NoInstance(InstanceId),
    /// `IncorrectState`: it is neither `stopped` nor, where that will do, `running`.
    #[error("{action} cannot be done now: the instance {instance} is {state}")]
    State {
        /// What was asked.
        action: &'static str,
        /// Of which instance.
        instance: InstanceId,
        /// Its state.
        state: InstanceState,
    },
    /// `AttachmentLimitExceeded`: see `SPARE_DISKS`.
    #[error("the machine of {0} has no room for another volume while it runs (stop it to attach more)")]
    NoSpare(InstanceId),
    /// `IncorrectState`: it is not attached, or not any more.
    #[error("the volume '{volume}' is '{state}'")]
    Between {
        /// Which.
        volume: VolumeId,
        /// Where it is between.
        state: &'static str,
    },
    /// `UnsupportedOperation`: the limit on the size of the VMM's files was set at its start.
    #[error(
        "{action} to more than the instance started with takes CAP_SYS_RESOURCE, which is lacking here: stop {instance} first"
    )]
    NoRight {
        /// What was asked.
        action: &'static str,
        /// Of which instance.
        instance: InstanceId,
    },
    /// The machine does not do it.
    #[error("{action} failed")]
    Machine {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: Box<crate::vmm_process::VmmError>,
    },
    /// `OperationNotPermitted`.
    #[error("the root volume {0} cannot be detached")]
    Root(VolumeId),
    /// `InvalidParameterValue`.
    #[error("{0:?} cannot name a device (such as /dev/sdf)")]
    Device(String),
    /// `InvalidParameterValue`.
    #[error("the instance {instance} has a volume at {device} already")]
    DeviceTaken {
        /// Which.
        instance: InstanceId,
        /// The device.
        device: String,
    },
    /// `InvalidInstanceAttributeValue`.
    #[error("no device is currently mapped at {device} of {instance}")]
    NoDevice {
        /// Of which instance.
        instance: InstanceId,
        /// The device.
        device: String,
    },
    /// `InvalidParameterValue`.
    #[error("the device '{0}' is used in more than one block-device mapping")]
    DeviceTwice(String),
    /// `AttachmentLimitExceeded`.
    #[error("an instance has at most {MAX_ATTACHED} volumes besides its root volume")]
    TooManyDevices,
    /// `InvalidParameterValue`: no such volume type, or not so fast.
    #[error("{0}")]
    Kind(String),
    /// `InvalidParameterCombination`: not of this type.
    #[error("{0}")]
    KindCombination(String),
    /// `IncorrectState`.
    #[error("the volume '{0}' is being created")]
    Creating(VolumeId),
    /// `AttachmentLimitExceeded`.
    #[error("the instance {0} has {MAX_ATTACHED} volumes besides its root volume already")]
    TooMany(InstanceId),
    /// `InvalidParameterValue`.
    #[error("a volume of {wanted} cannot be made from or of one of {least}: it must not be smaller")]
    TooSmall {
        /// Asked for.
        wanted: ByteSize,
        /// Least.
        least: ByteSize,
    },
    /// `InvalidParameterValue`.
    #[error("new size of {wanted} cannot be smaller than existing size of {least}")]
    Shrinking {
        /// Asked for.
        wanted: ByteSize,
        /// What it has.
        least: ByteSize,
    },
    /// `InvalidParameterValue`.
    #[error("a volume has 1 MiB to 64 TiB, not {0}")]
    Size(ByteSize),
    /// `MissingParameter`.
    #[error("a volume that is not made from a snapshot needs a size")]
    NoSize,
    /// `SnapshotLimitExceeded`: see [`MAX_BELOW`].
    #[error("what {0} is made of has too many layers already (copy its contents to a new volume)")]
    TooDeep(VolumeId),
    /// A file could not be made, read or removed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// What a snapshot is made of cannot be read, or written.
    #[error("the layers of the snapshot '{snapshot}' cannot be used")]
    Layers {
        /// Whose.
        snapshot: SnapshotId,
        /// Why not.
        #[source]
        source: Box<kiln_disk::DiskError>,
    },
    /// The disk format refused.
    #[error("cannot make {path}")]
    Disk {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<kiln_disk::DiskError>,
    },
    /// A file that is used where it is.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl VolumeError {
    /// Its code in the EC2 API.
    pub fn code(&self) -> &'static str {
        match self {
            VolumeError::NoVolume(_) => "InvalidVolume.NotFound",
            VolumeError::NoSnapshot(_) => "InvalidSnapshot.NotFound",
            VolumeError::NoInstance(_) => "InvalidInstanceID.NotFound",
            VolumeError::SnapshotPending(_)
            | VolumeError::NotAttached(_)
            | VolumeError::Creating(_)
            | VolumeError::State { .. }
            | VolumeError::Between { .. } => "IncorrectState",
            VolumeError::NotUploading(_) => "INVALID_SNAPSHOT_ID",
            VolumeError::UploadTimeout(_) => "WRITE_REQUEST_TIMEOUT",
            VolumeError::TooManyUploads => "ConcurrentLimitExceeded",
            VolumeError::NoBlock { .. } => "INVALID_BLOCK",
            VolumeError::BlockCount { .. } | VolumeError::Checksum => "INVALID_PARAMETER_VALUE",
            VolumeError::Unrelated { .. } => "UNRELATED_SNAPSHOTS",
            VolumeError::NoRight { .. } => "UnsupportedOperation",
            VolumeError::SnapshotInUse { .. } => "InvalidSnapshot.InUse",
            VolumeError::InUse { .. } => "VolumeInUse",
            VolumeError::Root(_) => "OperationNotPermitted",
            VolumeError::Device(_)
            | VolumeError::DeviceTaken { .. }
            | VolumeError::DeviceTwice(_)
            | VolumeError::Kind(_)
            | VolumeError::TooSmall { .. }
            | VolumeError::Shrinking { .. }
            | VolumeError::Size(_) => "InvalidParameterValue",
            VolumeError::NoSize => "MissingParameter",
            VolumeError::NoDevice { .. } => "InvalidInstanceAttributeValue",
            VolumeError::KindCombination(_) => "InvalidParameterCombination",
            VolumeError::TooMany(_) | VolumeError::TooManyDevices | VolumeError::NoSpare(_) => {
                "AttachmentLimitExceeded"
            }
            VolumeError::TooDeep(_) => "SnapshotLimitExceeded",
            VolumeError::Machine { .. }
            | VolumeError::Io { .. }
            | VolumeError::Layers { .. }
            | VolumeError::Disk { .. }
            | VolumeError::Source(_)
            | VolumeError::Store(_) => "InternalError",
        }
    }
}
