//! What can be asked of networks: the way in for the command line and for an API.
//!
//! ```text
//!  request ─▶ one transaction on the rows ─▶ apply: the policy, read anew under the host's lock ─▶ kernel
//! ```
//! A change is in force when its method returns, for running instances of all processes. Should the
//! last step fail, the rows stay, and the next `kiln` of whatever kind applies them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use kiln_hostnet::{Counters, Published};
use kiln_model::security::{AclDecision, Decision, Direction, Member, Message, NetworkPolicy, Packet, Rule};
use kiln_model::{
    AttachmentState, InstanceId, InterfaceId, Ipv4Cidr, Ipv6Cidr, SecurityGroupId, SecurityGroupRuleId,
    SubnetId, VpcId,
};

use super::addresses::{DEFAULT_NAME, DefaultSubnet, ensure_default_subnet, release, reserve};
use super::groups::{self, Membership, SecurityGroup, touch, touch_last};
use super::{Interface, Ipv6Wish, NetworkError, NetworkFabric, PrefixList, RuleSpec, Secondary, Subnet, Vpc};
use super::{acls, elastic, gateways, interfaces, route_tables};
use crate::state::{Store, StoreError, Transaction, transact};
use crate::tags;

/// VPCs in one state directory.
pub const MAX_VPCS: usize = 100;
/// Subnets in one VPC.
pub const MAX_SUBNETS: usize = 200;
/// Network interfaces of one instance: as many as EC2 gives to large ones.
pub const MAX_INTERFACES: usize = 8;
/// Conversations that an interface may have begun, and as many that others may have begun with it.
/// An eighth of what the host's kernel tracks by default.
const CONNECTIONS: u32 = 32_768;
/// Sizes of VPCs and subnets.
const PREFIXES: std::ops::RangeInclusive<u8> = 16..=28;

/// Networks of a state directory. Methods block.
#[derive(Clone, Copy)]
pub struct Networks<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) fabric: &'a dyn NetworkFabric,
    /// Range of the default VPC, should it have to be made.
    pub(crate) range: Ipv4Cidr,
}

/// What else the transaction shall write that makes a resource of this id, such as its tags. It may run several
/// times; its error undoes all.
pub type Also<'a> = dyn FnMut(&mut Transaction<'_>, &str) -> Result<(), StoreError> + 'a;

/// Where a new interface shall be and what it is open to.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    /// Subnet by id or name; the default one if not said.
    pub subnet: Option<String>,
    /// Address; any if not said.
    pub address: Option<Ipv4Addr>,
    /// Further addresses of the subnet.
    pub secondary: Secondary,
    /// Whether it has an IPv6 address too.
    pub ipv6: Ipv6Wish,
    /// Groups by name or id.
    pub groups: Vec<String>,
    /// Ingress rules for this interface alone.
    pub allow: Vec<RuleSpec>,
    /// Whether it gets a public address at each start.
    pub public_ip: bool,
    /// Ports of the host that lead to it; then it gets a public address as well.
    pub publish: Vec<Published>,
    /// An interface that is there already, and of no instance; then nothing of the above but the last two.
    pub interface: Option<InterfaceId>,
    /// Whether it stays when the instance goes.
    pub stays: bool,
    /// What it is for.
    pub description: String,
}

/// Why a packet would pass or not.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The packet.
    pub packet: Packet,
    /// What the sender's end says.
    pub egress: Reason,
    /// What the receiver's end says.
    pub ingress: Reason,
    /// What the network ACLs of the sender's and the receiver's subnet say.
    pub acls: [AclDecision; 2],
}

impl Explanation {
    /// Whether the packet arrives.
    pub fn passes(&self) -> bool {
        self.egress.decision.passes()
            && self.ingress.decision.passes()
            && self.acls.iter().all(|acl| acl.passes())
    }
}

/// What one end says, with names.
#[derive(Debug, Clone)]
pub struct Reason {
    /// The decision.
    pub decision: Decision,
    /// The group and rule that decide, with what the rule has let pass so far, if it is in force.
    pub rule: Option<(SecurityGroup, Rule, Option<kiln_hostnet::Count>)>,
}

impl<'a> Networks<'a> {
    /// The default subnet, made if need be.
    pub fn default_subnet(&self) -> Result<Subnet, NetworkError> {
        Ok(ensure_default_subnet(self.store, self.range)?)
    }

    /// All VPCs.
    pub fn vpcs(&self) -> Result<Vec<Vpc>, NetworkError> {
        Ok(transact(self.store, |tx| tx.list::<Vpc>())?)
    }

    /// All subnets.
    pub fn subnets(&self) -> Result<Vec<Subnet>, NetworkError> {
        Ok(transact(self.store, |tx| tx.list::<Subnet>())?)
    }

    /// The VPC that an id or a name stands for; the default one if nothing is said.
    pub fn find_vpc(&self, wanted: Option<&str>) -> Result<Vpc, NetworkError> {
        let Some(wanted) = wanted else {
            let subnet = self.default_subnet()?;
            let vpc = transact(self.store, |tx| tx.get::<Vpc>(&subnet.vpc))?;
            return vpc.ok_or_else(|| NetworkError::NoVpc(subnet.vpc.to_string()));
        };
        let id = wanted.parse().ok();
        let mut found =
            self.vpcs()?.into_iter().filter(|v| Some(v.id) == id || v.name.as_deref() == Some(wanted));
        found.next().ok_or_else(|| NetworkError::NoVpc(wanted.to_owned()))
    }

    /// Makes a VPC with its default group and a gateway for everybody. Ranges may overlap those of others:
    /// each VPC is a world of its own.
    /// `ipv6`: with an IPv6 range, this one or one that Kiln chooses.
    pub fn create_vpc(
        &self,
        cidr: Ipv4Cidr,
        ipv6: Option<Option<Ipv6Cidr>>,
        name: Option<&str>,
    ) -> Result<Vpc, NetworkError> {
        self.make_vpc(cidr, ipv6, name, true)
    }

    /// As [`Networks::create_vpc`], without a gateway: nothing goes out until a route says so.
    pub fn create_closed_vpc(
        &self,
        cidr: Ipv4Cidr,
        ipv6: Option<Option<Ipv6Cidr>>,
        name: Option<&str>,
    ) -> Result<Vpc, NetworkError> {
        self.make_vpc(cidr, ipv6, name, false)
    }

    fn make_vpc(
        &self,
        cidr: Ipv4Cidr,
        ipv6: Option<Option<Ipv6Cidr>>,
        name: Option<&str>,
        open: bool,
    ) -> Result<Vpc, NetworkError> {
        if !PREFIXES.contains(&cidr.prefix_len()) {
            return Err(NetworkError::VpcRange(cidr));
        }
        let (id, name) = (VpcId::from_bits(rand::random()), name.map(str::to_owned));
        let ipv6 = ipv6.map(super::ipv6::vpc_range).transpose()?;
        let vpc = Vpc { id, cidr, ipv6, name };
        transact(self.store, |tx| {
            if tx.list::<Vpc>()?.len() >= MAX_VPCS {
                return Err(NetworkError::Limit { what: "VPCs", limit: MAX_VPCS });
            }
            tx.put(&vpc)?;
            groups::ensure_default_group(tx, vpc.id)?;
            route_tables::make_main(tx, vpc.id, open)?;
            Ok(vpc.clone())
        })
    }

    /// Removes a VPC that has no subnets, and no groups but its default one.
    pub fn delete_vpc(&self, id: VpcId) -> Result<(), NetworkError> {
        transact(self.store, |tx| {
            tx.get::<Vpc>(&id)?.ok_or_else(|| NetworkError::NoVpc(id.to_string()))?;
            touch_last(tx, &id)?;
            let in_use = |by: String| NetworkError::InUse { what: id.to_string(), by };
            if let Some(subnet) = tx.list::<Subnet>()?.iter().find(|subnet| subnet.vpc == id) {
                return Err(in_use(subnet.id.to_string()));
            }
            let groups: Vec<_> = tx.list::<SecurityGroup>()?.into_iter().filter(|g| g.vpc == id).collect();
            if let Some(group) = groups.iter().find(|group| group.name != groups::DEFAULT_GROUP) {
                return Err(in_use(format!("security group {group}")));
            }
            route_tables::remove_of_vpc(tx, id)?;
            acls::remove_of_vpc(tx, id)?;
            for group in &groups {
                groups::remove(tx, group)?;
            }
            tags::forget_in(tx, &id.to_string());
            tx.remove::<Vpc>(&id);
            Ok(())
        })
    }

    /// Makes a subnet. `ipv6`: with an IPv6 range, this one or the next free one of its VPC.
    pub fn create_subnet(
        &self,
        vpc: VpcId,
        cidr: Ipv4Cidr,
        ipv6: Option<Option<Ipv6Cidr>>,
        name: Option<&str>,
    ) -> Result<Subnet, NetworkError> {
        let id = SubnetId::from_bits(rand::random());
        transact(self.store, |tx| {
            let row = tx.get::<Vpc>(&vpc)?.ok_or_else(|| NetworkError::NoVpc(vpc.to_string()))?;
            touch(tx, &vpc)?;
            let inside = row.cidr.contains(cidr.network()) && cidr.prefix_len() >= row.cidr.prefix_len();
            if !inside || !PREFIXES.contains(&cidr.prefix_len()) {
                return Err(NetworkError::SubnetRange { cidr, vpc, vpc_cidr: row.cidr });
            }
            let others: Vec<_> = tx.list::<Subnet>()?.into_iter().filter(|s| s.vpc == vpc).collect();
            if let Some(other) = others.iter().find(|other| other.cidr.overlaps(cidr)) {
                return Err(NetworkError::SubnetConflict { cidr, other: other.id, other_cidr: other.cidr });
            }
            if others.len() >= MAX_SUBNETS {
                return Err(NetworkError::Limit { what: "subnets", limit: MAX_SUBNETS });
            }
            let ipv6 = ipv6.map(|wish| super::ipv6::subnet_range(tx, &row, wish)).transpose()?;
            let vpc_ipv6 = ipv6.and(row.ipv6);
            let name = name.map(str::to_owned);
            let map_public = None;
            let subnet = Subnet { id, vpc, vpc_cidr: row.cidr, cidr, vpc_ipv6, ipv6, name, map_public };
            tx.put(&subnet)?;
            Ok(subnet)
        })
    }

    /// Whether instances in a subnet get a public address when nothing is said.
    pub fn set_map_public(&self, subnet: SubnetId, maps: bool) -> Result<(), NetworkError> {
        transact(self.store, |tx| {
            let mut subnet = find_subnet(tx, &subnet.to_string())?;
            subnet.map_public = Some(maps);
            Ok(tx.put(&subnet)?)
        })
    }

    /// Removes a subnet that no interface is in.
    pub fn delete_subnet(&self, wanted: &str) -> Result<(), NetworkError> {
        transact(self.store, |tx| {
            let subnet = find_subnet(tx, wanted)?;
            touch_last(tx, &subnet.id)?;
            // Others may look for overlaps at this moment.
            touch(tx, &subnet.vpc)?;
            if let Some(user) = tx.list::<Membership>()?.iter().find(|m| m.interface.subnet.id == subnet.id) {
                let (what, by) = (subnet.id.to_string(), user.held_by());
                return Err(NetworkError::InUse { what, by });
            }
            if tx.get::<DefaultSubnet>(&DEFAULT_NAME.to_owned())?.is_some_and(|d| d.subnet == subnet.id) {
                tx.remove::<DefaultSubnet>(&DEFAULT_NAME.to_owned());
            }
            if let Some(nat) = gateways::nat_in(tx, subnet.id)? {
                let (what, by) = (subnet.id.to_string(), nat.id.to_string());
                return Err(NetworkError::InUse { what, by });
            }
            acls::remove_of_subnet(tx, subnet.id);
            route_tables::remove_of_subnet(tx, subnet.id);
            tx.remove::<Subnet>(&subnet.id);
            Ok(())
        })
    }

    /// All groups, by VPC and name.
    pub fn groups(&self) -> Result<Vec<SecurityGroup>, NetworkError> {
        let mut all = transact(self.store, |tx| tx.list::<SecurityGroup>())?;
        all.sort_by(|a, b| (a.vpc, &a.name).cmp(&(b.vpc, &b.name)));
        Ok(all)
    }

    /// All interfaces with their groups.
    pub fn memberships(&self) -> Result<Vec<Membership>, NetworkError> {
        Ok(transact(self.store, |tx| tx.list::<Membership>())?)
    }

    /// The group of a VPC that a name or an id stands for. An id is found in any VPC.
    pub fn find_group(&self, vpc: VpcId, wanted: &str) -> Result<SecurityGroup, NetworkError> {
        transact(self.store, |tx| match wanted.parse::<SecurityGroupId>() {
            Ok(id) => match tx.get::<SecurityGroup>(&id)? {
                Some(group) => Ok(group),
                None => groups::find(tx, vpc, wanted),
            },
            Err(_) => groups::find(tx, vpc, wanted),
        })
    }

    /// Makes a group that lets everything out and nothing in.
    pub fn create_group(
        &self,
        vpc: VpcId,
        name: &str,
        description: &str,
    ) -> Result<SecurityGroup, NetworkError> {
        transact(self.store, |tx| {
            tx.get::<Vpc>(&vpc)?.ok_or_else(|| NetworkError::NoVpc(vpc.to_string()))?;
            groups::create(tx, vpc, name, description, None)
        })
    }

    /// Deletes a group that no interface is in and no rule of another group refers to.
    pub fn delete_group(&self, id: SecurityGroupId) -> Result<(), NetworkError> {
        transact(self.store, |tx| {
            let group = get_group(tx, id)?;
            if group.owner.is_some() {
                return Err(NetworkError::OwnedGroup(id));
            }
            groups::delete(tx, &group)
        })
    }

    /// Adds rules: all of them, or none if one cannot be.
    pub fn authorize(
        &self,
        id: SecurityGroupId,
        direction: Direction,
        rules: &[RuleSpec],
    ) -> Result<Vec<Rule>, NetworkError> {
        self.change_group(id, |tx, group| groups::authorize(tx, group, direction, rules))
    }

    /// Removes rules by what they mean: all of them, or none if one is not there.
    pub fn revoke(
        &self,
        id: SecurityGroupId,
        direction: Direction,
        rules: &[RuleSpec],
    ) -> Result<Vec<Rule>, NetworkError> {
        self.change_group(id, |tx, group| groups::revoke(tx, group, direction, rules))
    }

    /// Removes rules by their ids: all of them, or none if one is not there.
    pub fn revoke_ids(
        &self,
        id: SecurityGroupId,
        rules: &[SecurityGroupRuleId],
    ) -> Result<Vec<Rule>, NetworkError> {
        self.change_group(id, |tx, group| groups::revoke_ids(tx, group, rules))
    }

    /// Gives rules another meaning; they keep their ids and directions. All or none.
    pub fn modify_rules(
        &self,
        id: SecurityGroupId,
        changes: &[(SecurityGroupRuleId, RuleSpec)],
    ) -> Result<(), NetworkError> {
        self.change_group(id, |tx, group| groups::modify(tx, group, changes))
    }

    /// Gives rules other descriptions, or none, where they are.
    pub fn describe_rules(
        &self,
        id: SecurityGroupId,
        descriptions: &[(SecurityGroupRuleId, Option<String>)],
    ) -> Result<(), NetworkError> {
        self.change_group(id, |tx, group| groups::describe(tx, group, descriptions))
    }

    /// The same for rules that are named by what they mean: theirs are the descriptions from then on.
    pub fn describe_same_rules(
        &self,
        id: SecurityGroupId,
        direction: Direction,
        rules: &[RuleSpec],
    ) -> Result<(), NetworkError> {
        self.change_group(id, |tx, group| groups::describe_same(tx, group, direction, rules))
    }

    fn change_group<T>(
        &self,
        id: SecurityGroupId,
        mut change: impl FnMut(&mut Transaction<'_>, &mut SecurityGroup) -> Result<T, NetworkError>,
    ) -> Result<T, NetworkError> {
        let (vpc, result) = transact(self.store, |tx| {
            let mut group = get_group(tx, id)?;
            Ok::<_, NetworkError>((group.vpc, change(tx, &mut group)?))
        })?;
        self.apply(vpc)?;
        Ok(result)
    }

    /// Puts an interface into other groups. Its own group, if it has one, stays.
    pub fn set_groups(&self, interface: InterfaceId, wanted: &[String]) -> Result<(), NetworkError> {
        let vpc = transact(self.store, |tx| {
            let mut row = tx.get::<Membership>(&interface)?.ok_or(NetworkError::NoInterface(interface))?;
            let vpc = row.interface.subnet.vpc;
            let mut groups = groups::find_for_interface(tx, vpc, wanted)?;
            for id in &row.groups {
                if tx
                    .get::<SecurityGroup>(id)?
                    .is_some_and(|group| group.owner.is_some() && group.owner == row.instance)
                {
                    groups.insert(*id);
                }
            }
            groups::check_count(groups.len())?;
            row.groups = groups;
            tx.put(&row)?;
            Ok::<_, NetworkError>(vpc)
        })?;
        self.apply(vpc)
    }

    /// Reserves the interfaces of a new instance, the primary one and others, as part of `tx`.
    pub(crate) fn place_all(
        tx: &mut Transaction<'_>,
        default: &Subnet,
        instance: InstanceId,
        primary: &Placement,
        more: &[Placement],
    ) -> Result<(Interface, Vec<Interface>), NetworkError> {
        if more.len() >= MAX_INTERFACES {
            return Err(NetworkError::Limit { what: "interfaces of an instance", limit: MAX_INTERFACES });
        }
        // Who says nothing of groups means a machine of his own that he can reach.
        let silent = |placement: &Placement| {
            placement.groups.is_empty() && placement.allow.is_empty() && placement.interface.is_none()
        };
        let host_access = silent(primary) && more.iter().all(silent);
        let first = Self::place(tx, default, (instance, 0), primary, host_access)?;
        let mut others = Vec::new();
        for (device, placement) in (1..).zip(more) {
            let other = Self::place(tx, &first.subnet, (instance, device), placement, host_access)?;
            if other.subnet.vpc != first.subnet.vpc {
                let (subnet, vpc) = (other.subnet.id, first.subnet.vpc);
                return Err(NetworkError::OtherVpc { subnet, vpc });
            }
            others.push(other);
        }
        Ok((first, others))
    }

    /// Reserves an interface of a new instance, by its device number, as part of `tx`. `host_access`: the host
    /// may connect to it whatever its groups say.
    pub(crate) fn place(
        tx: &mut Transaction<'_>,
        default: &Subnet,
        (instance, device): (InstanceId, u32),
        placement: &Placement,
        host_access: bool,
    ) -> Result<Interface, NetworkError> {
        if let Some(id) = placement.interface {
            return interfaces::take(tx, id, (instance, device), placement.stays);
        }
        let subnet = match &placement.subnet {
            Some(wanted) => find_subnet(tx, wanted)?,
            None => default.clone(),
        };
        touch(tx, &subnet.id)?;
        let vpc = subnet.vpc;
        let mut groups = match placement.groups.as_slice() {
            [] if placement.allow.is_empty() => [groups::ensure_default_group(tx, vpc)?].into(),
            [] => std::collections::BTreeSet::new(),
            wanted => groups::find_for_interface(tx, vpc, wanted)?,
        };
        if !placement.allow.is_empty() {
            let name = instance.to_string();
            let description = "rules given with kiln run --allow";
            let mut own = groups::create(tx, vpc, &name, description, Some(instance))?;
            groups::authorize(tx, &mut own, Direction::Ingress, &placement.allow)?;
            groups.insert(own.id);
        }
        groups::check_count(groups.len())?;
        let interface = reserve(tx, &subnet, placement.address, placement.ipv6)?;
        let secondary = placement.secondary.take(tx, &interface, 1)?;
        tx.put(&Membership {
            interface: interface.clone(),
            instance: Some(instance),
            device,
            groups,
            host_access,
            secondary,
            forwards: false,
            stays: placement.stays,
            description: placement.description.clone(),
            attached: None,
            state: AttachmentState::Attached,
        })?;
        Ok(interface)
    }

    /// Gives an interface's address back, as part of `tx`; one that stays has no instance any more.
    pub(crate) fn give_back(tx: &mut Transaction<'_>, interface: &Interface) -> Result<(), StoreError> {
        if let Some(row) = tx.get::<Membership>(&interface.id)? {
            // One that was to be taken from the instance is not of it any more.
            if row.stays || row.state == AttachmentState::Detaching {
                return interfaces::let_go(tx, row);
            }
            row.secondary.iter().for_each(|address| release(tx, interface.subnet.id, *address));
        }
        release(tx, interface.subnet.id, interface.address);
        super::ipv6::release(tx, interface.subnet.id, interface.ipv6);
        elastic::forget(tx, interface.id)?;
        groups::forget_interface(tx, interface)
    }

    /// Makes the kernel's rules those of the rows.
    pub fn apply(&self, vpc: VpcId) -> Result<(), NetworkError> {
        Ok(self.fabric.apply(vpc, &policy_source(self.store, vpc))?)
    }

    /// As [`Networks::apply`], for all VPCs; what a killed process left half-done is finished.
    /// Errors are logged.
    pub fn apply_all(&self) {
        for vpc in self.vpcs().unwrap_or_default() {
            if let Err(error) = self.apply(vpc.id) {
                tracing::warn!(vpc = %vpc.id, %error, "the rules of the network could not be applied");
            }
        }
    }

    /// What the filter of a VPC has counted.
    pub fn counters(&self, vpc: VpcId) -> Result<Counters, NetworkError> {
        Ok(self.fabric.counters(vpc)?)
    }

    /// Who decides about a packet, by the reference evaluator.
    pub fn explain(
        &self,
        vpc: VpcId,
        source: IpAddr,
        destination: IpAddr,
        message: Message,
    ) -> Result<Explanation, NetworkError> {
        let packet = Packet { source, destination, message };
        let verdict = policy(self.store, vpc)?.verdict(packet);
        let counters = self.counters(vpc)?;
        let groups: BTreeMap<_, _> = self.groups()?.into_iter().map(|group| (group.id, group)).collect();
        let reason = |decision| {
            let rule = match decision {
                Decision::Rule(group, id) => groups.get(&group).and_then(|group| {
                    let rule = group.rules.iter().find(|rule| rule.id == id)?;
                    Some((group.clone(), rule.clone(), counters.rule(rule)))
                }),
                _ => None,
            };
            Reason { decision, rule }
        };
        let (egress, ingress) = (reason(verdict.egress), reason(verdict.ingress));
        Ok(Explanation { packet, egress, ingress, acls: verdict.acls })
    }
}

fn get_group(tx: &mut Transaction<'_>, id: SecurityGroupId) -> Result<SecurityGroup, NetworkError> {
    tx.get::<SecurityGroup>(&id)?.ok_or(NetworkError::GroupGone(id))
}

pub(super) fn find_subnet(tx: &mut Transaction<'_>, wanted: &str) -> Result<Subnet, NetworkError> {
    let id = match wanted.parse::<SubnetId>() {
        Ok(id) => Some(id),
        Err(_) => {
            let all = tx.list::<Subnet>()?;
            all.into_iter().find(|subnet| subnet.name.as_deref() == Some(wanted)).map(|subnet| subnet.id)
        }
    };
    let subnet = match id {
        Some(id) => tx.get::<Subnet>(&id)?,
        None => None,
    };
    subnet.ok_or_else(|| NetworkError::NoSubnet(wanted.to_owned()))
}

/// Tells the policy of a VPC from the rows.
pub(crate) fn policy_source(
    store: &dyn Store,
    vpc: VpcId,
) -> impl Fn() -> Result<NetworkPolicy, Box<dyn std::error::Error + Send + Sync>> + Sync {
    move || Ok(policy(store, vpc)?)
}

fn policy(store: &dyn Store, vpc: VpcId) -> Result<NetworkPolicy, StoreError> {
    transact(store, |tx| {
        let groups = tx.list::<SecurityGroup>()?.into_iter().filter(|group| group.vpc == vpc);
        let members = tx.list::<Membership>()?.into_iter().filter(|m| m.interface.subnet.vpc == vpc);
        let member = |row: Membership| {
            let host = kiln_hostnet::host_address(row.interface.subnet.vpc_cidr);
            let host_ipv6 = row.interface.subnet.vpc_ipv6.and_then(kiln_hostnet::host_ipv6);
            let member = Member {
                mac: row.interface.mac,
                addresses: row.addresses(),
                ipv6: row.interface.ipv6.into_iter().collect(),
                groups: row.groups,
                host: host.filter(|_| row.host_access),
                host_ipv6: host_ipv6.filter(|_| row.host_access),
                source_dest_check: !row.forwards,
                connections: CONNECTIONS,
            };
            (row.interface.id, member)
        };
        let route_tables::Ways { routing, tables } = route_tables::of_vpc(tx, vpc)?;
        Ok(NetworkPolicy {
            interfaces: members.map(member).collect(),
            groups: groups.map(|group| (group.id, group.rules)).collect(),
            prefix_lists: tx.list::<PrefixList>()?.into_iter().map(|list| (list.id, list.ranges)).collect(),
            subnets: acls::of_vpc(tx, vpc)?,
            routing,
            tables,
        })
    })
}
