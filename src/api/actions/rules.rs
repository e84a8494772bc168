//! Rules of security groups.

use kiln_controlplane::metadata::ACCOUNT;
use kiln_controlplane::network::{PeerSpec, RuleSpec, SecurityGroup};
use kiln_controlplane::tags;
use kiln_model::SecurityGroupRuleId;
use kiln_model::security::{Direction, Peer, Rule, Traffic};
use serde_json::{Value, json};

use super::ids::{self, IdKind};
use super::listing::{self, Filters, listing};
use super::tagging::{self, TagMap, TagSpecification};
use super::{Answer, Context, arn, groups, input};
use crate::error::ApiError;

/// Rules of one request.
const MAX_RULES: usize = 1000;
const PREFIX_LIST: &str = "pl-";

input!(IpRange { cidr_ip: String, description: Option<String> });
input!(Ipv6Range { cidr_ipv6: String, description: Option<String> });
input!(GroupPair { group_id: Option<String>, group_name: Option<String>, user_id: Option<String>,
    vpc_id: Option<String>, description: Option<String> });
input!(ListReference { prefix_list_id: String, description: Option<String> });
input!(IpPermission { ip_protocol: String, from_port: Option<i64>, to_port: Option<i64>, ip_ranges: Vec<IpRange>,
    ipv6_ranges: Vec<Ipv6Range>, user_id_group_pairs: Vec<GroupPair>, prefix_list_ids: Vec<ListReference> });
input!(RulesRequest { group_id: Option<String>, group_name: Option<String>, ip_permissions: Vec<IpPermission>,
    ip_protocol: Option<String>, from_port: Option<i64>, to_port: Option<i64>, cidr_ip: Option<String>,
    source_security_group_name: Option<String>, source_security_group_owner_id: Option<String>,
    security_group_rule_ids: Vec<String>, tag_specifications: Vec<TagSpecification> });
input!(RuleRequest { ip_protocol: String, from_port: Option<i64>, to_port: Option<i64>, cidr_ipv4: Option<String>,
    cidr_ipv6: Option<String>, prefix_list_id: Option<String>, referenced_group_id: Option<String>,
    description: Option<String> });
input!(RuleUpdate { security_group_rule_id: String, security_group_rule: RuleRequest });
input!(RuleDescription { security_group_rule_id: String, description: Option<String> });
input!(DescriptionsRequest { group_id: Option<String>, group_name: Option<String>, ip_permissions: Vec<IpPermission>,
    security_group_rule_descriptions: Vec<RuleDescription> });
input!(ModifySecurityGroupRules { group_id: String, security_group_rules: Vec<RuleUpdate> });
listing!(DescribeSecurityGroupRules { security_group_rule_ids: Vec<String> });

const FILTERS: &Filters = &[("group-id", "GroupId"), ("security-group-rule-id", "SecurityGroupRuleId")];

fn value(error: impl std::fmt::Display) -> ApiError {
    ApiError::value(error.to_string())
}

fn range(text: &str) -> Result<PeerSpec, ApiError> {
    match text.contains(':') {
        true => Ok(PeerSpec::Known(Peer::Ipv6(text.parse().map_err(value)?))),
        false => Ok(PeerSpec::Known(Peer::Ipv4(text.parse().map_err(value)?))),
    }
}

fn list(id: &str) -> Result<PeerSpec, ApiError> {
    let bad =
        || ApiError::new("InvalidPrefixListID.NotFound", format!("The prefix list ID '{id}' does not exist"));
    let id = id.starts_with(PREFIX_LIST).then(|| id.parse().ok()).flatten();
    Ok(PeerSpec::Known(Peer::PrefixList(id.ok_or_else(bad)?)))
}

impl GroupPair {
    fn peer(self) -> Result<PeerSpec, ApiError> {
        if self.user_id.is_some_and(|user| user != ACCOUNT) {
            let message = "The group of another account does not exist here";
            return Err(ApiError::new("InvalidGroup.NotFound", message));
        }
        match (self.group_id, self.group_name) {
            (Some(id), _) => ids::GROUP.check(&id).map(|()| PeerSpec::Group(id)),
            (None, Some(name)) => Ok(PeerSpec::Group(name)),
            (None, None) => Err(ApiError::missing("Groups.GroupId")),
        }
    }
}

impl RulesRequest {
    /// The rules that it means, in today's form and in the flat form of long ago.
    fn specs(&mut self) -> Result<Vec<RuleSpec>, ApiError> {
        if let Some(ip_protocol) = self.ip_protocol.take() {
            let ranges = self.cidr_ip.take().map(|cidr_ip| IpRange { cidr_ip, description: None });
            let group = self.source_security_group_name.take().map(|name| GroupPair {
                group_name: Some(name),
                user_id: self.source_security_group_owner_id.take(),
                ..GroupPair::default()
            });
            self.ip_permissions.push(IpPermission {
                ip_protocol,
                from_port: self.from_port,
                to_port: self.to_port,
                ip_ranges: ranges.into_iter().collect(),
                user_id_group_pairs: group.into_iter().collect(),
                ..IpPermission::default()
            });
        } else if self.cidr_ip.is_some() || self.source_security_group_name.is_some() {
            return Err(ApiError::missing("IpProtocol"));
        }
        let mut specs = Vec::new();
        for permission in std::mem::take(&mut self.ip_permissions) {
            let traffic =
                Traffic::from_fields(&permission.ip_protocol, permission.from_port, permission.to_port)
                    .map_err(value)?;
            let mut peers = Vec::new();
            for one in permission.ip_ranges {
                peers.push((range(&one.cidr_ip)?, one.description));
            }
            for one in permission.ipv6_ranges {
                peers.push((range(&one.cidr_ipv6)?, one.description));
            }
            for mut one in permission.user_id_group_pairs {
                let description = one.description.take();
                peers.push((one.peer()?, description));
            }
            for one in permission.prefix_list_ids {
                peers.push((list(&one.prefix_list_id)?, one.description));
            }
            if peers.is_empty() {
                return Err(ApiError::missing("IpPermissions.IpRanges"));
            }
            specs.extend(peers.into_iter().map(|(peer, description)| RuleSpec {
                traffic,
                peer,
                description,
            }));
        }
        match specs.len() {
            0 => Err(ApiError::missing("IpPermissions")),
            1..=MAX_RULES => Ok(specs),
            _ => Err(ApiError::value(format!("A request has at most {MAX_RULES} rules"))),
        }
    }

    fn group(&self, context: &Context<'_>) -> Result<SecurityGroup, ApiError> {
        groups::find(context, self.group_id.as_deref(), self.group_name.as_deref())
    }
}

fn shown(rule: &Rule, group: &SecurityGroup, tags: &TagMap) -> Value {
    let (id, (protocol, from, to)) = (rule.id.to_string(), rule.traffic.to_fields());
    let mut answer = json!({
        "SecurityGroupRuleId": id, "SecurityGroupRuleArn": arn("security-group-rule", &id),
        "GroupId": group.id.to_string(), "GroupOwnerId": ACCOUNT,
        "IsEgress": rule.direction == Direction::Egress, "IpProtocol": protocol,
        // Where there are no ports EC2 says -1 here.
        "FromPort": from.unwrap_or(-1), "ToPort": to.unwrap_or(-1), "Description": rule.description,
        "Tags": tagging::shown_with_name(tags, &id, None),
    });
    let (name, peer) = match rule.peer {
        Peer::Ipv4(range) => ("CidrIpv4", range.to_string().into()),
        Peer::Ipv6(range) => ("CidrIpv6", range.to_string().into()),
        Peer::PrefixList(list) => ("PrefixListId", list.to_string().into()),
        Peer::Group(id) => {
            let vpc = group.vpc.to_string();
            ("ReferencedGroupInfo", json!({"GroupId": id.to_string(), "UserId": ACCOUNT, "VpcId": vpc}))
        }
    };
    answer[name] = peer;
    answer
}

fn authorize(context: &Context<'_>, mut request: RulesRequest, direction: Direction) -> Answer {
    let tags = tagging::specified(std::mem::take(&mut request.tag_specifications), "security-group-rule")?;
    let specs = request.specs()?;
    let group = request.group(context)?;
    let added = context.plane.networks().authorize(group.id, direction, &specs)?;
    let ids: Vec<_> = added.iter().map(|rule| rule.id.to_string()).collect();
    tags::set(context.plane.store(), &ids, &tags)?;
    let tags = tagging::read(context)?;
    let rules: Vec<_> = added.iter().map(|rule| shown(rule, &group, &tags)).collect();
    Ok(json!({"Return": true, "SecurityGroupRules": rules}))
}

fn revoke(context: &Context<'_>, mut request: RulesRequest, direction: Direction) -> Answer {
    let group = request.group(context)?;
    let networks = context.plane.networks();
    let wanted = std::mem::take(&mut request.security_group_rule_ids);
    let removed = if wanted.is_empty() {
        networks.revoke(group.id, direction, &request.specs()?)?
    } else {
        let ids = rule_ids(&wanted)?;
        // An id of the other direction is none here.
        let other = |id: &SecurityGroupRuleId| {
            group.rules.iter().any(|rule| rule.id == *id && rule.direction != direction)
        };
        if let Some(id) = ids.iter().find(|id| other(id)) {
            return Err(ids::RULE.missing(&id.to_string()));
        }
        networks.revoke_ids(group.id, &ids)?
    };
    let gone: Vec<_> = removed.iter().map(|rule| rule.id.to_string()).collect();
    tags::remove(context.plane.store(), &gone, |_| true)?;
    let one = |rule: &Rule| {
        let mut value = shown(rule, &group, &TagMap::new());
        if let (Peer::Group(id), Some(members)) = (rule.peer, value.as_object_mut()) {
            members.insert("ReferencedGroupId".to_owned(), id.to_string().into());
        }
        if let Some(members) = value.as_object_mut() {
            for name in ["SecurityGroupRuleArn", "GroupOwnerId", "Tags", "ReferencedGroupInfo"] {
                members.remove(name);
            }
        }
        value
    };
    let rules: Vec<_> = removed.iter().map(one).collect();
    Ok(json!({"Return": true, "RevokedSecurityGroupRules": rules}))
}

fn rule_ids(ids: &[String]) -> Result<Vec<SecurityGroupRuleId>, ApiError> {
    const KIND: IdKind = ids::RULE;
    ids.iter().map(|id| KIND.parse(id)).collect()
}

/// `AuthorizeSecurityGroupIngress`.
pub(super) fn authorize_ingress(context: &Context<'_>, request: RulesRequest) -> Answer {
    authorize(context, request, Direction::Ingress)
}

/// `AuthorizeSecurityGroupEgress`.
pub(super) fn authorize_egress(context: &Context<'_>, request: RulesRequest) -> Answer {
    authorize(context, request, Direction::Egress)
}

/// `RevokeSecurityGroupIngress`.
pub(super) fn revoke_ingress(context: &Context<'_>, request: RulesRequest) -> Answer {
    revoke(context, request, Direction::Ingress)
}

/// `RevokeSecurityGroupEgress`.
pub(super) fn revoke_egress(context: &Context<'_>, request: RulesRequest) -> Answer {
    revoke(context, request, Direction::Egress)
}

fn update_descriptions(context: &Context<'_>, request: DescriptionsRequest, direction: Direction) -> Answer {
    let DescriptionsRequest { group_id, group_name, ip_permissions, security_group_rule_descriptions } =
        request;
    let rules = RulesRequest { group_id, group_name, ip_permissions, ..RulesRequest::default() };
    let group = rules.group(context)?;
    let networks = context.plane.networks();
    if security_group_rule_descriptions.is_empty() {
        let mut rules = rules;
        networks.describe_same_rules(group.id, direction, &rules.specs()?)?;
        return Ok(json!({"Return": true}));
    }
    if !rules.ip_permissions.is_empty() {
        return Err(ApiError::combination("Name rules by their ids or by what they mean, not both"));
    }
    let mut wanted = Vec::new();
    for one in security_group_rule_descriptions {
        let id: SecurityGroupRuleId = ids::RULE.parse(&one.security_group_rule_id)?;
        // An id of the other direction is none here.
        if !group.rules.iter().any(|rule| rule.id == id && rule.direction == direction) {
            return Err(ids::RULE.missing(&one.security_group_rule_id));
        }
        wanted.push((id, one.description));
    }
    networks.describe_rules(group.id, &wanted)?;
    Ok(json!({"Return": true}))
}

/// `UpdateSecurityGroupRuleDescriptionsIngress`.
pub(super) fn describe_ingress(context: &Context<'_>, request: DescriptionsRequest) -> Answer {
    update_descriptions(context, request, Direction::Ingress)
}

/// `UpdateSecurityGroupRuleDescriptionsEgress`.
pub(super) fn describe_egress(context: &Context<'_>, request: DescriptionsRequest) -> Answer {
    update_descriptions(context, request, Direction::Egress)
}

/// `ModifySecurityGroupRules`: rules keep their ids and their directions.
pub(super) fn modify(context: &Context<'_>, request: ModifySecurityGroupRules) -> Answer {
    let group = groups::find(context, Some(&request.group_id), None)?;
    let mut changes = Vec::new();
    for update in request.security_group_rules {
        let id = ids::RULE.parse(&update.security_group_rule_id)?;
        let rule = update.security_group_rule;
        let traffic = Traffic::from_fields(&rule.ip_protocol, rule.from_port, rule.to_port).map_err(value)?;
        let peer = match (rule.cidr_ipv4.or(rule.cidr_ipv6), rule.prefix_list_id, rule.referenced_group_id) {
            (Some(text), None, None) => range(&text)?,
            (None, Some(id), None) => list(&id)?,
            (None, None, Some(id)) => PeerSpec::Group(id),
            _ => return Err(ApiError::combination("A rule has exactly one peer")),
        };
        changes.push((id, RuleSpec { traffic, peer, description: rule.description }));
    }
    context.plane.networks().modify_rules(group.id, &changes)?;
    Ok(json!({"Return": true}))
}

/// `DescribeSecurityGroupRules`.
pub(super) fn describe(context: &Context<'_>, mut request: DescribeSecurityGroupRules) -> Answer {
    let tags = tagging::read(context)?;
    let groups = context.plane.networks().groups()?;
    let all = groups.iter().flat_map(|group| group.rules.iter().map(move |rule| (group, rule)));
    let mut items: Vec<_> = all.map(|(group, rule)| shown(rule, group, &tags)).collect();
    listing::select(&mut items, &request.security_group_rule_ids, "SecurityGroupRuleId", ids::RULE)?;
    listing::answer(items, request.wish(), FILTERS, "SecurityGroupRules", "SecurityGroupRuleId")
}
