//! Roles, their policies, and instance profiles, as IAM has them. There are no paths but `/`.

use kiln_controlplane::credentials::{
    InstanceProfile, Lifetime, NewRole, Role, RoleName, SourceSpec, TrustPolicy,
};
use kiln_controlplane::tags;
use kiln_model::Tag;
use serde_json::{Value, json};

use super::listing::{self, Wish};
use super::tagging::{self, TagMap};
use super::{Answer, Context, input};
use crate::error::ApiError;

input!(IamTag { key: String, value: String });
input!(CreateRole { role_name: String, path: Option<String>, assume_role_policy_document: String,
    description: Option<String>, max_session_duration: Option<u64>, tags: Vec<IamTag> });
input!(RoleReference { role_name: String });
input!(RolePage { role_name: String, path_prefix: Option<String>, marker: Option<String>, max_items: Option<i64> });
input!(Pages { path_prefix: Option<String>, marker: Option<String>, max_items: Option<i64> });
input!(PolicyReference { role_name: String, policy_name: String });
input!(PutRolePolicy { role_name: String, policy_name: String, policy_document: String });
input!(UpdateRole { role_name: String, description: Option<String>, max_session_duration: Option<u64> });
input!(TagRole { role_name: String, tags: Vec<IamTag> });
input!(UntagRole { role_name: String, tag_keys: Vec<String> });
input!(UpdateAssumeRolePolicy { role_name: String, policy_document: String });
input!(CreateInstanceProfile { instance_profile_name: String, path: Option<String>, tags: Vec<IamTag> });
input!(ProfileReference { instance_profile_name: String });
input!(ProfilePage { instance_profile_name: String, marker: Option<String>, max_items: Option<i64> });
input!(TagInstanceProfile { instance_profile_name: String, tags: Vec<IamTag> });
input!(UntagInstanceProfile { instance_profile_name: String, tag_keys: Vec<String> });
input!(Membership { instance_profile_name: String, role_name: String });

pub(super) fn validation(error: impl std::fmt::Display) -> ApiError {
    ApiError::new("ValidationError", error.to_string())
}

pub(super) fn name(text: &str) -> Result<RoleName, ApiError> {
    text.parse().map_err(validation)
}

pub(super) fn only_root_path(path: Option<&str>) -> Result<(), ApiError> {
    match path {
        None | Some("/") => Ok(()),
        Some(_) => Err(ApiError::new("UnsupportedOperation", "Kiln has no paths but /")),
    }
}

pub(super) fn checked(tags: Vec<IamTag>) -> Result<Vec<Tag>, ApiError> {
    tags.into_iter().map(|tag| Tag::new(tag.key, tag.value).map_err(validation)).collect()
}

/// JSON in an answer of IAM is percent-encoded (RFC 3986).
pub(super) fn encoded(document: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let one = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    document.bytes().map(one).collect()
}

/// What EC2 needs to be trusted for; roles of the command line have no document of their own.
const TRUST_EC2: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}"#;

fn shown(context: &Context<'_>, role: &Role, tags: &TagMap) -> Answer {
    let policies = context.plane.roles().policies(role.name.as_str())?;
    let trust = policies.trust.as_deref().unwrap_or(TRUST_EC2);
    Ok(json!({
        "Path": "/", "RoleName": role.name.as_str(), "RoleId": role.id, "Arn": role.arn, "CreateDate": role.created,
        "AssumeRolePolicyDocument": encoded(trust), "Description": role.description,
        "MaxSessionDuration": role.lifetime.seconds(), "Tags": tagging::shown_with_name(tags, &role.arn, None),
    }))
}

fn shown_profile(context: &Context<'_>, profile: &InstanceProfile, tags: &TagMap) -> Answer {
    let mut roles = Vec::new();
    if let Some(name) = &profile.role {
        roles.push(shown(context, &context.plane.roles().get(name.as_str())?, tags)?);
    }
    Ok(json!({
        "Path": "/", "InstanceProfileName": profile.name.as_str(), "InstanceProfileId": profile.id,
        "Arn": profile.arn, "CreateDate": profile.created, "Roles": roles,
        "Tags": tagging::shown_with_name(tags, &profile.arn, None),
    }))
}

/// A page in the words of IAM.
pub(super) fn paged(
    items: Vec<Value>,
    member: &str,
    key: &str,
    marker: Option<String>,
    most: Option<i64>,
) -> Answer {
    let wish = Wish { max_results: most.or(Some(100)), next_token: marker, ..Wish::default() };
    let key = |item: &Value| item.get(key).unwrap_or(item).as_str().unwrap_or_default().to_owned();
    let (items, token) = listing::page(items, &wish, key)?;
    Ok(json!({member: items, "IsTruncated": token.is_some(), "Marker": token}))
}

pub(super) fn outside(prefix: Option<&str>) -> bool {
    prefix.is_some_and(|prefix| prefix != "/")
}

/// `CreateRole`: its credentials come from the embedded issuer.
pub(super) fn create_role(context: &Context<'_>, request: CreateRole) -> Answer {
    only_root_path(request.path.as_deref())?;
    let document = request.assume_role_policy_document;
    TrustPolicy::parse(&document).map_err(|e| ApiError::new("MalformedPolicyDocument", e.to_string()))?;
    let lifetime = match request.max_session_duration {
        None => Lifetime::try_from(3600),
        Some(seconds) => Lifetime::try_from(seconds),
    };
    let wish = NewRole {
        name: name(&request.role_name)?,
        description: request.description.unwrap_or_default(),
        source: SourceSpec::Issuer,
        lifetime: lifetime.map_err(validation)?,
    };
    let tags = checked(request.tags)?;
    let roles = context.plane.roles();
    let role = roles.create(&wish)?;
    roles.set_trust(role.name.as_str(), &document)?;
    tags::set(context.plane.store(), std::slice::from_ref(&role.arn), &tags)?;
    Ok(json!({"Role": shown(context, &role, &tagging::read(context)?)?}))
}

/// `GetRole`.
pub(super) fn get_role(context: &Context<'_>, request: RoleReference) -> Answer {
    let role = context.plane.roles().get(&request.role_name)?;
    Ok(json!({"Role": shown(context, &role, &tagging::read(context)?)?}))
}

/// `DeleteRole`.
pub(super) fn delete_role(context: &Context<'_>, request: RoleReference) -> Answer {
    let role = context.plane.roles().get(&request.role_name)?;
    context.plane.roles().delete(&request.role_name)?;
    tags::forget(context.plane.store(), &role.arn)?;
    Ok(json!({}))
}

/// `ListRoles`.
pub(super) fn list_roles(context: &Context<'_>, request: Pages) -> Answer {
    let mut items = Vec::new();
    if !outside(request.path_prefix.as_deref()) {
        for role in context.plane.roles().list()? {
            items.push(shown(context, &role, &TagMap::new())?);
        }
    }
    paged(items, "Roles", "RoleName", request.marker, request.max_items)
}

/// `UpdateAssumeRolePolicy`.
pub(super) fn set_trust(context: &Context<'_>, request: UpdateAssumeRolePolicy) -> Answer {
    context.plane.roles().set_trust(&request.role_name, &request.policy_document)?;
    Ok(json!({}))
}

/// `PutRolePolicy`.
pub(super) fn put_policy(context: &Context<'_>, request: PutRolePolicy) -> Answer {
    let policy = name(&request.policy_name)?;
    context.plane.roles().put_policy(&request.role_name, &policy, &request.policy_document)?;
    Ok(json!({}))
}

/// `GetRolePolicy`.
pub(super) fn get_policy(context: &Context<'_>, request: PolicyReference) -> Answer {
    let role = context.plane.roles().get(&request.role_name)?;
    let policies = context.plane.roles().policies(&request.role_name)?;
    let document = policies.set.inline.get(&request.policy_name).ok_or_else(|| {
        let message = format!("The role policy with name {} cannot be found.", request.policy_name);
        ApiError::new("NoSuchEntity", message)
    })?;
    Ok(json!({
        "RoleName": role.name.as_str(), "PolicyName": request.policy_name, "PolicyDocument": encoded(document),
    }))
}

/// `DeleteRolePolicy`.
pub(super) fn delete_policy(context: &Context<'_>, request: PolicyReference) -> Answer {
    context.plane.roles().delete_policy(&request.role_name, &request.policy_name)?;
    Ok(json!({}))
}

/// `ListRolePolicies`.
pub(super) fn list_policies(context: &Context<'_>, request: RolePage) -> Answer {
    let policies = context.plane.roles().policies(&request.role_name)?;
    let items = policies.set.inline.into_keys().map(Value::from).collect();
    paged(items, "PolicyNames", "", request.marker, request.max_items)
}

/// `UpdateRole`.
pub(super) fn update_role(context: &Context<'_>, request: UpdateRole) -> Answer {
    let lifetime = request.max_session_duration.map(Lifetime::try_from).transpose().map_err(validation)?;
    context.plane.roles().update(&request.role_name, request.description.as_deref(), lifetime)?;
    Ok(json!({}))
}

/// `TagRole`.
pub(super) fn tag_role(context: &Context<'_>, request: TagRole) -> Answer {
    let role = context.plane.roles().get(&request.role_name)?;
    tags::set(context.plane.store(), &[role.arn], &checked(request.tags)?)?;
    Ok(json!({}))
}

/// `UntagRole`.
pub(super) fn untag_role(context: &Context<'_>, request: UntagRole) -> Answer {
    let role = context.plane.roles().get(&request.role_name)?;
    tags::remove(context.plane.store(), &[role.arn], |tag| request.tag_keys.iter().any(|k| k == tag.key()))?;
    Ok(json!({}))
}

/// `ListRoleTags`.
pub(super) fn list_role_tags(context: &Context<'_>, request: RolePage) -> Answer {
    let role = context.plane.roles().get(&request.role_name)?;
    tags_of(context, &role.arn, request.marker, request.max_items)
}

/// A page of the tags of an ARN.
pub(super) fn tags_of(context: &Context<'_>, arn: &str, marker: Option<String>, most: Option<i64>) -> Answer {
    let all = tagging::read(context)?.remove(arn).unwrap_or_default();
    let items = all.iter().map(|tag| json!({"Key": tag.key(), "Value": tag.value()})).collect();
    paged(items, "Tags", "Key", marker, most)
}

/// `CreateInstanceProfile`.
pub(super) fn create_profile(context: &Context<'_>, request: CreateInstanceProfile) -> Answer {
    only_root_path(request.path.as_deref())?;
    let tags = checked(request.tags)?;
    let profile = context.plane.roles().create_profile(&name(&request.instance_profile_name)?)?;
    tags::set(context.plane.store(), std::slice::from_ref(&profile.arn), &tags)?;
    Ok(json!({"InstanceProfile": shown_profile(context, &profile, &tagging::read(context)?)?}))
}

/// `GetInstanceProfile`.
pub(super) fn get_profile(context: &Context<'_>, request: ProfileReference) -> Answer {
    let profile = context.plane.roles().profile(&request.instance_profile_name)?;
    Ok(json!({"InstanceProfile": shown_profile(context, &profile, &tagging::read(context)?)?}))
}

/// `DeleteInstanceProfile`.
pub(super) fn delete_profile(context: &Context<'_>, request: ProfileReference) -> Answer {
    let profile = context.plane.roles().profile(&request.instance_profile_name)?;
    context.plane.roles().delete_profile(&request.instance_profile_name)?;
    tags::forget(context.plane.store(), &profile.arn)?;
    Ok(json!({}))
}

/// `TagInstanceProfile`.
pub(super) fn tag_profile(context: &Context<'_>, request: TagInstanceProfile) -> Answer {
    let profile = context.plane.roles().profile(&request.instance_profile_name)?;
    tags::set(context.plane.store(), &[profile.arn], &checked(request.tags)?)?;
    Ok(json!({}))
}

/// `UntagInstanceProfile`.
pub(super) fn untag_profile(context: &Context<'_>, request: UntagInstanceProfile) -> Answer {
    let arn = context.plane.roles().profile(&request.instance_profile_name)?.arn;
    tags::remove(context.plane.store(), &[arn], |tag| request.tag_keys.iter().any(|k| k == tag.key()))?;
    Ok(json!({}))
}

/// `ListInstanceProfileTags`.
pub(super) fn list_profile_tags(context: &Context<'_>, request: ProfilePage) -> Answer {
    let profile = context.plane.roles().profile(&request.instance_profile_name)?;
    tags_of(context, &profile.arn, request.marker, request.max_items)
}

/// `ListInstanceProfiles`.
pub(super) fn list_profiles(context: &Context<'_>, request: Pages) -> Answer {
    profiles(context, &request, |_| true)
}

/// `ListInstanceProfilesForRole`.
pub(super) fn list_profiles_for_role(context: &Context<'_>, request: RolePage) -> Answer {
    let role = context.plane.roles().get(&request.role_name)?.name;
    let pages =
        Pages { path_prefix: request.path_prefix, marker: request.marker, max_items: request.max_items };
    profiles(context, &pages, |profile| profile.role.as_ref() == Some(&role))
}

fn profiles(context: &Context<'_>, pages: &Pages, meant: impl Fn(&InstanceProfile) -> bool) -> Answer {
    let mut items = Vec::new();
    for profile in context.plane.roles().profiles()?.iter().filter(|p| meant(p)) {
        if !outside(pages.path_prefix.as_deref()) {
            items.push(shown_profile(context, profile, &TagMap::new())?);
        }
    }
    paged(items, "InstanceProfiles", "InstanceProfileName", pages.marker.clone(), pages.max_items)
}

/// `AddRoleToInstanceProfile`.
pub(super) fn add_role(context: &Context<'_>, request: Membership) -> Answer {
    context.plane.roles().add_to_profile(&request.role_name, &request.instance_profile_name)?;
    Ok(json!({}))
}

/// `RemoveRoleFromInstanceProfile`.
pub(super) fn remove_role(context: &Context<'_>, request: Membership) -> Answer {
    context.plane.roles().remove_from_profile(&request.role_name, &request.instance_profile_name)?;
    Ok(json!({}))
}
