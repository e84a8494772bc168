//! Managed policies, and who has them. A policy has one version.

use kiln_controlplane::credentials::ManagedPolicy;
use kiln_controlplane::tags;
use serde_json::{Value, json};

use super::iam::{IamTag, checked, encoded, name, only_root_path, outside, paged};
use super::tagging::{self, TagMap};
use super::{Answer, Context, input};
use crate::error::ApiError;

/// The one version of a policy.
const VERSION: &str = "v1";

input!(CreatePolicy { policy_name: String, path: Option<String>, policy_document: String,
    description: Option<String>, tags: Vec<IamTag> });
input!(PolicyReference { policy_arn: String });
input!(GetPolicyVersion { policy_arn: String, version_id: String });
input!(PolicyPage { policy_arn: String, marker: Option<String>, max_items: Option<i64> });
input!(ListPolicies { scope: Option<String>, only_attached: bool, path_prefix: Option<String>,
    marker: Option<String>, max_items: Option<i64> });
input!(OfRole { role_name: String, policy_arn: String });
input!(OfUser { user_name: String, policy_arn: String });
input!(RolePage { role_name: String, path_prefix: Option<String>, marker: Option<String>, max_items: Option<i64> });
input!(UserPage { user_name: String, path_prefix: Option<String>, marker: Option<String>, max_items: Option<i64> });

fn shown(policy: &ManagedPolicy, count: usize) -> Value {
    json!({
        "PolicyName": policy.name.as_str(), "PolicyId": policy.id, "Arn": policy.arn, "Path": "/",
        "DefaultVersionId": VERSION, "AttachmentCount": count, "PermissionsBoundaryUsageCount": 0,
        "IsAttachable": true, "CreateDate": policy.created, "UpdateDate": policy.created,
    })
}

fn described(policy: &ManagedPolicy, count: usize, tags: &TagMap) -> Value {
    let mut shown = shown(policy, count);
    shown["Description"] = policy.description.as_str().into();
    shown["Tags"] = tagging::shown_with_name(tags, &policy.arn, None);
    shown
}

fn version(policy: &ManagedPolicy) -> Value {
    json!({"VersionId": VERSION, "IsDefaultVersion": true, "CreateDate": policy.created})
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
pub(super) fn get_version(context: &Context<'_>, request: GetPolicyVersion) -> Answer {
    let (policy, _) = context.plane.roles().managed(&request.policy_arn)?;
    if request.version_id != VERSION {
        let message = format!("Policy {} version {} does not exist.", policy.arn, request.version_id);
        return Err(ApiError::new("NoSuchEntity", message));
    }
    let mut shown = version(&policy);
    shown["Document"] = encoded(&policy.document).into();
    Ok(json!({ "PolicyVersion": shown }))
}

/// `ListPolicyVersions`.
pub(super) fn list_versions(context: &Context<'_>, request: PolicyPage) -> Answer {
    let (policy, _) = context.plane.roles().managed(&request.policy_arn)?;
    paged(vec![version(&policy)], "Versions", "VersionId", request.marker, request.max_items)
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

fn attached(all: &[ManagedPolicy], path: Option<&str>, marker: Option<String>, most: Option<i64>) -> Answer {
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
