//! The command line as types. Doc comments are the help text.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use kiln_controlplane::credentials::RoleName;
use kiln_controlplane::network::{Published, RuleSpec};
use kiln_controlplane::state::dir;
use kiln_model::size::{GIB, MIB};
use kiln_model::{ByteSize, InstanceType, Tag};

use crate::image_args::{Format, ImageCommand};
use crate::instance_args::{
    EventsArgs, InstanceArg, LogsArgs, PsArgs, SshArgs, StartArgs, StopArgs, TerminateArgs, TypeArgs,
};
use crate::interface_arg::InterfaceArg;
use crate::metadata_args::{
    IdentityCommand, MetadataArgs, PasswordArgs, RoleCommand, TagArgs, role_name, tag,
};
use crate::network_args::{
    AclCommand, AddressCommand, InterfaceCommand, PrefixListCommand, SgCommand, SubnetCommand, VpcCommand,
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

/// Output for programs.
#[derive(Debug, Args)]
pub struct JsonArg {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
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
