//! Options of the commands on networks: security groups, VPCs, subnets, network ACLs, prefix lists, interfaces and
//! addresses.

use clap::{Args, Subcommand};
use kiln_controlplane::network::RuleSpec;
use kiln_model::{InterfaceId, Ipv4Cidr, Ipv6Cidr, SecurityGroupRuleId};

use crate::args::JsonArg;
use crate::interface_arg::InterfaceArg;

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
        /// Which private address of its primary interface it leads to; the primary one if not said.
        #[arg(long, value_name = "ADDRESS")]
        private: Option<std::net::Ipv4Addr>,
        /// Even if it leads elsewhere now.
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
        /// Even if they are secondary addresses of other instances now. Elastic addresses come along.
        #[arg(long, requires = "addresses")]
        reassign: bool,
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
