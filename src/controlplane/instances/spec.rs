//! The machine of an instance, as its VMM is told: a spec and the descriptors that it names.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kiln_model::MacAddr;
use kiln_vmspec::{
    BootSource, ConsoleSpec, DiskFormat, DiskSpec, FdIndex, ImageLayer, LinkLocalIpv6, LinkLocalSpec,
    MemorySpec, NicSpec, VmSpec,
};

use super::{Instance, NetworkMode, facts, rates, smbios};
use crate::host::host_nameservers;
use crate::metadata::private_host_name;
use crate::network::{Interface, MAX_INTERFACES};
use crate::state::dir::InstanceDir;
use crate::volumes::{MAX_ATTACHED, Volume};

/// Hardware address of every router and of the link-local services. Locally administered, and the
/// same for all: each is alone on its link.
pub(super) const ROUTER_MAC: MacAddr = MacAddr::new([0x02, 0x6b, 0x69, 0x6c, 0x6e, 0x01]);
/// Largest IP packet on a link.
pub(super) const MTU: u16 = 1500;
/// Queues grow with the vCPUs up to this many: more than four cost memory and bring little.
const MOST_QUEUES: u16 = 4;
/// A guest that prints for ever fills this much of the state directory.
const OWN_LOG_LIMIT: u64 = 64 << 20;
/// And this much of a file that the user named.
const USER_LOG_LIMIT: u64 = 4 << 30;

/// A file that the machine needs cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the {what} {path}")]
pub struct OpenError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What one start of an instance needs besides its row.
pub(super) struct Opened {
    pub(super) kvm: OwnedFd,
    pub(super) disks: Vec<OpenedDisk>,
    pub(super) kernel: Option<File>,
    pub(super) initrd: Option<File>,
    pub(super) console_log: File,
    pub(super) ending: Option<File>,
    /// Of each interface, if they reach more than the link.
    pub(super) taps: Vec<Vec<OwnedFd>>,
}

/// A volume with its files, top first.
pub(super) struct OpenedDisk {
    pub(super) volume: Volume,
    pub(super) files: Vec<(File, DiskFormat)>,
}

/// Volumes that can be attached to a machine while it runs: each costs a thread and a ring from the start.
const SPARE_DISKS: usize = 8;

/// Network interfaces that can be attached to a machine while it runs.
const SPARE_NICS: usize = 3;

/// What the VMM is told of a volume.
pub(super) fn disk(instance: &Instance, volume: &Volume, queues: u16, layers: Vec<ImageLayer>) -> DiskSpec {
    DiskSpec { serial: volume.serial(), layers, read_only: false, queues, limits: rates::disk(instance) }
}

/// Number of queues of each device.
pub(super) fn queues(instance: &Instance) -> u16 {
    u16::from(instance.vcpus).clamp(1, MOST_QUEUES)
}

/// Opens an existing file for reading.
pub(super) fn open_to_read(what: &'static str, path: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError { what, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    Ok(file)
}

/// Opens the console log, or the file that the user named.
pub(super) fn open_console_log(instance: &Instance, dir: &InstanceDir) -> Result<File, OpenError> {
    let path = instance.console_log.clone().unwrap_or_else(|| dir.console_log());
    let failed = |source| OpenError { what: "console log", path: path.clone(), source };
    OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(failed)
}

/// Makes the file into which the VMM writes why it ended.
pub(super) fn create_ending(dir: &InstanceDir) -> Result<File, OpenError> {
    let path = dir.ending();
    let failed = |source| OpenError { what: "note of the machine's end", path: path.clone(), source };
    OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path).map_err(failed)
}

/// Bytes that one start of the instance may add to its console log.
pub(super) fn log_limit(instance: &Instance) -> u64 {
    if instance.console_log.is_some() { USER_LOG_LIMIT } else { OWN_LOG_LIMIT }
}

#[derive(Default)]
struct FdTable(Vec<OwnedFd>);

impl FdTable {
    fn add(&mut self, fd: impl Into<OwnedFd>) -> FdIndex {
        let index = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0.push(fd.into());
        FdIndex(index)
    }
}

/// Puts the spec together.
pub(super) fn build(
    instance: &Instance,
    metadata: kiln_vmspec::MetadataSnapshot,
    opened: Opened,
) -> (VmSpec, Vec<OwnedFd>) {
    let mut fds = FdTable::default();
    let kvm = fds.add(opened.kvm);
    let mut disks = Vec::new();
    for OpenedDisk { volume, files } in opened.disks {
        let layers = files.into_iter().map(|(file, format)| ImageLayer { file: fds.add(file), format });
        disks.push(disk(instance, &volume, queues(instance), layers.collect()));
    }
    let room = (MAX_ATTACHED + 1).saturating_sub(disks.len());
    let cmdline = instance.boot.cmdline.clone();
    let boot = match opened.kernel {
        Some(kernel) => BootSource::Files {
            kernel: fds.add(kernel),
            initrd: opened.initrd.map(|initrd| fds.add(initrd)),
            cmdline,
        },
        None => BootSource::RootVolume { cmdline },
    };
    let taps = opened.taps.into_iter().chain(std::iter::repeat_with(Vec::new));
    let nics = instance.interfaces().zip(taps).map(|(interface, taps)| {
        let queues = taps.into_iter().map(|tap| fds.add(tap)).collect();
        nic(instance, interface, queues)
    });
    let nics: Vec<_> = nics.collect();
    let nic_room = MAX_INTERFACES.saturating_sub(nics.len());
    let log = fds.add(opened.console_log);
    let ending = opened.ending.map(|file| fds.add(file));
    let spec = VmSpec {
        instance_id: instance.id.to_string(),
        kvm,
        vcpus: instance.vcpus,
        cpu_template: rates::kind(instance).map(|kind| kind.cpu_template()).unwrap_or_default(),
        memory: MemorySpec { size_mib: instance.memory.as_mib(), hugepages: instance.hugepages },
        boot,
        disks,
        spare_disks: u8::try_from(room.min(SPARE_DISKS)).unwrap_or(0),
        nics,
        spare_nics: u8::try_from(nic_room.min(SPARE_NICS)).unwrap_or(0),
        smbios: smbios::ec2_profile(instance),
        console: ConsoleSpec {
            log: Some(log),
            log_limit_bytes: log_limit(instance),
            // A daemon takes what is printed from the log.
            to_starter: !instance.supervised,
        },
        metadata,
        ending,
    };
    (spec, fds.0)
}

/// The VPC's resolver knows the names of the VPC; where a guest can reach them, the host's own servers
/// know the rest, and are asked after the first one has failed.
fn nameservers(instance: &Instance, resolver: Option<Ipv4Addr>) -> Vec<Ipv4Addr> {
    let others = if instance.network == NetworkMode::Vpc { host_nameservers() } else { Vec::new() };
    resolver.into_iter().chain(others).collect()
}

/// What the VMM is told of an interface.
pub(super) fn nic(instance: &Instance, interface: &Interface, tap_queues: Vec<FdIndex>) -> NicSpec {
    let subnet = &interface.subnet;
    let resolver = subnet.vpc_cidr.resolver();
    NicSpec {
        limits: rates::network(instance),
        mac: interface.mac,
        tap_queues,
        mtu: MTU,
        link_local: LinkLocalSpec {
            private_ipv4: interface.address,
            prefix_len: subnet.cidr.prefix_len(),
            router: subnet.router(),
            router_mac: ROUTER_MAC,
            dns: nameservers(instance, resolver),
            resolver,
            host_name: private_host_name(interface.address, None),
            domain_name: facts::domain(),
            ipv6: interface
                .ipv6
                .zip(subnet.ipv6)
                .map(|(address, range)| LinkLocalIpv6 { address, prefix_len: range.prefix_len() }),
        },
    }
}
