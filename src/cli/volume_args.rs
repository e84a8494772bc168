//! Arguments of the commands on volumes and snapshots. Doc comments are the help text.

use clap::{Args, Subcommand};
use kiln_model::{ByteSize, SnapshotId, VolumeId};

use crate::args::{JsonArg, gibibytes};

/// Commands on volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume, empty or of a snapshot.
    Create(VolumeCreateArgs),
    /// List volumes.
    Ls(JsonArg),
    /// Give a volume to an instance.
    Attach {
        /// Id of the volume.
        volume: VolumeId,
        /// Id or name of the instance.
        instance: String,
        /// Name of the device; guests know the volume by its id.
        #[arg(long, default_value = "/dev/sdf")]
        device: String,
    },
    /// Take a volume from its instance. A running guest is asked to let go of it: unmount it first.
    Detach {
        /// Id of the volume.
        volume: VolumeId,
        /// Take it at once from a guest that does not let go. What it has not written yet is lost.
        #[arg(long)]
        force: bool,
    },
    /// Make a volume larger, also under a running guest. The file system on it is the guest's to grow.
    Resize {
        /// Id of the volume.
        volume: VolumeId,
        /// Its new size, such as 40G; GiB without a unit.
        #[arg(value_parser = gibibytes)]
        size: ByteSize,
    },
    /// Remove volumes that no instance has.
    Rm {
        /// Their ids.
        #[arg(required = true)]
        volumes: Vec<VolumeId>,
    },
}

/// Options of `kiln volume create`.
#[derive(Debug, Args)]
pub struct VolumeCreateArgs {
    /// Size, such as 20G; GiB without a unit. By default that of the snapshot.
    #[arg(long, value_parser = gibibytes, required_unless_present = "snapshot")]
    pub size: Option<ByteSize>,
    /// Snapshot to begin with.
    #[arg(long, value_name = "SNAP-ID")]
    pub snapshot: Option<SnapshotId>,
}

/// Commands on snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Keep what a volume holds now; its instance may run.
    Create {
        /// Id of the volume.
        volume: VolumeId,
        /// What it is for.
        #[arg(long)]
        description: Option<String>,
    },
    /// List snapshots.
    Ls(JsonArg),
    /// Remove snapshots that no image is made of.
    Rm {
        /// Their ids.
        #[arg(required = true)]
        snapshots: Vec<SnapshotId>,
    },
}
