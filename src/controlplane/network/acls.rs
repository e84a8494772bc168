//! Network ACLs, as rows and as a service.
//!
//! ```text
//!  subnet ─▶ association ─▶ ACL ─▶ entries        without association: the VPC's default ACL
//! ```
//! A VPC's default ACL lets everything pass until somebody changes it; a new one denies everything.

use kiln_model::security::{AclEntry, Direction, SubnetAcl};
use kiln_model::{NetworkAclId, SubnetId, VpcId};
use serde::{Deserialize, Serialize};

use super::groups::{touch, touch_last};
use super::service::find_subnet;
use super::{Also, NetworkError, Networks, Subnet, Vpc};
use crate::state::{Row, StoreError, Transaction, transact};
use crate::tags;

/// Entries of one direction of one ACL, as EC2's default quota.
pub const MAX_ACL_ENTRIES: usize = 20;
/// ACLs in one VPC.
pub const MAX_ACLS: usize = 200;

/// A network ACL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAcl {
    /// Its id.
    pub id: NetworkAclId,
    /// Its VPC.
    pub vpc: VpcId,
    /// What people call it.
    pub name: String,
    /// Whether it is for subnets that are associated with no other.
    pub default: bool,
    /// What it says, by direction and number.
    pub entries: Vec<AclEntry>,
}

impl Row for NetworkAcl {
    const KIND: &'static str = "acl";
    type Key = NetworkAclId;

    fn key(&self) -> NetworkAclId {
        self.id
    }
}

/// Points to a VPC's default ACL.
#[derive(Debug, Serialize, Deserialize)]
struct DefaultAcl {
    vpc: VpcId,
    acl: NetworkAclId,
}

impl Row for DefaultAcl {
    const KIND: &'static str = "default-acl";
    type Key = VpcId;

    fn key(&self) -> VpcId {
        self.vpc
    }
}

/// A subnet with an ACL of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AclAssociation {
    /// The subnet.
    pub subnet: SubnetId,
    /// Its ACL.
    pub acl: NetworkAclId,
}

impl Row for AclAssociation {
    const KIND: &'static str = "acl-association";
    type Key = SubnetId;

    fn key(&self) -> SubnetId {
        self.subnet
    }
}

impl Networks<'_> {
    /// All ACLs, default ones first.
    pub fn network_acls(&self) -> Result<Vec<NetworkAcl>, NetworkError> {
        for vpc in self.vpcs()? {
            self.default_acl(vpc.id)?;
        }
        let mut all = transact(self.store, |tx| tx.list::<NetworkAcl>())?;
        all.sort_by_key(|acl| (acl.vpc, !acl.default, acl.id));
        Ok(all)
    }

    /// Which subnets have an ACL of their own.
    pub fn acl_associations(&self) -> Result<Vec<AclAssociation>, NetworkError> {
        Ok(transact(self.store, |tx| tx.list::<AclAssociation>())?)
    }

    /// The default ACL of a VPC.
    pub fn default_acl(&self, vpc: VpcId) -> Result<NetworkAcl, NetworkError> {
        transact(self.store, |tx| {
            if let Some(row) = tx.get::<DefaultAcl>(&vpc)? {
                return get(tx, row.acl);
            }
            let row = tx.get::<Vpc>(&vpc)?.ok_or_else(|| NetworkError::NoVpc(vpc.to_string()))?;
            touch(tx, &vpc)?;
            let id = NetworkAclId::from_bits(rand::random());
            let name = "default".to_owned();
            let mut entries = AclEntry::all_pass();
            if row.ipv6.is_some() {
                add_ipv6(&mut entries);
            }
            let acl = NetworkAcl { id, vpc, name, default: true, entries };
            tx.put(&DefaultAcl { vpc, acl: id })?;
            tx.put(&acl)?;
            Ok(acl)
        })
    }

    /// The ACL that an id or, in a VPC, a name stands for.
    pub fn find_acl(&self, vpc: VpcId, wanted: &str) -> Result<NetworkAcl, NetworkError> {
        let id = wanted.parse().ok();
        let mut all = self.network_acls()?.into_iter();
        all.find(|acl| Some(acl.id) == id || (acl.vpc == vpc && acl.name == wanted))
            .ok_or_else(|| NetworkError::NoAcl(wanted.to_owned()))
    }

    /// Makes an ACL that denies everything, with a name of its own in its VPC or named as its id.
    pub fn create_acl(
        &self,
        vpc: VpcId,
        name: Option<&str>,
        also: &mut Also<'_>,
    ) -> Result<NetworkAcl, NetworkError> {
        let id = NetworkAclId::from_bits(rand::random());
        let name = name.map_or_else(|| id.to_string(), str::to_owned);
        super::groups::check_text(&name, "the name of a network ACL")?;
        if self.network_acls()?.iter().any(|acl| acl.vpc == vpc && acl.name == name) {
            return Err(NetworkError::AclExists { name, vpc });
        }
        let acl = NetworkAcl { id, vpc, name, default: false, entries: Vec::new() };
        transact(self.store, |tx| {
            tx.get::<Vpc>(&vpc)?.ok_or_else(|| NetworkError::NoVpc(vpc.to_string()))?;
            touch(tx, &vpc)?;
            if tx.list::<NetworkAcl>()?.iter().filter(|acl| acl.vpc == vpc).count() >= MAX_ACLS {
                return Err(NetworkError::Limit { what: "network ACLs", limit: MAX_ACLS });
            }
            tx.put(&acl)?;
            also(tx, &id.to_string())?;
            Ok(acl.clone())
        })
    }

    /// Deletes an ACL that no subnet has.
    pub fn delete_acl(&self, id: NetworkAclId) -> Result<(), NetworkError> {
        transact(self.store, |tx| {
            let acl = get(tx, id)?;
            if acl.default {
                return Err(NetworkError::DefaultAcl(id));
            }
            touch_last(tx, &id)?;
            if let Some(user) = tx.list::<AclAssociation>()?.iter().find(|row| row.acl == id) {
                return Err(NetworkError::InUse { what: acl.name, by: user.subnet.to_string() });
            }
            tx.remove::<NetworkAcl>(&id);
            Ok(())
        })
    }

    /// Adds an entry; with `replace`, in place of the one of this number that must be there. In force
    /// at once, for conversations that go on as well.
    pub fn set_acl_entry(
        &self,
        id: NetworkAclId,
        entry: &AclEntry,
        replace: bool,
    ) -> Result<(), NetworkError> {
        if !AclEntry::NUMBERS.contains(&entry.number) {
            return Err(NetworkError::AclNumber(entry.number));
        }
        self.change_acl(id, |acl| {
            let place = place_of(acl, entry.direction, entry.number);
            match (place, replace) {
                (Some(at), true) => acl.entries.splice(at..=at, [entry.clone()]).for_each(drop),
                (None, false) => acl.entries.push(entry.clone()),
                (Some(_), false) => {
                    return Err(NetworkError::AclEntryExists { acl: id, number: entry.number });
                }
                (None, true) => return Err(NetworkError::NoAclEntry { acl: id, number: entry.number }),
            }
            let same = acl.entries.iter().filter(|other| other.direction == entry.direction).count();
            if same > MAX_ACL_ENTRIES {
                let what = "entries of one direction of a network ACL";
                return Err(NetworkError::Limit { what, limit: MAX_ACL_ENTRIES });
            }
            acl.entries.sort_by_key(|entry| (entry.direction, entry.number));
            Ok(())
        })
    }

    /// Removes an entry.
    pub fn remove_acl_entry(
        &self,
        id: NetworkAclId,
        direction: Direction,
        number: u16,
    ) -> Result<(), NetworkError> {
        self.change_acl(id, |acl| {
            let at = place_of(acl, direction, number).ok_or(NetworkError::NoAclEntry { acl: id, number })?;
            acl.entries.remove(at);
            Ok(())
        })
    }

    fn change_acl(
        &self,
        id: NetworkAclId,
        change: impl Fn(&mut NetworkAcl) -> Result<(), NetworkError>,
    ) -> Result<(), NetworkError> {
        let vpc = transact(self.store, |tx| {
            let mut acl = get(tx, id)?;
            change(&mut acl)?;
            tx.put(&acl)?;
            Ok::<_, NetworkError>(acl.vpc)
        })?;
        self.apply(vpc)
    }

    /// Gives a subnet this ACL in place of the one it has; the default ACL of its VPC as well.
    pub fn associate_acl(&self, id: NetworkAclId, subnet: &str) -> Result<Subnet, NetworkError> {
        let subnet = transact(self.store, |tx| {
            let acl = get(tx, id)?;
            let subnet = find_subnet(tx, subnet)?;
            if subnet.vpc != acl.vpc {
                return Err(NetworkError::NoAcl(acl.id.to_string()));
            }
            touch(tx, &subnet.id)?;
            if acl.default {
                tx.remove::<AclAssociation>(&subnet.id);
            } else {
                touch(tx, &acl.id)?;
                tx.put(&AclAssociation { subnet: subnet.id, acl: acl.id })?;
            }
            Ok(subnet)
        })?;
        self.apply(subnet.vpc)?;
        Ok(subnet)
    }
}

/// Lets IPv6 pass as well, where the number is free.
fn add_ipv6(entries: &mut Vec<AclEntry>) {
    for new in AclEntry::all_pass_ipv6() {
        if !entries.iter().any(|entry| (entry.direction, entry.number) == (new.direction, new.number)) {
            entries.push(new);
        }
    }
    entries.sort_by_key(|entry| (entry.direction, entry.number));
}

/// Lets IPv6 pass the default ACL of a VPC that gets it, as part of `tx`.
pub(super) fn vpc_gets_ipv6(tx: &mut Transaction<'_>, vpc: VpcId) -> Result<(), StoreError> {
    if let Some(default) = tx.get::<DefaultAcl>(&vpc)?
        && let Some(mut acl) = tx.get::<NetworkAcl>(&default.acl)?
    {
        add_ipv6(&mut acl.entries);
        tx.put(&acl)?;
    }
    Ok(())
}

fn get(tx: &mut Transaction<'_>, id: NetworkAclId) -> Result<NetworkAcl, NetworkError> {
    tx.get::<NetworkAcl>(&id)?.ok_or_else(|| NetworkError::NoAcl(id.to_string()))
}

fn place_of(acl: &NetworkAcl, direction: Direction, number: u16) -> Option<usize> {
    acl.entries.iter().position(|entry| (entry.direction, entry.number) == (direction, number))
}

/// Removes the default ACL of a VPC that goes; tells one that is in the way.
pub(super) fn remove_of_vpc(tx: &mut Transaction<'_>, vpc: VpcId) -> Result<(), NetworkError> {
    for acl in tx.list::<NetworkAcl>()?.into_iter().filter(|acl| acl.vpc == vpc) {
        if !acl.default {
            let by = format!("network ACL {}", acl.id);
            return Err(NetworkError::InUse { what: vpc.to_string(), by });
        }
        tags::forget_in(tx, &acl.id.to_string());
        tx.remove::<NetworkAcl>(&acl.id);
    }
    tx.remove::<DefaultAcl>(&vpc);
    Ok(())
}

/// Removes what is known of a subnet that goes.
pub(super) fn remove_of_subnet(tx: &mut Transaction<'_>, subnet: SubnetId) {
    tx.remove::<AclAssociation>(&subnet);
}

/// The subnets of a VPC whose ACL does not let everything pass.
pub(super) fn of_vpc(
    tx: &Transaction<'_>,
    vpc: VpcId,
) -> Result<std::collections::BTreeMap<SubnetId, SubnetAcl>, StoreError> {
    let acls: Vec<_> = tx.list::<NetworkAcl>()?.into_iter().filter(|acl| acl.vpc == vpc).collect();
    if acls.is_empty() {
        return Ok(Default::default());
    }
    let associations = tx.list::<AclAssociation>()?;
    let acl_of = |subnet: &Subnet| {
        let own = associations.iter().find(|row| row.subnet == subnet.id).map(|row| row.acl);
        acls.iter().find(|acl| own.map_or(acl.default, |own| acl.id == own))
    };
    let subnets = tx.list::<Subnet>()?.into_iter().filter(|subnet| subnet.vpc == vpc);
    let pair = |subnet: Subnet| {
        let entries = acl_of(&subnet)?.entries.clone();
        let mut dual = AclEntry::all_pass();
        add_ipv6(&mut dual);
        let open = entries == AclEntry::all_pass() || entries == dual;
        (!open).then_some((subnet.id, SubnetAcl { cidr: subnet.cidr, ipv6: subnet.ipv6, entries }))
    };
    Ok(subnets.filter_map(pair).collect())
}
