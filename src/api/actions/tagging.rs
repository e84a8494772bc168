//! Tags: with the resources they are made with, and by themselves.

use std::collections::{BTreeMap, BTreeSet};

use kiln_controlplane::instances::{Instance, TagChange};
use kiln_controlplane::launch_templates::TemplateUse;
use kiln_controlplane::state::{StoreError, Transaction};
use kiln_controlplane::tags::{self, MAX_TAGS};
use kiln_model::{InstanceId, Tag};
use serde_json::{Value, json};

use super::ids::{self, IdKind};
use super::listing::{self, listing};
use super::{Answer, Context, done, input, launch_templates};
use crate::auth::kind_of;
use crate::error::ApiError;

/// Resources of one request (EC2: 1000).
const MAX_RESOURCES: usize = 1000;

input!(RawTag { key: Option<String>, value: Option<String> });
input!(TagSpecification { resource_type: Option<String>, tags: Vec<RawTag> });
input!(CreateTags { resources: Vec<String>, tags: Vec<RawTag> });
listing!(DescribeTags {});

/// Tags of resources by id.
pub(super) type TagMap = BTreeMap<String, Vec<Tag>>;

fn invalid(error: &kiln_model::InvalidTag) -> ApiError {
    ApiError::value(error.to_string())
}

pub(super) fn checked(raw: Vec<RawTag>) -> Result<Vec<Tag>, ApiError> {
    let mut tags: Vec<Tag> = Vec::new();
    for tag in raw {
        let key = tag.key.ok_or_else(|| ApiError::missing("Tag.Key"))?;
        let tag = Tag::new(key, tag.value.unwrap_or_default()).map_err(|e| invalid(&e))?;
        if tags.iter().any(|other| other.key() == tag.key()) {
            return Err(ApiError::value(format!("Duplicate tag key '{}' specified.", tag.key())));
        }
        tags.push(tag);
    }
    if tags.len() > MAX_TAGS {
        return Err(ApiError::new("TagLimitExceeded", format!("A resource has at most {MAX_TAGS} tags")));
    }
    Ok(tags)
}

/// The tags for a resource of type `kind`, the only one that the call makes.
pub(super) fn specified(specifications: Vec<TagSpecification>, kind: &str) -> Result<Vec<Tag>, ApiError> {
    let mut each = specified_for(specifications, &[kind])?;
    Ok(each.remove(kind).unwrap_or_default())
}

/// The tags for each type of resource of `kinds`, which are what the call makes.
pub(super) fn specified_for(
    specifications: Vec<TagSpecification>,
    kinds: &[&str],
) -> Result<BTreeMap<String, Vec<Tag>>, ApiError> {
    let mut each = BTreeMap::new();
    for specification in specifications {
        let kind =
            specification.resource_type.ok_or_else(|| ApiError::missing("TagSpecification.ResourceType"))?;
        if !kinds.contains(&kind.as_str()) {
            return Err(ApiError::value(format!(
                "'{kind}' is not a valid taggable resource type for this operation."
            )));
        }
        if each.insert(kind.clone(), checked(specification.tags)?).is_some() {
            return Err(ApiError::value(format!("The resource type '{kind}' is given twice")));
        }
    }
    Ok(each)
}

/// All tags but those of instances, which are in their rows.
pub(super) fn read(context: &Context<'_>) -> Result<TagMap, ApiError> {
    Ok(tags::all(context.plane.store())?.into_iter().map(|row| (row.resource, row.tags)).collect())
}

/// Writes the tags of a new resource, as part of the transaction that makes it.
pub(super) fn set_new(tx: &mut Transaction<'_>, id: &str, own: &[Tag]) -> Result<(), StoreError> {
    tags::set_in(tx, id, own).map_err(|error| match error {
        tags::TagError::Store(error) => error,
        // A new resource has no others.
        tags::TagError::TooMany { .. } => StoreError::Contended,
    })
}

/// Tags as they are shown.
pub(super) fn shown(tags: &[Tag]) -> Value {
    tags.iter().map(|tag| json!({"Key": tag.key(), "Value": tag.value()})).collect()
}

/// Tags that an instance has from the service and nobody can change.
fn ours(instance: &Instance) -> Vec<(&'static str, String)> {
    let used = |used: TemplateUse| {
        [
            ("aws:ec2launchtemplate:id", used.template.to_string()),
            ("aws:ec2launchtemplate:version", used.version.to_string()),
        ]
    };
    instance.launch_template.into_iter().flat_map(used).collect()
}

/// Tags of an instance as they are shown.
pub(super) fn shown_of_instance(instance: &Instance) -> Value {
    let own = instance.tags.iter().map(|tag| json!({"Key": tag.key(), "Value": tag.value()}));
    own.chain(ours(instance).iter().map(|(key, value)| json!({"Key": key, "Value": value}))).collect()
}

/// Tags of a resource as they are shown; `name` is what the command line calls it.
pub(super) fn shown_with_name(map: &TagMap, id: &str, name: Option<&str>) -> Value {
    let mut tags = map.get(id).cloned().unwrap_or_default();
    if let Some(name) = name.filter(|_| !tags.iter().any(|tag| tag.key() == Tag::NAME)) {
        tags.extend(Tag::new(Tag::NAME, name));
    }
    shown(&tags)
}

/// Splits instances, whose tags are in their rows, from the rest; every resource must exist.
fn resources(context: &Context<'_>, wanted: &[String]) -> Result<(Vec<InstanceId>, Vec<String>), ApiError> {
    if wanted.len() > MAX_RESOURCES {
        return Err(ApiError::value(format!("A request names at most {MAX_RESOURCES} resources")));
    }
    let (mut instances, mut others) = (Vec::new(), Vec::new());
    let known = Known::read(context)?;
    for id in wanted {
        let Some(kind) = known.kinds.iter().find(|(prefix, ..)| id.starts_with(prefix)) else {
            return Err(ApiError::new("InvalidID", format!("The ID '{id}' is not valid")));
        };
        let (_, kind, there) = kind;
        kind.check(id)?;
        if !there.contains(id) {
            return Err(kind.missing(id));
        }
        match kind_of(id) {
            Some("instance") => instances.push(ids::INSTANCE.parse(id)?),
            _ => others.push(id.clone()),
        }
    }
    Ok((instances, others))
}

/// What there is.
struct Known {
    kinds: Vec<(&'static str, IdKind, BTreeSet<String>)>,
}

impl Known {
    fn read(context: &Context<'_>) -> Result<Self, ApiError> {
        let networks = context.plane.networks();
        let text = |ids: &mut dyn Iterator<Item = String>| ids.collect::<BTreeSet<_>>();
        let (groups, instances) = (networks.groups()?, context.plane.instance_rows()?);
        Ok(Known {
            kinds: vec![
                ("i-", ids::INSTANCE, text(&mut instances.iter().map(|i| i.id.to_string()))),
                (
                    "vol-",
                    ids::VOLUME,
                    text(&mut context.plane.volumes().list()?.iter().map(|v| v.id.to_string())),
                ),
                (
                    "snap-",
                    ids::SNAPSHOT,
                    text(&mut context.plane.volumes().snapshots()?.iter().map(|s| s.id.to_string())),
                ),
                (
                    "ami-",
                    ids::IMAGE,
                    text(&mut context.plane.images().list()?.iter().map(|i| i.id.to_string())),
                ),
                ("vpc-", ids::VPC, text(&mut networks.vpcs()?.iter().map(|v| v.id.to_string()))),
                ("subnet-", ids::SUBNET, text(&mut networks.subnets()?.iter().map(|s| s.id.to_string()))),
                (
                    "sgr-",
                    ids::RULE,
                    text(&mut groups.iter().flat_map(|g| &g.rules).map(|r| r.id.to_string())),
                ),
                ("sg-", ids::GROUP, text(&mut groups.iter().map(|g| g.id.to_string()))),
                (
                    "eni-",
                    ids::INTERFACE,
                    text(&mut networks.memberships()?.iter().map(|m| m.interface.id.to_string())),
                ),
                (
                    "eipalloc-",
                    ids::ALLOCATION,
                    text(&mut networks.elastic_addresses()?.iter().map(|e| e.id.to_string())),
                ),
                (
                    "acl-",
                    ids::NETWORK_ACL,
                    text(&mut networks.network_acls()?.iter().map(|a| a.id.to_string())),
                ),
                (
                    "pl-",
                    ids::PREFIX_LIST,
                    text(&mut networks.prefix_lists()?.iter().map(|l| l.id.to_string())),
                ),
                (
                    "rtb-",
                    ids::ROUTE_TABLE,
                    text(&mut networks.route_tables()?.tables.iter().map(|t| t.id.to_string())),
                ),
                (
                    "igw-",
                    ids::GATEWAY,
                    text(&mut networks.internet_gateways()?.iter().map(|g| g.id.to_string())),
                ),
                (
                    "nat-",
                    ids::NAT_GATEWAY,
                    text(&mut networks.nat_gateways()?.iter().map(|n| n.id.to_string())),
                ),
                (
                    "key-",
                    ids::KEY_PAIR,
                    text(&mut super::key_pairs::service(context).list()?.iter().map(|k| k.id.to_string())),
                ),
                (
                    "lt-",
                    ids::LAUNCH_TEMPLATE,
                    text(&mut launch_templates::service(context).list()?.iter().map(|t| t.id.to_string())),
                ),
            ],
        })
    }
}

/// `CreateTags`.
pub(super) fn create(context: &Context<'_>, request: CreateTags) -> Answer {
    let tags = checked(request.tags)?;
    let (instances, others) = resources(context, &request.resources)?;
    tags::set(context.plane.store(), &others, &tags)?;
    for id in instances {
        context.plane.change_tags(id, &TagChange { set: tags.clone(), remove: Vec::new() })?;
    }
    done()
}

/// `DeleteTags`: of all keys when none is named; a value that is given must be the tag's.
pub(super) fn delete(context: &Context<'_>, request: CreateTags) -> Answer {
    let (instances, others) = resources(context, &request.resources)?;
    let meant = |tag: &Tag| {
        let same = |raw: &RawTag| {
            raw.key.as_deref() == Some(tag.key()) && raw.value.as_deref().is_none_or(|v| v == tag.value())
        };
        request.tags.is_empty() || request.tags.iter().any(same)
    };
    tags::remove(context.plane.store(), &others, meant)?;
    for id in instances {
        let row = context.plane.find(&id.to_string())?;
        let remove = row.tags.iter().filter(|tag| meant(tag)).map(|tag| tag.key().to_owned()).collect();
        context.plane.change_tags(id, &TagChange { set: Vec::new(), remove })?;
    }
    done()
}

/// `DescribeTags`.
pub(super) fn describe(context: &Context<'_>, mut request: DescribeTags) -> Answer {
    let mut all = read(context)?;
    for instance in context.plane.instance_rows()?.iter() {
        all.insert(instance.id.to_string(), instance.tags.clone());
    }
    let one = |id: &str, key: &str, value: &str| json!({"ResourceId": id, "ResourceType": kind_of(id), "Key": key, "Value": value});
    // Those of roles and profiles are IAM's.
    let own = all.iter().filter(|(id, _)| kind_of(id).is_some());
    let mut items: Vec<_> =
        own.flat_map(|(id, tags)| tags.iter().map(|tag| one(id, tag.key(), tag.value()))).collect();
    for instance in context.plane.instance_rows()?.iter() {
        let ours = ours(instance);
        items.extend(ours.iter().map(|(key, value)| one(&instance.id.to_string(), key, value)));
    }
    let table = [
        ("key", "Key"),
        ("value", "Value"),
        ("resource-id", "ResourceId"),
        ("resource-type", "ResourceType"),
    ];
    let mut wish = request.wish();
    // Here `tag:K` is a key with a value.
    for filter in &mut wish.filters {
        if let Some(key) = filter.name.as_deref().and_then(|name| name.strip_prefix("tag:")) {
            items.retain(|item| item["Key"] == key);
            filter.name = Some("value".to_owned());
        }
    }
    listing::filter(&mut items, &wish.filters, &table)?;
    let key = |item: &Value| format!("{} {}", item["ResourceId"], item["Key"]);
    let (items, token) = listing::page(items, &wish, key)?;
    Ok(json!({"Tags": items, "NextToken": token}))
}
