//! What one virtual machine is made of.

use std::net::{Ipv4Addr, Ipv6Addr};

use kiln_model::{CpuTemplate, MacAddr};
use serde::{Deserialize, Serialize};

use crate::MetadataSnapshot;

/// Place of a descriptor among those that travel with the command that names it, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FdIndex(pub u32);

/// The whole machine. Sent once, before boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Instance id (`i-…`), for logs and the baseboard asset tag.
    pub instance_id: String,
    /// The open `/dev/kvm`.
    pub kvm: FdIndex,
    /// Number of vCPUs, 1 to 32.
    pub vcpus: u8,
    /// What they offer.
    pub cpu_template: CpuTemplate,
    /// Guest memory.
    pub memory: MemorySpec,
    /// Where the kernel comes from.
    pub boot: BootSource,
    /// Block devices in PCI order; the first is the root volume.
    pub disks: Vec<DiskSpec>,
    /// How many disks can come to the running machine besides, at least: each disk that goes makes room for
    /// another. What they need of the host is made before the machine runs.
    #[serde(default)]
    pub spare_disks: u8,
    /// Network interfaces in PCI order.
    pub nics: Vec<NicSpec>,
    /// How many interfaces can come to the running machine besides: each that goes makes room for another.
    #[serde(default)]
    pub spare_nics: u8,
    /// Identity shown in SMBIOS.
    pub smbios: SmbiosSpec,
    /// The serial console.
    pub console: ConsoleSpec,
    /// First metadata snapshot; later ones come with `Command::UpdateMetadata`.
    pub metadata: MetadataSnapshot,
    /// An empty file into which the VMM writes its [`crate::ExitReason`] as JSON before it ends, for
    /// control planes that are away at that moment.
    #[serde(default)]
    pub ending: Option<FdIndex>,
}

/// Guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySpec {
    /// Size in MiB, at least 64.
    pub size_mib: u64,
    /// Back it with 2 MiB pages of the host's hugetlb pool.
    pub hugepages: bool,
}

/// Where kernel, initrd and command line come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum BootSource {
    /// Read out of the first disk: partition table, file system, boot entry.
    RootVolume {
        /// Replaces the command line of the boot entry.
        cmdline: Option<String>,
    },
    /// Handed in by the user.
    Files {
        /// bzImage or ELF with a PVH note.
        kernel: FdIndex,
        /// Initial RAM disk.
        initrd: Option<FdIndex>,
        /// Command line; where absent, the one of the root volume's boot entry if it has one.
        cmdline: Option<String>,
    },
}

/// Format of an image file. Declared, never guessed from contents: a guest could otherwise write a
/// header into its raw disk and be handed any file of the host at the next start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Flat bytes.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
}

/// One file of a chain of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayer {
    /// The open file or block device.
    pub file: FdIndex,
    /// Its declared format.
    pub format: DiskFormat,
}

/// A sustained rate with a burst on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Units per second.
    pub per_second: u64,
    /// Units that may pass at once after idleness.
    pub burst: u64,
}

/// Limits on operations and on bytes; absent ones do not limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimits {
    /// Requests, or frames.
    pub operations: Option<Rate>,
    /// Bytes.
    pub bytes: Option<Rate>,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Serial number shown to the guest, at most 20 bytes of ASCII (virtio 1.2 §5.2.6).
    pub serial: String,
    /// Layers, top first. Only the top is ever written; backing names inside the files are ignored.
    pub layers: Vec<ImageLayer>,
    /// Refuse writes.
    pub read_only: bool,
    /// Number of request queues, 1 to 16.
    pub queues: u16,
    /// For all queues together.
    #[serde(default)]
    pub limits: RateLimits,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// Hardware address of the guest's interface.
    pub mac: MacAddr,
    /// Queue pairs: one open tap queue each (`IFF_MULTI_QUEUE` when more than one), configured with
    /// a 12-byte virtio-net header. Empty: a NIC that reaches only the link-local services.
    pub tap_queues: Vec<FdIndex>,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// For each direction, all queues together.
    #[serde(default)]
    pub limits: RateLimits,
    /// What the services on the link tell this interface.
    pub link_local: LinkLocalSpec,
}

/// Addresses that DHCP hands out and ARP answers for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkLocalSpec {
    /// The interface's primary private address.
    pub private_ipv4: Ipv4Addr,
    /// Prefix length of its subnet, 16 to 28.
    pub prefix_len: u8,
    /// Default router: the subnet's base + 1.
    pub router: Ipv4Addr,
    /// Hardware address of the router and of every link-local service.
    pub router_mac: MacAddr,
    /// Name servers handed out by DHCP.
    pub dns: Vec<Ipv4Addr>,
    /// VPC base + 2: packets to it are answered by the VMM's own resolver and never reach the tap.
    pub resolver: Option<Ipv4Addr>,
    /// Host name handed out by DHCP, such as `ip-10-0-1-10`.
    pub host_name: String,
    /// Domain name handed out by DHCP.
    pub domain_name: String,
    /// IPv6 of the interface, if it has any.
    #[serde(default)]
    pub ipv6: Option<LinkLocalIpv6>,
}

/// What DHCPv6 hands out and router advertisements tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkLocalIpv6 {
    /// The interface's address.
    pub address: Ipv6Addr,
    /// Prefix length of its subnet: 64.
    pub prefix_len: u8,
}

/// SMBIOS strings. See the `ec2` profile in the control plane for the values cloud-init wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmbiosSpec {
    /// Types 0, 1, 2 and 3.
    pub manufacturer: String,
    /// Type 1.
    pub product_name: String,
    /// Type 1, as `dmidecode` prints it: lower-case 8-4-4-4-12.
    pub uuid: String,
    /// Type 1.
    pub serial: String,
    /// Type 2: the instance id on EC2.
    pub board_asset_tag: String,
    /// Type 3.
    pub chassis_asset_tag: String,
    /// Type 0.
    pub bios_version: String,
    /// Type 0, `mm/dd/yyyy`.
    pub bios_date: String,
}

/// Where serial output goes besides attached control clients.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSpec {
    /// Append every byte the guest prints here.
    pub log: Option<FdIndex>,
    /// Stop writing to `log` at this many bytes, so that a guest cannot fill the host.
    pub log_limit_bytes: u64,
    /// Attach the client that starts the machine, before there is any output: one that attaches later may
    /// come too late for a short life.
    pub to_starter: bool,
}
