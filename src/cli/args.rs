//! The command line as types. Doc comments are the help text.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kiln_controlplane::credentials::RoleName;
use kiln_controlplane::network::{Published, RuleSpec};
use kiln_controlplane::state::dir;
use kiln_model::size::{GIB, MIB};
use kiln_model::{ByteSize, InstanceType, InterfaceId, Ipv4Cidr, Ipv6Cidr, SecurityGroupRuleId, Tag};
use kiln_vmspec::DiskFormat;

use crate::instance_args::{
    EventsArgs, InstanceArg, LogsArgs, PsArgs, SshArgs, StartArgs, StopArgs, TerminateArgs, TypeArgs,
};
use crate::interface_arg::InterfaceArg;
use crate::metadata_args::{
    IdentityCommand, MetadataArgs, PasswordArgs, RoleCommand, TagArgs, role_name, tag,
};
use crate::volume_arg::VolumeArg;
use crate::volume_args::{SnapshotCommand, VolumeCommand};

/// Run AMI-style images as isolated microVMs on your own Linux host.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// Where images, volumes and state live.
    #[arg(long, global = true, env = "KILN_STATE_DIR", value_name = "DIR", default_value = dir::DEFAULT)]
    pub state_dir: PathBuf,
    /// Say what is done, on standard error. Twice: everything. RUST_LOG is finer.
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run an image as an instance, with its serial console on this terminal; or, with --detach, as one of
    /// kilnd's.
    Run(Box<RunArgs>),
    /// Work with images.
    #[command(subcommand)]
    Image(ImageCommand),
    /// List instances.
    Ps(PsArgs),
    /// Attach this terminal to the serial console of a running instance.
    Console(InstanceArg),
    /// Show what an instance has printed on its serial console.
    Logs(LogsArgs),
    /// Log in to a running instance by SSH, or run a command there.
    Ssh(SshArgs),
    /// Start a stopped instance again, with its console on this terminal; those of kilnd without.
    Start(StartArgs),
    /// Press the power button of an instance and wait until it is off.
    Stop(StopArgs),
    /// Have an instance shut down and come up again, in the same machine.
    Reboot(InstanceArg),
    /// End an instance for good: its machine, its volume, its address.
    Terminate(TerminateArgs),
    /// Give a stopped instance another type (see `kiln types`).
    Type(TypeArgs),
    /// Work with volumes: disks that outlive instances.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Work with snapshots: what volumes held at one moment.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Show what happens to kilnd's instances, volumes and credentials, as it happens.
    Events(EventsArgs),
    /// Say who may talk to instances: security groups.
    #[command(subcommand)]
    Sg(SgCommand),
    /// Work with VPCs: networks of their own address space.
    #[command(subcommand)]
    Vpc(VpcCommand),
    /// Work with subnets of VPCs.
    #[command(subcommand)]
    Subnet(SubnetCommand),
    /// Work with network ACLs: numbered entries at the edges of subnets.
    #[command(subcommand)]
    Acl(AclCommand),
    /// Work with prefix lists: ranges that rules refer to by one name.
    #[command(subcommand)]
    PrefixList(PrefixListCommand),
    /// Work with network interfaces of instances.
    #[command(subcommand)]
    Interface(InterfaceCommand),
    /// Work with roles: where instances get credentials from.
    #[command(subcommand)]
    Role(RoleCommand),
    /// Show what a running instance reads from its metadata service, or change how it may.
    Metadata(MetadataArgs),
    /// Set or remove tags of an instance.
    Tag(TagArgs),
    /// Print the password that a Windows guest reported, encrypted for the instance's key.
    Password(PasswordArgs),
    /// What others need to check the identity of instances and their credentials.
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// Work with Elastic addresses: public addresses that stay, and move between instances.
    #[command(subcommand)]
    Address(AddressCommand),
    /// Print what AWS tools need to talk to kilnd: eval "$(kiln env)".
    Env,
    /// List instance types.
    Types(JsonArg),
    /// Say what this host offers, and what to do about each gap.
    Doctor(JsonArg),
    /// Print a completion script for a shell.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Options of `kiln run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Name or id of an imported image, or path of a disk image or block device. A path is used
    /// where it is and never written.
    pub image: String,
    /// Leave the instance to kilnd, and return when it runs. This host may connect to it unless a security
    /// group is given. An image that is a path is imported.
    #[arg(long, short, conflicts_with_all = ["vcpus", "memory", "kernel", "initrd", "cmdline", "console_log",
          "allow", "publish", "no_network", "hugepages", "console_input"])]
    pub detach: bool,
    /// Size of the machine (see `kiln types`).
    #[arg(long, value_name = "TYPE", default_value = InstanceType::DEFAULT)]
    pub instance_type: String,
    /// Number of vCPUs instead of the type's.
    #[arg(long, value_name = "N")]
    pub vcpus: Option<u8>,
    /// Memory instead of the type's, such as 512M or 4G; MiB without a unit.
    #[arg(long, value_name = "SIZE", value_parser = mebibytes)]
    pub memory: Option<ByteSize>,
    /// Size of the root volume, such as 20G; GiB without a unit. By default that of the image.
    #[arg(long, value_name = "SIZE", value_parser = gibibytes)]
    pub volume_size: Option<ByteSize>,
    /// A volume besides the root volume, of KEY=VALUE pairs: size=SIZE (GiB without a unit), snapshot=SNAP-ID,
    /// device=/dev/sdf, keep (it stays when the instance goes), or none with the device of one that the image
    /// has; may be given several times.
    #[arg(long, value_name = "PARTS")]
    pub volume: Vec<VolumeArg>,
    /// File given to the instance as user data, at most 16384 bytes.
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,
    /// Public key that may log in, an OpenSSH .pub file.
    #[arg(long, value_name = "FILE.pub")]
    pub ssh_key: Option<PathBuf>,
    /// Name of the instance.
    #[arg(long)]
    pub name: Option<String>,
    /// Tag of the instance; may be given again.
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = tag)]
    pub tags: Vec<Tag>,
    /// Role whose credentials the instance gets (see `kiln role create`).
    #[arg(long, value_name = "NAME", value_parser = role_name)]
    pub role: Option<RoleName>,
    /// Keep the instance when it powers off: `kiln start` runs it again.
    #[arg(long)]
    pub keep: bool,
    /// Format of the image file where its name does not say it (.raw, .img, .qcow2).
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Boot this kernel instead of the image's.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk for --kernel.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line instead of the image's.
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// Append what the guest prints to this file.
    #[arg(long, value_name = "FILE")]
    pub console_log: Option<PathBuf>,
    /// Put the instance into this security group; may be given several times. Without it and --allow:
    /// the group `default`, and this host may connect to everything.
    #[arg(long, value_name = "NAME")]
    pub security_group: Vec<String>,
    /// Let in what this rule says, PROTOCOL:PORTS:PEER, such as tcp:22:10.50.2.133/32, tcp:80:0.0.0.0/0,
    /// icmp:web or tcp:22:host; may be given several times.
    #[arg(long, value_name = "RULE")]
    pub allow: Vec<RuleSpec>,
    /// Subnet to be in, by id or name (see `kiln subnet ls`).
    #[arg(long, value_name = "SUBNET")]
    pub subnet: Option<String>,
    /// Private address instead of the next free one.
    #[arg(long, value_name = "ADDRESS")]
    pub private_ip: Option<Ipv4Addr>,
    /// Give the instance an IPv6 address: this one, or one of its subnet (see `kiln subnet create --ipv6`).
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, require_equals = true)]
    pub ipv6: Option<Option<Ipv6Addr>>,
    /// Another network interface, of KEY=VALUE pairs: subnet=SUBNET (that of the first if not said),
    /// ip=ADDRESS, group=NAME (again for several), ipv6 or ipv6=ADDRESS; may be given several times.
    #[arg(long, value_name = "PARTS")]
    pub interface: Vec<InterfaceArg>,
    /// Port of this host that leads to a port of the instance, HOST_PORT:PORT or HOST_PORT:PORT/udp; may be
    /// given several times. Who may use it is up to --allow and the security groups.
    #[arg(long, value_name = "PORTS")]
    pub publish: Vec<Published>,
    /// Give the instance a public address, a new one at each start.
    #[arg(long)]
    pub public_ip: bool,
    /// No way to other machines; DHCP, metadata, DNS and time still answer.
    #[arg(long, conflicts_with_all = ["security_group", "allow", "subnet", "private_ip", "ipv6", "interface", "publish", "public_ip"])]
    pub no_network: bool,
    /// Take the memory from the host's pool of 2 MiB pages.
    #[arg(long)]
    pub hugepages: bool,
    /// Metadata options: http-tokens=required|optional, hop-limit=1..64, http-endpoint=enabled|disabled,
    /// http-protocol-ipv6=enabled|disabled, instance-metadata-tags=enabled|disabled; separated by commas.
    #[arg(long, value_name = "OPTIONS", default_value = "http-tokens=required,hop-limit=2")]
    pub metadata_options: String,
    /// Pass standard input to the console even where it is not a terminal.
    #[arg(long)]
    pub console_input: bool,
}

/// Commands on security groups. Changes are in force at once, for running instances too.
#[derive(Debug, Subcommand)]
pub enum SgCommand {
    /// Make a group that lets everything out and nothing in.
    Create(SgCreateArgs),
    /// Add rules to a group.
    Authorize(SgRulesArgs),
    /// Take rules out of a group.
    Revoke(SgRevokeArgs),
    /// Say what a rule is for, in other words than before.
    Describe {
        /// Name or id of the group.
        group: String,
        /// Id of the rule.
        rule: SecurityGroupRuleId,
        /// The words; none if not said.
        description: Option<String>,
        /// VPC of the group, by id or name.
        #[arg(long)]
        vpc: Option<String>,
    },
    /// List groups.
    Ls(JsonArg),
    /// Show the rules of a group with what they have let pass, and the instances in it.
    Show(SgShowArgs),
    /// Remove groups that nothing needs.
    Rm(SgRemoveArgs),
    /// Put an instance into these groups instead of those that it is in.
    Assign(SgAssignArgs),
    /// Say which rule lets a peer connect to an instance, or that none does.
    Explain(SgExplainArgs),
}

/// Options of `kiln sg create`.
#[derive(Debug, Args)]
pub struct SgCreateArgs {
    /// Name of the group, of its own in the VPC.
    pub name: String,
    /// What it is for.
    #[arg(long, default_value = "made with kiln sg create")]
    pub description: String,
    /// VPC by id or name; by default the one that instances are in.
    #[arg(long)]
    pub vpc: Option<String>,
}

/// Options of `kiln sg authorize`.
#[derive(Debug, Args)]
pub struct SgRulesArgs {
    /// Name or id.
    pub group: String,
    /// What is allowed, PROTOCOL:PORTS:PEER. The peer is a range, a group, or `host`.
    #[arg(long, value_name = "RULE", required = true)]
    pub allow: Vec<RuleSpec>,
    /// The rules are about what members of the group begin, not about what is begun with them.
    #[arg(long)]
    pub egress: bool,
    /// What the rules are for.
    #[arg(long)]
    pub description: Option<String>,
    /// VPC by id or name; by default the one that instances are in.
    #[arg(long)]
    pub vpc: Option<String>,
}

/// Options of `kiln sg revoke`.
#[derive(Debug, Args)]
pub struct SgRevokeArgs {
    /// Name or id.
    pub group: String,
    /// What is no longer allowed, as it was authorized.
    #[arg(long, value_name = "RULE")]
    pub allow: Vec<RuleSpec>,
    /// Ids of rules (see `kiln sg show`).
    #[arg(long, value_name = "SGR-ID", required_unless_present = "allow", conflicts_with = "allow")]
    pub rule: Vec<SecurityGroupRuleId>,
    /// The rules are about what members of the group begin.
    #[arg(long)]
    pub egress: bool,
    /// VPC by id or name; by default the one that instances are in.
    #[arg(long)]
    pub vpc: Option<String>,
}

/// Options of `kiln sg show`.
#[derive(Debug, Args)]
pub struct SgShowArgs {
    /// Name or id.
    pub group: String,
    /// VPC by id or name; by default the one that instances are in.
    #[arg(long)]
    pub vpc: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `kiln sg rm`.
#[derive(Debug, Args)]
pub struct SgRemoveArgs {
    /// Names or ids.
    #[arg(required = true)]
    pub groups: Vec<String>,
    /// VPC by id or name; by default the one that instances are in.
    #[arg(long)]
    pub vpc: Option<String>,
}

/// Options of `kiln sg assign`.
#[derive(Debug, Args)]
pub struct SgAssignArgs {
    /// Id or name of the instance.
    pub instance: String,
    /// Names or ids of the groups.
    #[arg(required = true)]
    pub groups: Vec<String>,
}

/// Options of `kiln sg explain`.
#[derive(Debug, Args)]
pub struct SgExplainArgs {
    /// Id or name of the instance.
    pub instance: String,
    /// Who connects: an address, or id or name of an instance.
    pub peer: String,
    /// To what: a TCP port such as 22, or tcp:22, udp:53, icmp (a ping) or proto:47.
    pub port: String,
    /// By their IPv6 addresses, where the peer is an instance.
    #[arg(long)]
    pub ipv6: bool,
    /// The other way round: the instance connects to the peer.
    #[arg(long)]
    pub egress: bool,
}

/// Commands on VPCs.
#[derive(Debug, Subcommand)]
pub enum VpcCommand {
    /// Make a VPC. Its range may be that of another one: they never meet.
    Create(VpcCreateArgs),
    /// Give a VPC that has none an IPv6 range.
    AddIpv6 {
        /// Id or name.
        vpc: String,
        /// Range, /48 to /60, which must be routed to this host; a unique local one if not said.
        range: Option<Ipv6Cidr>,
    },
    /// List VPCs.
    Ls(JsonArg),
    /// Remove an empty VPC.
    Rm {
        /// Id or name.
        vpc: String,
    },
}

/// Options of `kiln vpc create`.
#[derive(Debug, Args)]
pub struct VpcCreateArgs {
    /// Range, /16 to /28, such as 10.50.0.0/16.
    pub cidr: Ipv4Cidr,
    /// Give it an IPv6 range, /48 to /60: this one, which must be routed to this host, or a unique local one.
    #[arg(long, value_name = "RANGE", num_args = 0..=1, require_equals = true)]
    pub ipv6: Option<Option<Ipv6Cidr>>,
    /// What to call it.
    #[arg(long)]
    pub name: Option<String>,
}

/// Commands on subnets.
#[derive(Debug, Subcommand)]
pub enum SubnetCommand {
    /// Make a subnet.
    Create(SubnetCreateArgs),
    /// Give a subnet that has none an IPv6 range, for instances to come.
    AddIpv6 {
        /// Id or name.
        subnet: String,
        /// A /64 of its VPC's range; the next free one if not said.
        range: Option<Ipv6Cidr>,
    },
    /// List subnets.
    Ls(JsonArg),
    /// Remove a subnet that no instance is in.
    Rm {
        /// Id or name.
        subnet: String,
    },
}

/// Options of `kiln subnet create`.
#[derive(Debug, Args)]
pub struct SubnetCreateArgs {
    /// VPC by id or name.
    pub vpc: String,
    /// Range inside of the VPC's, such as 10.50.2.0/24.
    pub cidr: Ipv4Cidr,
    /// Give it an IPv6 range: this /64 of the VPC's range, or the next free one.
    #[arg(long, value_name = "RANGE", num_args = 0..=1, require_equals = true)]
    pub ipv6: Option<Option<Ipv6Cidr>>,
    /// What to call it.
    #[arg(long)]
    pub name: Option<String>,
}

/// Commands on Elastic addresses.
#[derive(Debug, Subcommand)]
pub enum AddressCommand {
    /// Get an Elastic address.
    Allocate,
    /// List Elastic addresses.
    Ls(JsonArg),
    /// Let one lead to an instance, in place of the instance's other public address.
    Associate {
        /// Address or id.
        address: String,
        /// Id or name of the instance.
        instance: String,
        /// Even if it leads to another instance now.
        #[arg(long)]
        reassociate: bool,
    },
    /// Let one lead to nobody.
    Disassociate {
        /// Address or id.
        address: String,
    },
    /// Give one back.
    Release {
        /// Address or id.
        address: String,
    },
}

/// Commands on network ACLs. They look at each packet that leaves or enters a subnet, answers as
/// well; the entry with the lowest number that matches decides. Changes are in force at once.
#[derive(Debug, Subcommand)]
pub enum AclCommand {
    /// Make an ACL that denies everything.
    Create {
        /// What to call it.
        name: String,
        /// VPC by id or name; by default the one that instances are in.
        #[arg(long)]
        vpc: Option<String>,
    },
    /// Add an entry.
    Add(AclAddArgs),
    /// Take an entry out.
    Remove {
        /// Name or id of the ACL.
        acl: String,
        /// Number of the entry.
        number: u16,
        /// The entry is about what leaves the subnet.
        #[arg(long)]
        egress: bool,
        /// VPC of the ACL, by id or name.
        #[arg(long)]
        vpc: Option<String>,
    },
    /// Give a subnet an ACL in place of the one it has.
    Associate {
        /// Name or id of the ACL.
        acl: String,
        /// Subnet by id or name.
        subnet: String,
        /// VPC of the ACL, by id or name.
        #[arg(long)]
        vpc: Option<String>,
    },
    /// List ACLs with their entries and subnets.
    Ls(JsonArg),
    /// Remove an ACL that no subnet has.
    Rm {
        /// Name or id of the ACL.
        acl: String,
        /// VPC of the ACL, by id or name.
        #[arg(long)]
        vpc: Option<String>,
    },
}

/// Options of `kiln acl add`.
#[derive(Debug, Args)]
pub struct AclAddArgs {
    /// Name or id of the ACL.
    pub acl: String,
    /// Its place: 1 to 32766.
    pub number: u16,
    /// What becomes of the packets.
    pub action: AclAction,
    /// Which packets, PROTOCOL:PORTS:RANGE; ports are those of the destination.
    pub rule: RuleSpec,
    /// The entry is about what leaves the subnet, not about what enters it.
    #[arg(long)]
    pub egress: bool,
    /// In place of the entry of this number.
    #[arg(long)]
    pub replace: bool,
    /// VPC of the ACL, by id or name.
    #[arg(long)]
    pub vpc: Option<String>,
}

/// What becomes of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AclAction {
    /// They pass.
    Allow,
    /// They are dropped.
    Deny,
}

/// Commands on prefix lists. Rules name them by id (`tcp:22:pl-…`).
#[derive(Debug, Subcommand)]
pub enum PrefixListCommand {
    /// Make a prefix list.
    Create {
        /// What to call it.
        name: String,
        /// Its ranges.
        ranges: Vec<Ipv4Cidr>,
        /// How many ranges it may have: rules that refer to it count as many.
        #[arg(long, default_value_t = 10)]
        max_entries: usize,
    },
    /// Replace the ranges of a prefix list, for the rules that refer to it too.
    Set {
        /// Name or id.
        list: String,
        /// Its new ranges.
        ranges: Vec<Ipv4Cidr>,
    },
    /// List prefix lists.
    Ls(JsonArg),
    /// Remove a prefix list that no rule refers to.
    Rm {
        /// Name or id.
        list: String,
    },
}

/// Commands on network interfaces.
#[derive(Debug, Subcommand)]
pub enum InterfaceCommand {
    /// List interfaces.
    Ls(JsonArg),
    /// Make an interface that is of no instance yet.
    Create {
        /// Where it is and what it is open to, such as subnet=blue-2,ip=10.50.2.9,group=web; any part may be
        /// left out.
        placement: Option<InterfaceArg>,
    },
    /// Give an interface to an instance that runs or is stopped.
    Attach {
        /// Id of the interface.
        interface: InterfaceId,
        /// Id or name of the instance.
        instance: String,
        /// Its place among those of the instance; by default the first that is free.
        #[arg(long, value_name = "NUMBER")]
        device_index: Option<u32>,
    },
    /// Take an interface from its instance. A running guest is asked to let go of it.
    Detach {
        /// Id of the interface.
        interface: InterfaceId,
        /// Cut it off at once from a guest that does not let go.
        #[arg(long)]
        force: bool,
    },
    /// Remove interfaces that no instance has.
    Rm {
        /// Their ids.
        #[arg(required = true)]
        interfaces: Vec<InterfaceId>,
    },
    /// Give an instance more private addresses: these, or one that is free.
    Assign {
        /// Id or name of the instance.
        instance: String,
        /// Addresses of its subnet.
        addresses: Vec<std::net::Ipv4Addr>,
    },
    /// Take secondary private addresses back.
    Unassign {
        /// Id or name of the instance.
        instance: String,
        /// Which.
        #[arg(required = true)]
        addresses: Vec<std::net::Ipv4Addr>,
    },
    /// Switch the source/destination check: off, the instance may forward what is not its own.
    SourceDestCheck {
        /// Id or name of the instance.
        instance: String,
        /// Whether there is the check.
        #[arg(action = clap::ArgAction::Set, value_parser = clap::builder::BoolishValueParser::new())]
        check: bool,
    },
}

/// Output for programs.
#[derive(Debug, Args)]
pub struct JsonArg {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Commands on images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Make an image of an instance, as it is at this moment.
    Create(CreateImageArgs),
    /// Copy a disk image into the state directory, where it never changes.
    Import(ImportArgs),
    /// List images.
    Ls(JsonArg),
    /// Show what is on an image: partitions, file systems, what it boots.
    Inspect(InspectArgs),
    /// Remove images that no instance needs.
    Rm(RemoveArgs),
}

/// Options of `kiln image create`.
#[derive(Debug, Args)]
pub struct CreateImageArgs {
    /// Id or name of the instance.
    pub instance: String,
    /// Name of the image.
    pub name: String,
    /// What it is for.
    #[arg(long)]
    pub description: Option<String>,
    /// Let a running guest power off and start again for it, so that its file systems are put away.
    #[arg(long)]
    pub reboot: bool,
}

/// Options of `kiln image import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Disk image or block device.
    pub file: PathBuf,
    /// Name of the image; by default that of the file without its end.
    #[arg(long)]
    pub name: Option<String>,
    /// Format where the name does not say it (.raw, .img, .qcow2).
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Move the name here if it stands for another image.
    #[arg(long)]
    pub replace: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `kiln image inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Name or id of an imported image, or path of a disk image.
    pub image: String,
    /// Format of a file whose name does not say it.
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `kiln image rm`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Names or ids.
    #[arg(required = true)]
    pub images: Vec<String>,
}

/// Image formats.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Format {
    /// Flat bytes.
    Raw,
    /// QEMU copy-on-write.
    Qcow2,
}

impl From<Format> for DiskFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => DiskFormat::Raw,
            Format::Qcow2 => DiskFormat::Qcow2,
        }
    }
}

fn mebibytes(text: &str) -> Result<ByteSize, kiln_model::ParseSizeError> {
    ByteSize::parse(text, MIB)
}

/// A size that is meant in GiB where it has no unit.
pub fn gibibytes(text: &str) -> Result<ByteSize, kiln_model::ParseSizeError> {
    ByteSize::parse(text, GIB)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_their_default_units() {
        let cli = Cli::try_parse_from(["kiln", "run", "x", "--memory", "512", "--volume-size", "8"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.memory.unwrap().as_bytes(), 512 * MIB);
        assert_eq!(run.volume_size.unwrap().as_bytes(), 8 * GIB);
    }

    #[test]
    fn every_list_can_be_had_as_json() {
        let json = |command: &clap::Command| command.get_arguments().any(|a| a.get_long() == Some("json"));
        let mut lists = 0;
        for command in Cli::command().get_subcommands() {
            let own = matches!(command.get_name(), "ps" | "types" | "doctor" | "events").then_some(command);
            let below = command.get_subcommands().filter(|c| matches!(c.get_name(), "ls" | "show"));
            for list in own.into_iter().chain(below) {
                lists += 1;
                assert!(json(list), "kiln {} {} has no --json", command.get_name(), list.get_name());
            }
        }
        assert!(lists > 12, "{lists}");
    }
}
