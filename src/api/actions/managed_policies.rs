//! Managed policies, their versions, and who has them.

use kiln_controlplane::credentials::{Holders, ManagedPolicy, PolicyVersion, RoleError};
use kiln_controlplane::tags;
use serde_json::{Value, json};

use super::iam::{IamTag, checked, encoded, name, only_root_path, outside, paged, tags_of};
use super::tagging::{self, TagMap};
use super::{Answer, Context, input};
use crate::error::ApiError;

input!(CreatePolicy { policy_name: String, path: Option<String>, policy_document: String,
    description: Option<String>, tags: Vec<IamTag> });
input!(PolicyReference { policy_arn: String });
input!(VersionReference { policy_arn: String, version_id: String });
input!(CreatePolicyVersion { policy_arn: String, policy_document: String, set_as_default: bool });
input!(TagPolicy { policy_arn: String, tags: Vec<IamTag> });
input!(UntagPolicy { policy_arn: String, tag_keys: Vec<String> });
input!(PolicyPage { policy_arn: String, marker: Option<String>, max_items: Option<i64> });
input!(ListPolicies { scope: Option<String>, only_attached: bool, path_prefix: Option<String>,
    marker: Option<String>, max_items: Option<i64> });
input!(ListEntitiesForPolicy { policy_arn: String, entity_filter: Option<String>, path_prefix: Option<String>,
    policy_usage_filter: Option<String>, marker: Option<String>, max_items: Option<i64> });
input!(OfRole { role_name: String, policy_arn: String });
input!(OfUser { user_name: String, policy_arn: String });
input!(RolePage { role_name: String, path_prefix: Option<String>, marker: Option<String>, max_items: Option<i64> });
input!(UserPage { user_name: String, path_prefix: Option<String>, marker: Option<String>, max_items: Option<i64> });

fn shown(policy: &ManagedPolicy, count: usize) -> Value {
    json!({
        "PolicyName": policy.name.as_str(), "PolicyId": policy.id, "Arn": policy.arn, "Path": "/",
        "DefaultVersionId": id(policy.current().number), "AttachmentCount": count, "PermissionsBoundaryUsageCount": 0,
        "IsAttachable": true, "CreateDate": policy.created, "UpdateDate": policy.updated(),
    })
}

fn described(policy: &ManagedPolicy, count: usize, tags: &TagMap) -> Value {
    let mut shown = shown(policy, count);
    shown["Description"] = policy.description.as_str().into();
    shown["Tags"] = tagging::shown_with_name(tags, &policy.arn, None);
    shown
}

/// Versions are called `v1`, `v2` and so on.
fn id(number: u64) -> String {
    format!("v{number}")
}

fn number(id: &str) -> Result<u64, ApiError> {
    let digits = id.strip_prefix('v').filter(|digits| !digits.starts_with(['0', '+']));
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| {
        ApiError::new("ValidationError", format!("'{id}' is no version: they are called v1, v2 and so on"))
    })
}

fn shown_version(policy: &ManagedPolicy, version: &PolicyVersion) -> Value {
    json!({
        "VersionId": id(version.number), "IsDefaultVersion": version.number == policy.current().number,
        "CreateDate": version.created,
    })
}

/// `CreatePolicy`.
pub(super) fn create(context: &Context<'_>, request: CreatePolicy) -> Answer {
    only_root_path(request.path.as_deref())?;
    let tags = checked(request.tags)?;
    let description = request.description.unwrap_or_default();
    let name = name(&request.policy_name)?;
    let policy = context.plane.roles().create_managed(&name, &description, &request.policy_document)?;
    tags::set(context.plane.store(), std::slice::from_ref(&policy.arn), &tags)?;
    Ok(json!({"Policy": described(&policy, 0, &tagging::read(context)?)}))
}

/// `GetPolicy`.
pub(super) fn get(context: &Context<'_>, request: PolicyReference) -> Answer {
    let (policy, count) = context.plane.roles().managed(&request.policy_arn)?;
    Ok(json!({"Policy": described(&policy, count, &tagging::read(context)?)}))
}

/// `GetPolicyVersion`.
pub(super) fn get_version(context: &Context<'_>, request: VersionReference) -> Answer {
    let (policy, _) = context.plane.roles().managed(&request.policy_arn)?;
    let number = number(&request.version_id)?;
    let versions = policy.versions();
    let version = versions.iter().find(|version| version.number == number).ok_or_else(|| {
        let message = format!("Policy {} version {} does not exist.", policy.arn, request.version_id);
        ApiError::new("NoSuchEntity", message)
    })?;
    let mut shown = shown_version(&policy, version);
    shown["Document"] = encoded(&version.document).into();
    Ok(json!({ "PolicyVersion": shown }))
}

/// `ListPolicyVersions`.
pub(super) fn list_versions(context: &Context<'_>, request: PolicyPage) -> Answer {
    let (policy, _) = context.plane.roles().managed(&request.policy_arn)?;
    let versions = policy.versions().iter().map(|version| shown_version(&policy, version)).collect();
    paged(versions, "Versions", "VersionId", request.marker, request.max_items)
}

/// `CreatePolicyVersion`.
pub(super) fn create_version(context: &Context<'_>, request: CreatePolicyVersion) -> Answer {
    let roles = context.plane.roles();
    let (arn, in_force) = (&request.policy_arn, request.set_as_default);
    let version = roles.create_policy_version(arn, &request.policy_document, in_force)?;
    let (policy, _) = roles.managed(arn)?;
    Ok(json!({"PolicyVersion": shown_version(&policy, &version)}))
}

/// `SetDefaultPolicyVersion`.
pub(super) fn set_default_version(context: &Context<'_>, request: VersionReference) -> Answer {
    context.plane.roles().set_policy_version(&request.policy_arn, number(&request.version_id)?)?;
    Ok(json!({}))
}

/// `DeletePolicyVersion`.
pub(super) fn delete_version(context: &Context<'_>, request: VersionReference) -> Answer {
    context.plane.roles().delete_policy_version(&request.policy_arn, number(&request.version_id)?)?;
    Ok(json!({}))
}

/// `TagPolicy`: of one of this account.
pub(super) fn tag(context: &Context<'_>, request: TagPolicy) -> Answer {
    let arn = own(context, &request.policy_arn)?;
    tags::set(context.plane.store(), &[arn], &checked(request.tags)?)?;
    Ok(json!({}))
}

/// `UntagPolicy`.
pub(super) fn untag(context: &Context<'_>, request: UntagPolicy) -> Answer {
    let arn = own(context, &request.policy_arn)?;
    tags::remove(context.plane.store(), &[arn], |tag| request.tag_keys.iter().any(|k| k == tag.key()))?;
    Ok(json!({}))
}

/// `ListPolicyTags`.
pub(super) fn list_tags(context: &Context<'_>, request: PolicyPage) -> Answer {
    let (policy, _) = context.plane.roles().managed(&request.policy_arn)?;
    tags_of(context, &policy.arn, request.marker, request.max_items)
}

fn own(context: &Context<'_>, arn: &str) -> Result<String, ApiError> {
    let (policy, _) = context.plane.roles().managed(arn)?;
    match policy.is_aws() {
        true => Err(RoleError::OfAws(policy.arn).into()),
        false => Ok(policy.arn),
    }
}

/// `ListPolicies`.
pub(super) fn list(context: &Context<'_>, request: ListPolicies) -> Answer {
    let mut all = context.plane.roles().all_managed()?;
    let scope = request.scope.as_deref().unwrap_or("All");
    all.retain(|(policy, count)| {
        (scope == "All" || policy.is_aws() == (scope == "AWS")) && (*count > 0 || !request.only_attached)
    });
    if outside(request.path_prefix.as_deref()) {
        all.clear();
    }
    let items = all.iter().map(|(policy, count)| shown(policy, *count)).collect();
    paged(items, "Policies", "Arn", request.marker, request.max_items)
}

/// `DeletePolicy`.
pub(super) fn delete(context: &Context<'_>, request: PolicyReference) -> Answer {
    context.plane.roles().delete_managed(&request.policy_arn)?;
    tags::forget(context.plane.store(), &request.policy_arn)?;
    Ok(json!({}))
}

pub(super) fn attached(
    all: &[ManagedPolicy],
    path: Option<&str>,
    marker: Option<String>,
    most: Option<i64>,
) -> Answer {
    let own = all.iter().filter(|_| !outside(path));
    let items = own.map(|p| json!({"PolicyName": p.name.as_str(), "PolicyArn": p.arn})).collect();
    paged(items, "AttachedPolicies", "PolicyArn", marker, most)
}

/// `AttachRolePolicy`.
pub(super) fn attach_to_role(context: &Context<'_>, request: OfRole) -> Answer {
    context.plane.roles().attach(&request.role_name, &request.policy_arn)?;
    Ok(json!({}))
}

/// `DetachRolePolicy`.
pub(super) fn detach_from_role(context: &Context<'_>, request: OfRole) -> Answer {
    context.plane.roles().detach(&request.role_name, &request.policy_arn)?;
    Ok(json!({}))
}

/// `ListAttachedRolePolicies`.
pub(super) fn of_role(context: &Context<'_>, request: RolePage) -> Answer {
    let all = context.plane.roles().managed_of_role(&request.role_name)?;
    attached(&all, request.path_prefix.as_deref(), request.marker, request.max_items)
}

/// `AttachUserPolicy`.
pub(super) fn attach_to_user(context: &Context<'_>, request: OfUser) -> Answer {
    context.plane.roles().attach_to_user(&request.user_name, &request.policy_arn)?;
    Ok(json!({}))
}

/// `DetachUserPolicy`.
pub(super) fn detach_from_user(context: &Context<'_>, request: OfUser) -> Answer {
    context.plane.roles().detach_from_user(&request.user_name, &request.policy_arn)?;
    Ok(json!({}))
}

/// `ListAttachedUserPolicies`.
pub(super) fn of_user(context: &Context<'_>, request: UserPage) -> Answer {
    let all = context.plane.roles().managed_of_user(&request.user_name)?;
    attached(&all, request.path_prefix.as_deref(), request.marker, request.max_items)
}

/// `ListEntitiesForPolicy`: roles, users and groups in one list of pages.
pub(super) fn holders(context: &Context<'_>, request: ListEntitiesForPolicy) -> Answer {
    let mut holders = context.plane.roles().holders(&request.policy_arn)?;
    let boundary = request.policy_usage_filter.is_some_and(|usage| usage == "PermissionsBoundary");
    if boundary || outside(request.path_prefix.as_deref()) {
        holders = Holders::default();
    }
    let roles = holders.roles.iter().map(|role| json!({"RoleName": role.name.as_str(), "RoleId": role.id}));
    let users = holders.users.iter().map(|user| json!({"UserName": user.name.as_str(), "UserId": user.id}));
    let groups = holders.groups.iter().map(|g| json!({"GroupName": g.name.as_str(), "GroupId": g.id}));
    let kinds = [
        ("Role", "RoleId", roles.collect()),
        ("User", "UserId", users.collect()),
        ("Group", "GroupId", groups.collect::<Vec<_>>()),
    ];
    // The id, which is unique among all of them, is what a page ends with.
    let of_kind = |(kind, id, items): (&str, &str, Vec<Value>)| {
        let wanted = request.entity_filter.as_deref().is_none_or(|filter| filter == kind);
        let one = |item: Value| json!({"Key": item[id], "Kind": kind, "Item": item});
        if wanted { items.into_iter().map(one).collect() } else { Vec::new() }
    };
    let all = kinds.into_iter().flat_map(of_kind).collect();
    let mut answer = paged(all, "All", "Key", request.marker, request.max_items)?;
    let page = answer["All"].take();
    let of_page = |kind: &str| -> Vec<&Value> {
        let items = page.as_array().into_iter().flatten();
        items.filter(|item| item["Kind"] == kind).map(|item| &item["Item"]).collect()
    };
    Ok(json!({
        "PolicyRoles": of_page("Role"), "PolicyUsers": of_page("User"), "PolicyGroups": of_page("Group"),
        "IsTruncated": answer["IsTruncated"], "Marker": answer["Marker"],
    }))
}
