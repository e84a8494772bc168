//! Network ACLs of subnets.

use kiln_controlplane::metadata::ACCOUNT;
use kiln_controlplane::network::{AclAssociation, NetworkAcl, Subnet};
use kiln_controlplane::tags;
use kiln_model::security::{AclEntry, AclRange, Direction, Traffic};
use kiln_model::{NetworkAclId, SubnetId};
use serde_json::{Value, json};

use super::ids::{ACL_ASSOCIATION, NETWORK_ACL};
use super::listing::{self, Filters, listing};
use super::tagging::{self, TagMap, TagSpecification};
use super::tokens::Token;
use super::{Answer, Context, done, input, parse, tokens, vpcs};
use crate::error::ApiError;

input!(CreateNetworkAcl { vpc_id: String, tag_specifications: Vec<TagSpecification> });
input!(DeleteNetworkAcl { network_acl_id: String });
input!(IcmpTypeCode { code: Option<i64>, r#type: Option<i64> });
input!(PortRange { from: Option<i64>, to: Option<i64> });
input!(EntryRequest { network_acl_id: String, rule_number: i64, protocol: String, rule_action: String, egress: bool,
    cidr_block: Option<String>, ipv6_cidr_block: Option<String>, icmp_type_code: Option<IcmpTypeCode>, port_range: Option<PortRange> });
input!(DeleteNetworkAclEntry { network_acl_id: String, rule_number: i64, egress: bool });
input!(ReplaceNetworkAclAssociation { association_id: String, network_acl_id: String });
listing!(DescribeNetworkAcls { network_acl_ids: Vec<String> });

const FILTERS: &Filters = &[
    ("network-acl-id", "NetworkAclId"),
    ("vpc-id", "VpcId"),
    ("owner-id", "OwnerId"),
    ("default", "IsDefault"),
    ("association.association-id", "Associations.NetworkAclAssociationId"),
    ("association.network-acl-id", "Associations.NetworkAclId"),
    ("association.subnet-id", "Associations.SubnetId"),
    ("entry.cidr", "Entries.CidrBlock"),
    ("entry.ipv6-cidr", "Entries.Ipv6CidrBlock"),
    ("entry.egress", "Entries.Egress"),
    ("entry.protocol", "Entries.Protocol"),
    ("entry.rule-action", "Entries.RuleAction"),
    ("entry.rule-number", "Entries.RuleNumber"),
    ("entry.port-range.from", "Entries.PortRange.From"),
    ("entry.port-range.to", "Entries.PortRange.To"),
    ("entry.icmp.type", "Entries.IcmpTypeCode.Type"),
    ("entry.icmp.code", "Entries.IcmpTypeCode.Code"),
];

/// Number of the entry that every list ends with: what no other matches is denied.
const LAST_ENTRY: u16 = 32767;

/// Id of the association of a subnet, which has one all its life, with one ACL or another.
pub(super) fn association_id(subnet: SubnetId) -> String {
    subnet.to_string().replacen(SubnetId::PREFIX, "aclassoc-", 1)
}

fn egress(direction: Direction) -> bool {
    direction == Direction::Egress
}

fn direction(egress: bool) -> Direction {
    if egress { Direction::Egress } else { Direction::Ingress }
}

fn entry(entry: &AclEntry) -> Value {
    let (protocol, from, to) = entry.traffic.to_fields();
    // Here by number.
    let number = match protocol.as_str() {
        "tcp" => "6",
        "udp" => "17",
        "icmp" => "1",
        "icmpv6" => "58",
        other => other,
    };
    let mut shown = json!({
        "RuleNumber": entry.number, "Protocol": number, "Egress": egress(entry.direction),
        "RuleAction": if entry.allow { "allow" } else { "deny" },
    });
    let member = if matches!(entry.range, AclRange::Ipv4(_)) { "CidrBlock" } else { "Ipv6CidrBlock" };
    shown[member] = entry.range.to_string().into();
    match entry.traffic {
        Traffic::Tcp(_) | Traffic::Udp(_) => shown["PortRange"] = json!({"From": from, "To": to}),
        Traffic::Icmp(_) | Traffic::Icmpv6(_) => {
            shown["IcmpTypeCode"] = json!({"Type": from, "Code": to});
        }
        Traffic::All | Traffic::Protocol(_) => {}
    }
    shown
}

fn shown(acl: &NetworkAcl, subnets: &[Subnet], own: &[AclAssociation], tags: &TagMap) -> Value {
    let id = acl.id.to_string();
    let has = |subnet: &&Subnet| {
        let row = own.iter().find(|row| row.subnet == subnet.id);
        subnet.vpc == acl.vpc && row.map_or(acl.default, |row| row.acl == acl.id)
    };
    let association = |subnet: &Subnet| {
        json!({
            "NetworkAclAssociationId": association_id(subnet.id), "NetworkAclId": id,
            "SubnetId": subnet.id.to_string(),
        })
    };
    let last = |egress: bool| {
        json!({
            "RuleNumber": LAST_ENTRY, "Protocol": "-1", "Egress": egress, "RuleAction": "deny",
            "CidrBlock": "0.0.0.0/0",
        })
    };
    let entries: Vec<_> = acl.entries.iter().map(entry).chain([last(true), last(false)]).collect();
    let named = !acl.default && acl.name != id;
    json!({
        "NetworkAclId": id, "VpcId": acl.vpc.to_string(), "OwnerId": ACCOUNT, "IsDefault": acl.default,
        "Associations": subnets.iter().filter(has).map(association).collect::<Vec<_>>(), "Entries": entries,
        "Tags": tagging::shown_with_name(tags, &id, named.then_some(&acl.name)),
    })
}

fn all(context: &Context<'_>) -> Result<Vec<Value>, ApiError> {
    vpcs::default_id(context)?;
    let networks = context.plane.networks();
    let (subnets, own, tags) = (networks.subnets()?, networks.acl_associations()?, tagging::read(context)?);
    Ok(networks.network_acls()?.iter().map(|acl| shown(acl, &subnets, &own, &tags)).collect())
}

impl EntryRequest {
    fn set(self, context: &Context<'_>, replace: bool) -> Answer {
        let acl: NetworkAclId = NETWORK_ACL.parse(&self.network_acl_id)?;
        let range = match (self.cidr_block, self.ipv6_cidr_block) {
            (Some(range), None) => AclRange::Ipv4(range.parse().map_err(|e| {
                ApiError::value(format!("Value ({range}) for parameter cidrBlock is invalid. {e}"))
            })?),
            (None, Some(range)) => AclRange::Ipv6(vpcs::ipv6_range(&range)?),
            (None, None) => return Err(ApiError::missing("CidrBlock")),
            (Some(_), Some(_)) => {
                return Err(ApiError::combination("An entry is about an IPv4 or an IPv6 range, not both"));
            }
        };
        let protocol = self.protocol.as_str();
        let (from, to) = match (protocol, self.icmp_type_code, self.port_range) {
            ("1" | "icmp" | "58" | "icmpv6", Some(icmp), _) => (icmp.r#type, icmp.code),
            ("1" | "icmp" | "58" | "icmpv6", None, _) => {
                return Err(ApiError::missing("IcmpTypeCode.Type"));
            }
            ("6" | "tcp" | "17" | "udp", _, Some(ports)) => (ports.from, ports.to),
            ("6" | "tcp" | "17" | "udp", _, None) => return Err(ApiError::missing("PortRange.From")),
            _ => (None, None),
        };
        let traffic = Traffic::from_fields(protocol, from, to).map_err(|e| ApiError::value(e.to_string()))?;
        let entry = AclEntry {
            number: number(self.rule_number)?,
            direction: direction(self.egress),
            allow: self.rule_action == "allow",
            traffic,
            range,
        };
        context.plane.networks().set_acl_entry(acl, &entry, replace)?;
        done()
    }
}

fn number(number: i64) -> Result<u16, ApiError> {
    u16::try_from(number).ok().filter(|number| AclEntry::NUMBERS.contains(number)).ok_or_else(|| {
        ApiError::value(format!("Value ({number}) for parameter ruleNumber is invalid. It is 1 to 32766"))
    })
}

/// `CreateNetworkAcl`.
pub(super) fn create(context: &Context<'_>, mut input: Value) -> Answer {
    let token = Token::take(context, "CreateNetworkAcl", &mut input)?;
    let request: CreateNetworkAcl = parse(input)?;
    let tags = tagging::specified(request.tag_specifications, "network-acl")?;
    let vpc = vpcs::find(context, &request.vpc_id)?.id;
    let id = tokens::once(context, &token, |token| {
        Ok(context.plane.networks().create_acl(vpc, None, &mut token.making(&tags))?.id.to_string())
    })?;
    let made = all(context)?.into_iter().find(|acl| acl["NetworkAclId"] == id.as_str());
    Ok(json!({"NetworkAcl": made.ok_or_else(|| NETWORK_ACL.missing(&id))?}))
}

/// `DeleteNetworkAcl`.
pub(super) fn delete(context: &Context<'_>, request: DeleteNetworkAcl) -> Answer {
    context.plane.networks().delete_acl(NETWORK_ACL.parse(&request.network_acl_id)?)?;
    tags::forget(context.plane.store(), &request.network_acl_id)?;
    done()
}

/// `CreateNetworkAclEntry`.
pub(super) fn create_entry(context: &Context<'_>, request: EntryRequest) -> Answer {
    request.set(context, false)
}

/// `ReplaceNetworkAclEntry`.
pub(super) fn replace_entry(context: &Context<'_>, request: EntryRequest) -> Answer {
    request.set(context, true)
}

/// `DeleteNetworkAclEntry`.
pub(super) fn delete_entry(context: &Context<'_>, request: DeleteNetworkAclEntry) -> Answer {
    let acl: NetworkAclId = NETWORK_ACL.parse(&request.network_acl_id)?;
    let number = number(request.rule_number)?;
    context.plane.networks().remove_acl_entry(acl, direction(request.egress), number)?;
    done()
}

/// `ReplaceNetworkAclAssociation`.
pub(super) fn replace_association(context: &Context<'_>, request: ReplaceNetworkAclAssociation) -> Answer {
    ACL_ASSOCIATION.check(&request.association_id)?;
    let acl: NetworkAclId = NETWORK_ACL.parse(&request.network_acl_id)?;
    let networks = context.plane.networks();
    let subnets = networks.subnets()?;
    let subnet = subnets.iter().find(|subnet| association_id(subnet.id) == request.association_id);
    let subnet = subnet.ok_or_else(|| ACL_ASSOCIATION.missing(&request.association_id))?;
    networks.network_acls()?;
    networks.associate_acl(acl, &subnet.id.to_string())?;
    Ok(json!({"NewAssociationId": request.association_id}))
}

/// `DescribeNetworkAcls`.
pub(super) fn describe(context: &Context<'_>, mut request: DescribeNetworkAcls) -> Answer {
    let mut items = all(context)?;
    listing::select(&mut items, &request.network_acl_ids, "NetworkAclId", NETWORK_ACL)?;
    listing::answer(items, request.wish(), FILTERS, "NetworkAcls", "NetworkAclId")
}
