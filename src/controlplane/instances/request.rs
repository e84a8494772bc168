//! A wish for an instance, and what of it can be checked without touching anything.

use std::path::PathBuf;

use kiln_model::{ByteSize, InstanceType, InvalidTag, SshPublicKey, Tag, UnknownInstanceType, UserData};
use kiln_vmspec::{DiskFormat, MetadataOptions};

use super::{BootOverride, NetworkMode, Remembered, ShutdownBehavior};
use crate::credentials::RoleName;
use crate::launch_templates::TemplateUse;
use crate::metadata::{InvalidMetadataTag, check_tag_keys};
use crate::network::Placement;
use crate::volumes::{DeviceWish, VolumeKind};

/// Least memory a Linux guest of today comes up in.
pub const MIN_MEMORY_MIB: u64 = 64;
/// Most vCPUs of one machine.
pub const MAX_VCPUS: u8 = 32;
/// Most tags of one resource.
pub(super) const MAX_TAGS: usize = 50;
/// Longest command line in bytes: Linux keeps 2048 with the terminating zero.
const MAX_CMDLINE: usize = 2047;

/// A wish for one instance.
#[derive(Debug, Clone)]
pub struct LaunchRequest {
    /// Name or id of an image, or path of a file to be used in place.
    pub image: String,
    /// Declared format of such a file.
    pub format: Option<DiskFormat>,
    /// Name of the instance type.
    pub instance_type: String,
    /// Instead of the type's.
    pub vcpus: Option<u8>,
    /// Instead of the type's.
    pub memory: Option<ByteSize>,
    /// Memory from the host's pool of huge pages.
    pub hugepages: bool,
    /// Size of the root volume; by default that of the image.
    pub volume_size: Option<ByteSize>,
    /// What the interface reaches.
    pub network: NetworkMode,
    /// Where the primary interface is and what it is open to.
    pub placement: Placement,
    /// The same of other interfaces: subnet (that of the primary one if not said), addresses and groups.
    pub more_interfaces: Vec<Placement>,
    /// User data.
    pub user_data: Option<UserData>,
    /// Key that may log in.
    pub ssh_key: Option<SshPublicKey>,
    /// How the metadata service may be used.
    pub metadata_options: MetadataOptions,
    /// Kernel and command line instead of those of the image.
    pub boot: BootOverride,
    /// Console output goes here instead of to the instance's own log.
    pub console_log: Option<PathBuf>,
    /// `Name` tag.
    pub name: Option<String>,
    /// Other tags.
    pub tags: Vec<Tag>,
    /// Name of its instance profile.
    pub profile: Option<RoleName>,
    /// Whether the instance stays when its machine ends.
    pub keep: bool,
    /// What becomes of it when its guest powers off by itself. For instances of a daemon.
    pub shutdown: ShutdownBehavior,
    /// Whether it refuses to be terminated. For instances of a daemon.
    pub protected: bool,
    /// What is to be remembered and changes nothing.
    pub remembered: Remembered,
    /// Name of the key that may log in.
    pub key_name: Option<String>,
    /// Where some of this was read.
    pub launch_template: Option<TemplateUse>,
    /// Whether the root volume stays when the instance goes; by default as the image says.
    pub keep_root: Option<bool>,
    /// Type of the root volume; by default that of the image.
    pub root_kind: Option<VolumeKind>,
    /// Volumes besides the root volume, over what the image says of them.
    pub volumes: Vec<DeviceWish>,
}

/// Why a wish makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No such instance type.
    #[error(transparent)]
    InstanceType(#[from] UnknownInstanceType),
    /// The name is no tag value.
    #[error("the name cannot be used")]
    Name(#[source] InvalidTag),
    /// A key occurs twice.
    #[error("the tag {0:?} is given twice")]
    RepeatedTag(String),
    /// More than a resource can have.
    #[error("an instance has at most {MAX_TAGS} tags, not {0}")]
    TooManyTags(usize),
    /// A tag that its metadata cannot show, while they are to show tags.
    #[error(transparent)]
    MetadataTag(#[from] InvalidMetadataTag),
    /// Too few or too many vCPUs.
    #[error("an instance has 1 to {MAX_VCPUS} vCPUs, not {0}")]
    Vcpus(u8),
    /// Not enough memory to boot.
    #[error("{0} of memory are too little to boot (give at least {MIN_MEMORY_MIB} MiB)")]
    MemoryTooSmall(ByteSize),
    /// More memory than the host has.
    #[error(
        "{wanted} of memory are more than the {available} that the host has available (choose a smaller \
         --instance-type, or say --memory)"
    )]
    MemoryTooLarge {
        /// Asked for.
        wanted: ByteSize,
        /// `MemAvailable` of the host.
        available: ByteSize,
    },
    /// More than the pool of huge pages has.
    #[error(
        "{wanted} of memory are more than the {available} of free 2 MiB pages (raise vm.nr_hugepages, or \
         leave --hugepages out)"
    )]
    HugepagesTooFew {
        /// Asked for.
        wanted: ByteSize,
        /// Free pages of the pool.
        available: ByteSize,
    },
    /// Huge pages are 2 MiB each.
    #[error("{0} of memory are not a multiple of 2 MiB, as --hugepages needs")]
    HugepagesUneven(ByteSize),
    /// An initial RAM disk alone.
    #[error("--initrd needs --kernel (the image's own kernel goes with its own initrd)")]
    InitrdWithoutKernel,
    /// Longer than the kernel takes.
    #[error("a kernel command line of {0} bytes is too long (at most {MAX_CMDLINE})")]
    CmdlineTooLong(usize),
    /// Control characters end or garble a command line.
    #[error("the kernel command line holds control characters")]
    CmdlineControl,
}

/// Memory that the host can give at this moment.
#[derive(Debug, Clone, Copy)]
pub struct HostMemory {
    /// Without pushing others out.
    pub available: ByteSize,
    /// In free pages of the 2 MiB pool.
    pub free_hugepages: ByteSize,
}

impl HostMemory {
    /// Where somebody else counts what there is.
    pub const UNBOUNDED: HostMemory =
        HostMemory { available: ByteSize::bytes(u64::MAX), free_hugepages: ByteSize::bytes(u64::MAX) };
}

/// A wish that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Size {
    pub instance_type: String,
    pub vcpus: u8,
    pub memory: ByteSize,
}

impl LaunchRequest {
    /// An instance of `image` and of a type, with nothing else said.
    pub fn new(image: &str, instance_type: &str) -> Self {
        LaunchRequest {
            image: image.to_owned(),
            format: None,
            instance_type: instance_type.to_owned(),
            vcpus: None,
            memory: None,
            hugepages: false,
            volume_size: None,
            network: NetworkMode::Vpc,
            placement: Placement::default(),
            more_interfaces: Vec::new(),
            user_data: None,
            ssh_key: None,
            metadata_options: MetadataOptions::default(),
            boot: BootOverride::default(),
            console_log: None,
            name: None,
            tags: Vec::new(),
            profile: None,
            keep: false,
            shutdown: ShutdownBehavior::Stop,
            protected: false,
            remembered: Remembered::default(),
            key_name: None,
            launch_template: None,
            keep_root: None,
            root_kind: None,
            volumes: Vec::new(),
        }
    }

    /// Checks everything that needs neither files nor state.
    pub fn check(&self, host: HostMemory) -> Result<(), RequestError> {
        self.size(host)?;
        self.tags()?;
        if self.boot.initrd.is_some() && self.boot.kernel.is_none() {
            return Err(RequestError::InitrdWithoutKernel);
        }
        if let Some(cmdline) = &self.boot.cmdline {
            if cmdline.len() > MAX_CMDLINE {
                return Err(RequestError::CmdlineTooLong(cmdline.len()));
            }
            if cmdline.chars().any(char::is_control) {
                return Err(RequestError::CmdlineControl);
            }
        }
        Ok(())
    }

    pub(super) fn size(&self, host: HostMemory) -> Result<Size, RequestError> {
        let instance_type = InstanceType::find(&self.instance_type)?;
        let vcpus = self.vcpus.unwrap_or(instance_type.vcpus);
        if !(1..=MAX_VCPUS).contains(&vcpus) {
            return Err(RequestError::Vcpus(vcpus));
        }
        let memory = self.memory.unwrap_or(instance_type.memory);
        if memory.as_mib() < MIN_MEMORY_MIB {
            return Err(RequestError::MemoryTooSmall(memory));
        }
        if self.hugepages {
            if !memory.as_mib().is_multiple_of(2) {
                return Err(RequestError::HugepagesUneven(memory));
            }
            if memory > host.free_hugepages {
                return Err(RequestError::HugepagesTooFew { wanted: memory, available: host.free_hugepages });
            }
        } else if memory > host.available {
            return Err(RequestError::MemoryTooLarge { wanted: memory, available: host.available });
        }
        Ok(Size { instance_type: instance_type.name.to_owned(), vcpus, memory })
    }

    pub(super) fn tags(&self) -> Result<Vec<Tag>, RequestError> {
        let tag = |name: &String| Tag::new(Tag::NAME, name).map_err(RequestError::Name);
        let mut tags: Vec<Tag> = self.name.as_ref().map(tag).transpose()?.into_iter().collect();
        tags.extend(self.tags.iter().cloned());
        for (at, tag) in tags.iter().enumerate() {
            if tags.iter().take(at).any(|earlier| earlier.key() == tag.key()) {
                return Err(RequestError::RepeatedTag(tag.key().to_owned()));
            }
        }
        if tags.len() > MAX_TAGS {
            return Err(RequestError::TooManyTags(tags.len()));
        }
        if self.metadata_options.tags_enabled {
            check_tag_keys(&tags)?;
        }
        Ok(tags)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use kiln_model::size::{GIB, MIB};

    use super::*;

    pub(in crate::instances) const HOST: HostMemory =
        HostMemory { available: ByteSize::bytes(8 * GIB), free_hugepages: ByteSize::bytes(0) };

    pub(in crate::instances) fn request(image: &str) -> LaunchRequest {
        LaunchRequest::new(image, "t3.micro")
    }

    #[test]
    fn size_is_that_of_the_type_unless_said() {
        let size = request("x").size(HOST).unwrap();
        assert_eq!((size.vcpus, size.memory.as_mib()), (2, 1024));
        let mut r = request("x");
        (r.vcpus, r.memory) = (Some(1), Some(ByteSize::bytes(64 * MIB)));
        let size = r.size(HOST).unwrap();
        assert_eq!((size.vcpus, size.memory.as_mib()), (1, 64));
    }

    #[test]
    fn wishes_that_make_no_sense_are_refused() {
        let refusal = |change: &dyn Fn(&mut LaunchRequest)| {
            let mut r = request("x");
            change(&mut r);
            r.check(HOST).unwrap_err()
        };
        use RequestError as E;
        assert!(matches!(refusal(&|r| r.instance_type = "t3.mikro".into()), E::InstanceType(_)));
        assert!(matches!(refusal(&|r| r.vcpus = Some(0)), E::Vcpus(0)));
        assert!(matches!(refusal(&|r| r.vcpus = Some(33)), E::Vcpus(33)));
        assert!(matches!(refusal(&|r| r.memory = Some(ByteSize::bytes(64 * MIB - 1))), E::MemoryTooSmall(_)));
        assert!(matches!(refusal(&|r| r.memory = Some(ByteSize::bytes(9 * GIB))), E::MemoryTooLarge { .. }));
        assert!(matches!(refusal(&|r| r.instance_type = "m5.4xlarge".into()), E::MemoryTooLarge { .. }));
        assert!(matches!(refusal(&|r| r.hugepages = true), E::HugepagesTooFew { .. }));
        assert!(matches!(
            refusal(&|r| (r.hugepages, r.memory) = (true, Some(ByteSize::bytes(65 * MIB)))),
            E::HugepagesUneven(_)
        ));
        assert!(matches!(refusal(&|r| r.name = Some("\x1b".into())), E::Name(_)));
        let tag = |key: &str| Tag::new(key, "v").unwrap();
        assert!(matches!(refusal(&|r| r.tags = vec![tag("a"), tag("a")]), E::RepeatedTag(_)));
        assert!(matches!(
            refusal(&|r| (r.name, r.tags) = (Some("n".into()), vec![tag("Name")])),
            E::RepeatedTag(_)
        ));
        let many = |r: &mut LaunchRequest| r.tags = (0..51).map(|n| tag(&n.to_string())).collect();
        assert!(matches!(refusal(&many), E::TooManyTags(51)));
        let hidden = |r: &mut LaunchRequest| r.tags = vec![tag("a b")];
        let shown = |r: &mut LaunchRequest| {
            hidden(r);
            r.metadata_options.tags_enabled = true;
        };
        assert!(matches!(refusal(&shown), E::MetadataTag(_)));
        assert!(matches!(refusal(&|r| r.boot.initrd = Some("i".into())), E::InitrdWithoutKernel));
        assert!(matches!(refusal(&|r| r.boot.cmdline = Some("a\nb".into())), E::CmdlineControl));
        assert!(matches!(refusal(&|r| r.boot.cmdline = Some("a".repeat(2048))), E::CmdlineTooLong(2048)));
    }
}
