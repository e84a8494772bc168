//! What is remembered of an instance.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use kiln_model::{
    ByteSize, ImageId, InstanceId, InstanceState, ReservationId, SshPublicKey, Tag, UserData, VolumeId,
};
use kiln_vmspec::MetadataOptions;
use serde::{Deserialize, Serialize};

use super::{Remembered, ShutdownBehavior, StateReason};
use crate::credentials::Association;
use crate::host::ProcessIdentity;
use crate::images::FileIdentity;
use crate::launch_templates::TemplateUse;
use crate::metadata::SignedIdentity;
use crate::network::{Interface, Published};
use crate::state::Row;
use crate::volumes::ROOT_DEVICE;

/// Where the contents of a root volume come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum BaseImage {
    /// An imported image.
    Imported {
        /// Its id.
        image: ImageId,
    },
    /// A file or device used where it is.
    InPlace {
        /// Absolute path.
        path: PathBuf,
        /// How it was at the first launch.
        identity: FileIdentity,
    },
}

/// Whether an instance reaches more than its link-local services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// A tap in its VPC.
    Vpc,
    /// DHCP, metadata, DNS and time only.
    LinkLocalOnly,
}

/// Overrides of what is read from the root volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootOverride {
    /// Kernel file.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk file; only with a kernel.
    pub initrd: Option<PathBuf>,
    /// Command line.
    pub cmdline: Option<String>,
}

/// The root volume, as the instance remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootVolume {
    /// Its id.
    pub id: VolumeId,
    /// What the guest sees.
    pub size: ByteSize,
    /// What it was made from. What it is made of is in the row of the volume.
    pub base: BaseImage,
    /// Name of its device.
    #[serde(default = "usual_root")]
    pub device: String,
}

fn usual_root() -> String {
    ROOT_DEVICE.to_owned()
}

/// How far changes have come on their way to the guest: `pending` and `applied` in EC2's answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataState {
    /// Counts changes that metadata must show.
    pub wanted: u64,
    /// Last of them that the running instance's metadata show.
    pub applied: u64,
}

impl MetadataState {
    /// Whether nothing is on its way.
    pub fn is_applied(self) -> bool {
        self.applied >= self.wanted
    }
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// The request that made it.
    pub reservation: ReservationId,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// Where it is in its life.
    pub state: InstanceState,
    /// Name of its type.
    pub instance_type: String,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest memory.
    pub memory: ByteSize,
    /// Memory from the host's pool of huge pages.
    pub hugepages: bool,
    /// Its root volume.
    pub root: RootVolume,
    /// Its primary network interface.
    pub interface: Interface,
    /// Its other network interfaces, in device order.
    #[serde(default)]
    pub more_interfaces: Vec<Interface>,
    /// What the interfaces reach.
    pub network: NetworkMode,
    /// Whether it gets a public address at each start.
    #[serde(default)]
    pub public_ip: bool,
    /// Ports of the host that lead to it.
    #[serde(default)]
    pub publish: Vec<Published>,
    /// The public address that it has while it runs.
    #[serde(default)]
    pub public_address: Option<Ipv4Addr>,
    /// User data.
    pub user_data: Option<UserData>,
    /// Key that may log in.
    pub ssh_key: Option<SshPublicKey>,
    /// How its metadata service may be used.
    pub metadata_options: MetadataOptions,
    /// Its instance profile.
    #[serde(default)]
    pub profile: Option<Association>,
    /// Who it is, signed at its last start.
    #[serde(default)]
    pub identity: Option<SignedIdentity>,
    /// Whether its metadata show what this row says.
    #[serde(default)]
    pub metadata: MetadataState,
    /// Kernel and command line given by the user.
    pub boot: BootOverride,
    /// Where console output goes instead of the instance's own log.
    pub console_log: Option<PathBuf>,
    /// SMBIOS UUID; the same over stop and start.
    pub uuid: String,
    /// Whether it stays when its machine ends.
    pub keep: bool,
    /// Whether its vCPUs ever ran: from then on its volume has contents of its own.
    pub has_run: bool,
    /// When it was made, Unix seconds.
    pub created: u64,
    /// When it was last started, Unix seconds.
    pub launched: u64,
    /// Number of starts; generation of its metadata.
    pub starts: u64,
    /// The process that runs it, if one does.
    pub owner: Option<ProcessIdentity>,
    /// Its VMM, if one runs.
    pub vmm: Option<ProcessIdentity>,
    /// It belongs to a daemon: its machine outlives whoever runs it, and its row stays for a while after
    /// its end.
    #[serde(default)]
    pub supervised: bool,
    /// What becomes of it when its guest powers off by itself.
    #[serde(default)]
    pub shutdown: ShutdownBehavior,
    /// Whether it refuses to be terminated (`DisableApiTermination`).
    #[serde(default)]
    pub protected: bool,
    /// What was said of it and changes nothing.
    #[serde(flatten)]
    pub remembered: Remembered,
    /// Why it is in its state, where there is something to say.
    #[serde(default)]
    pub reason: Option<StateReason>,
    /// Its number among those of one request.
    #[serde(default)]
    pub launch_index: u32,
    /// Name of the key that may log in.
    #[serde(default)]
    pub key_name: Option<String>,
    /// What it was launched from.
    #[serde(default)]
    pub launch_template: Option<TemplateUse>,
}

impl Instance {
    /// Its network interfaces in the order of their devices, the primary first.
    pub fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        std::iter::once(&self.interface).chain(&self.more_interfaces)
    }

    /// Its `Name` tag.
    pub fn name(&self) -> Option<&str> {
        self.tags.iter().find(|t| t.key() == Tag::NAME).map(Tag::value)
    }

    /// Whether it stays, stopped, when its machine ends.
    pub fn stays(&self) -> bool {
        self.keep && self.has_run
    }

    /// Whether its life is over: only its row is left, for people to see.
    pub fn is_gone(&self) -> bool {
        self.state == InstanceState::Terminated
    }

    /// Whether it has a machine, or is about to have one.
    pub fn is_active(&self) -> bool {
        !matches!(self.state, InstanceState::Stopped | InstanceState::Terminated)
    }
}

impl Row for Instance {
    const KIND: &'static str = "instance";
    type Key = InstanceId;

    fn key(&self) -> InstanceId {
        self.id
    }
}
