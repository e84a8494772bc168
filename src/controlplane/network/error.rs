//! Why a request about networks is refused, with the code that EC2 has for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kiln_model::security::InvalidTraffic;
use kiln_model::{
    InstanceId, InstanceState, InterfaceId, Ipv4Cidr, Ipv6Cidr, NetworkAclId, ParseCidrError, PrefixListId,
    SecurityGroupId, SecurityGroupRuleId, SubnetId, VpcId,
};

use super::{FabricError, MAX_INTERFACES, RoutingError};
use crate::state::StoreError;
use crate::vmm_process::VmmError;

/// A request about networks cannot be carried out. Nothing was changed, but for
/// [`NetworkError::Fabric`].
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// All addresses are taken.
    #[error("no address is free in subnet {subnet} ({cidr}); terminate an instance (see `kiln ps`)")]
    SubnetFull {
        /// Which subnet.
        subnet: SubnetId,
        /// Its range.
        cidr: Ipv4Cidr,
    },
    /// Another interface has it.
    #[error("address {0} is in use (see `kiln ps`)")]
    AddressInUse(IpAddr),
    /// Not in the subnet.
    #[error("address {address} is outside of subnet {subnet} ({cidr})")]
    AddressOutside {
        /// Asked for.
        address: Ipv4Addr,
        /// Which subnet.
        subnet: SubnetId,
        /// Its range.
        cidr: Ipv4Cidr,
    },
    /// Not in the subnet, or one of its first four.
    #[error(
        "{address} cannot be the IPv6 address of an interface in subnet {subnet} (expected one of {range}, but for its first four)"
    )]
    Ipv6Outside {
        /// Asked for.
        address: Ipv6Addr,
        /// Which subnet.
        subnet: SubnetId,
        /// Its range.
        range: Ipv6Cidr,
    },
    /// All interfaces of an instance are in one VPC.
    #[error("subnet {subnet} is not of {vpc}, where the instance's other interfaces are")]
    OtherVpc {
        /// Which subnet.
        subnet: SubnetId,
        /// Where the others are.
        vpc: VpcId,
    },
    /// It has no IPv6 range.
    #[error("{what} has no IPv6 range (see `kiln vpc add-ipv6` and `kiln subnet add-ipv6`)")]
    NoIpv6 {
        /// The VPC or subnet.
        what: String,
    },
    /// It has one already.
    #[error("{what} has an IPv6 range already")]
    HasIpv6 {
        /// The VPC or subnet.
        what: String,
    },
    /// Not a possible range.
    #[error(
        "{0} cannot be the IPv6 range of a VPC (expected /48 to /60 of 2000::/3 or fd00::/8, and not of fd00:ec2::/32)"
    )]
    VpcIpv6Range(Ipv6Cidr),
    /// Not a possible range, or outside of the VPC's.
    #[error("{range} cannot be the IPv6 range of a subnet of {vpc} (expected a /64 inside of {vpc_range})")]
    SubnetIpv6Range {
        /// Asked for.
        range: Ipv6Cidr,
        /// The VPC.
        vpc: VpcId,
        /// Its range.
        vpc_range: Ipv6Cidr,
    },
    /// Another subnet has it.
    #[error("{range} is the IPv6 range of {other}")]
    SubnetIpv6Conflict {
        /// Asked for.
        range: Ipv6Cidr,
        /// Which one has it.
        other: SubnetId,
    },
    /// Everything is taken.
    #[error("no IPv6 range or address is free")]
    NoIpv6Range,
    /// The first four and the last address of a subnet are never given.
    #[error("address {address} is reserved: the first four and the last of {cidr} are")]
    AddressReserved {
        /// Asked for.
        address: Ipv4Addr,
        /// Range of the subnet.
        cidr: Ipv4Cidr,
    },
    /// No such Elastic address.
    #[error("there is no Elastic address {0:?} (see `kiln address ls`)")]
    NoElastic(String),
    /// It leads to somebody.
    #[error("{what} leads to {by}; disassociate it first")]
    AddressAssociated {
        /// Which address.
        what: String,
        /// The instance.
        by: String,
    },
    /// No such VPC.
    #[error("there is no VPC {0:?} (see `kiln vpc ls`)")]
    NoVpc(String),
    /// No such subnet.
    #[error("there is no subnet {0:?} (see `kiln subnet ls`)")]
    NoSubnet(String),
    /// Not a possible range.
    #[error("{0} cannot be the range of a VPC (expected /16 to /28)")]
    VpcRange(Ipv4Cidr),
    /// Not a possible range, or outside of the VPC's.
    #[error("{cidr} cannot be the range of a subnet of {vpc} (expected /16 to /28 inside of {vpc_cidr})")]
    SubnetRange {
        /// Asked for.
        cidr: Ipv4Cidr,
        /// The VPC.
        vpc: VpcId,
        /// Its range.
        vpc_cidr: Ipv4Cidr,
    },
    /// Overlaps another subnet.
    #[error("{cidr} overlaps subnet {other} ({other_cidr})")]
    SubnetConflict {
        /// Asked for.
        cidr: Ipv4Cidr,
        /// Which one is there.
        other: SubnetId,
        /// Its range.
        other_cidr: Ipv4Cidr,
    },
    /// Something is in it.
    #[error("{what} is in use by {by}")]
    InUse {
        /// What should have gone.
        what: String,
        /// What needs it.
        by: String,
    },
    /// No such group.
    #[error("there is no security group {wanted:?} in {vpc} ({})", hint(suggestions))]
    NoGroup {
        /// As given.
        wanted: String,
        /// Where it was looked for.
        vpc: VpcId,
        /// Names that look similar.
        suggestions: Vec<String>,
    },
    /// No group has this id.
    #[error("there is no security group {0} (see `kiln sg ls`)")]
    GroupGone(SecurityGroupId),
    /// The name is taken.
    #[error("security group {name:?} exists already in {vpc}")]
    GroupExists {
        /// The name.
        name: String,
        /// Where.
        vpc: VpcId,
    },
    /// Neither names nor descriptions may be like that.
    #[error("{text:?} cannot be {what}: {why}")]
    BadText {
        /// As given.
        text: String,
        /// What it should have been.
        what: &'static str,
        /// What is wrong.
        why: &'static str,
    },
    /// Every VPC keeps its default group.
    #[error("the default security group {0} cannot be deleted")]
    DefaultGroup(SecurityGroupId),
    /// The group belongs to one instance.
    #[error("security group {0} was made for one instance and goes with it")]
    OwnedGroup(SecurityGroupId),
    /// The rule is there.
    #[error("the rule {rule} exists already in {group}")]
    RuleExists {
        /// The rule.
        rule: String,
        /// The group.
        group: String,
    },
    /// The rule is not there.
    #[error("there is no rule {rule} in {group} (see `kiln sg show {group}`)")]
    NoRule {
        /// The rule.
        rule: String,
        /// The group.
        group: String,
    },
    /// No such rule id.
    #[error("there is no security group rule {0}")]
    NoRuleId(SecurityGroupRuleId),
    /// No such prefix list.
    #[error("there is no prefix list {0}")]
    NoPrefixList(PrefixListId),
    /// No such network ACL.
    #[error("there is no network ACL {0} (see kiln acl ls)")]
    NoAcl(String),
    /// Its name is taken.
    #[error("there is a network ACL {name} in {vpc} already")]
    AclExists {
        /// The name.
        name: String,
        /// The VPC.
        vpc: VpcId,
    },
    /// Goes with its VPC alone.
    #[error("{0} is the default network ACL of its VPC and cannot be removed")]
    DefaultAcl(NetworkAclId),
    /// Not a number of an entry.
    #[error("{0} is not the number of an entry (expected 1 to 32766)")]
    AclNumber(u16),
    /// The number is taken.
    #[error("{acl} has an entry {number} in this direction already (replace it with --replace)")]
    AclEntryExists {
        /// Which ACL.
        acl: NetworkAclId,
        /// The number.
        number: u16,
    },
    /// No such entry.
    #[error("{acl} has no entry {number} in this direction")]
    NoAclEntry {
        /// Which ACL.
        acl: NetworkAclId,
        /// The number.
        number: u16,
    },
    /// Not one of its secondary addresses.
    #[error("{address} is not a secondary address of {interface}")]
    NotAssigned {
        /// The address.
        address: Ipv4Addr,
        /// The interface.
        interface: InterfaceId,
    },
    /// No such interface.
    #[error("there is no network interface {0}")]
    NoInterface(InterfaceId),
    /// Not a rule.
    #[error("{text:?} is not a rule: {why} (expected PROTOCOL:PORTS:PEER such as tcp:22:10.0.0.0/8)")]
    BadRule {
        /// As given.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// Not a traffic.
    #[error(transparent)]
    Traffic(#[from] InvalidTraffic),
    /// Not a range.
    #[error(transparent)]
    Cidr(#[from] ParseCidrError),
    /// As many rules as a group may have.
    #[error("security group {group} would have more than {limit} {which} rules")]
    TooManyRules {
        /// The group.
        group: SecurityGroupId,
        /// Which of them.
        which: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// As many groups as an interface may have.
    #[error("an interface is in 1 to {limit} security groups, not {count}")]
    TooManyGroups {
        /// Asked for.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// As many of something as there may be.
    #[error("there are {limit} {what} already, as many as there may be")]
    Limit {
        /// What.
        what: &'static str,
        /// How many.
        limit: usize,
    },
    /// Somebody has changed it meanwhile.
    #[error("{list} has the version {version}")]
    PrefixListVersion {
        /// The list.
        list: PrefixListId,
        /// Its version.
        version: i64,
    },
    /// Not one of its ranges.
    #[error("{list} has no range {range}")]
    NoPrefixListEntry {
        /// The list.
        list: PrefixListId,
        /// The range.
        range: Ipv4Cidr,
    },
    /// About ways out of a VPC.
    #[error(transparent)]
    Routing(#[from] RoutingError),
    /// An interface is of an instance.
    #[error("{interface} is attached to {instance}")]
    InterfaceAttached {
        /// The interface.
        interface: InterfaceId,
        /// The instance.
        instance: InstanceId,
    },
    /// An interface is of no instance, or of another.
    #[error("{0} is not attached to the instance")]
    InterfaceNotAttached(InterfaceId),
    /// It is neither `stopped` nor `running`.
    #[error("{action} cannot be done now: the instance {instance} is {state}")]
    State {
        /// What was asked.
        action: &'static str,
        /// Of which instance.
        instance: InstanceId,
        /// Its state.
        state: InstanceState,
    },
    /// No such instance.
    #[error("the instance ID '{0}' does not exist")]
    NoInstance(InstanceId),
    /// Every instance keeps its first interface.
    #[error("{0} is the primary network interface of its instance and cannot be detached")]
    PrimaryInterface(InterfaceId),
    /// Not a number of an interface besides the first.
    #[error("{0} is not a device index of another network interface (expected 1 to {last})", last = MAX_INTERFACES - 1)]
    Device(u32),
    /// Another interface has the number.
    #[error("instance '{instance}' already has an interface attached at device index '{device}'")]
    DeviceTaken {
        /// The instance.
        instance: InstanceId,
        /// Asked for.
        device: u32,
    },
    /// As many as a machine gets while it runs.
    #[error(
        "the machine of {0} has no room for another network interface while it runs; stop it, or detach one"
    )]
    NoSpare(InstanceId),
    /// The machine of a running instance.
    #[error("{action} failed")]
    Machine {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: Box<VmmError>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The rules are noted but not in force.
    #[error(transparent)]
    Fabric(#[from] FabricError),
}

fn hint(suggestions: &[String]) -> String {
    if suggestions.is_empty() {
        "see `kiln sg ls`".to_owned()
    } else {
        format!("did you mean {}? See `kiln sg ls`", suggestions.join(", "))
    }
}

impl NetworkError {
    /// What EC2 calls it.
    pub fn code(&self) -> &'static str {
        use NetworkError as E;
        match self {
            E::SubnetFull { .. } => "InsufficientFreeAddressesInSubnet",
            E::AddressInUse(_) => "InvalidIPAddress.InUse",
            E::AddressOutside { .. } | E::AddressReserved { .. } | E::BadText { .. } => {
                "InvalidParameterValue"
            }
            E::BadRule { .. } | E::Traffic(_) | E::Cidr(_) => "InvalidParameterValue",
            E::NoElastic(_) => "InvalidAllocationID.NotFound",
            E::AddressAssociated { .. } => "InvalidIPAddress.InUse",
            E::NoVpc(_) => "InvalidVpcID.NotFound",
            E::NoSubnet(_) => "InvalidSubnetID.NotFound",
            E::VpcRange(_) | E::VpcIpv6Range(_) => "InvalidVpc.Range",
            E::SubnetRange { .. } | E::SubnetIpv6Range { .. } => "InvalidSubnet.Range",
            E::SubnetConflict { .. } | E::SubnetIpv6Conflict { .. } => "InvalidSubnet.Conflict",
            E::NoIpv6 { .. } | E::HasIpv6 { .. } | E::Ipv6Outside { .. } => "InvalidParameterValue",
            E::OtherVpc { .. } => "InvalidParameterCombination",
            E::NoIpv6Range => "InsufficientFreeAddressesInSubnet",
            E::InUse { .. } => "DependencyViolation",
            E::NoGroup { .. } | E::GroupGone(_) => "InvalidGroup.NotFound",
            E::GroupExists { .. } => "InvalidGroup.Duplicate",
            E::DefaultGroup(_) => "CannotDelete",
            E::OwnedGroup(_) => "InvalidGroup.InUse",
            E::RuleExists { .. } => "InvalidPermission.Duplicate",
            E::NoRule { .. } => "InvalidPermission.NotFound",
            E::NoRuleId(_) => "InvalidSecurityGroupRuleId.NotFound",
            E::NoPrefixList(_) => "InvalidPrefixListID.NotFound",
            E::NoAcl(_) => "InvalidNetworkAclID.NotFound",
            E::AclExists { .. } | E::AclNumber(_) | E::NotAssigned { .. } => "InvalidParameterValue",
            E::DefaultAcl(_) => "InvalidParameterValue",
            E::AclEntryExists { .. } => "NetworkAclEntryAlreadyExists",
            E::NoAclEntry { .. } => "InvalidNetworkAclEntry.NotFound",
            E::Limit { what: "network ACLs", .. } => "NetworkAclLimitExceeded",
            E::Limit { what: "entries of one direction of a network ACL", .. } => {
                "NetworkAclEntryLimitExceeded"
            }
            E::Limit { what: "private addresses of a network interface", .. } => {
                "PrivateIpAddressLimitExceeded"
            }
            E::PrefixListVersion { .. } => "PrefixListVersionMismatch",
            E::NoPrefixListEntry { .. } => "InvalidParameterValue",
            E::Limit { what: "prefix lists", .. } => "PrefixListLimitExceeded",
            E::Routing(error) => error.code(),
            E::InterfaceAttached { .. } => "InvalidNetworkInterface.InUse",
            E::InterfaceNotAttached(_) => "InvalidAttachmentID.NotFound",
            E::State { .. } => "IncorrectState",
            E::NoInstance(_) => "InvalidInstanceID.NotFound",
            E::PrimaryInterface(_) => "OperationNotPermitted",
            E::Device(_) | E::DeviceTaken { .. } => "InvalidParameterValue",
            E::NoSpare(_) => "AttachmentLimitExceeded",
            E::Limit { what: "route tables", .. } => "RouteTableLimitExceeded",
            E::Limit { what: "routes of a table", .. } => "RouteLimitExceeded",
            E::Limit { what: "internet gateways", .. } => "InternetGatewayLimitExceeded",
            E::Limit { what: "NAT gateways", .. } => "NatGatewayLimitExceeded",
            E::Limit { what: "network interfaces", .. } => "NetworkInterfaceLimitExceeded",
            E::Limit { what: "prefix list entries", .. } => "PrefixListMaxEntriesExceeded",
            E::NoInterface(_) => "InvalidNetworkInterfaceID.NotFound",
            E::TooManyRules { .. } => "RulesPerSecurityGroupLimitExceeded",
            E::TooManyGroups { .. } => "SecurityGroupsPerInterfaceLimitExceeded",
            E::Limit { what: "security groups", .. } => "SecurityGroupLimitExceeded",
            E::Limit { what: "Elastic addresses", .. } => "AddressLimitExceeded",
            E::Limit { what: "interfaces of an instance", .. } => "AttachmentLimitExceeded",
            E::Limit { what: "VPCs", .. } => "VpcLimitExceeded",
            E::Limit { what: "subnets", .. } => "SubnetLimitExceeded",
            E::Limit { .. } => "ResourceLimitExceeded",
            E::Store(_) | E::Fabric(_) | E::Machine { .. } => "InternalError",
        }
    }
}
