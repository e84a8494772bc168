//! Users and their access keys, as IAM has them. There are no paths but `/`, and no passwords.

use std::time::UNIX_EPOCH;

use kiln_controlplane::credentials::{User, UserKey};
use kiln_controlplane::metadata::ACCOUNT;
use kiln_controlplane::state::Vault;
use kiln_controlplane::tags;
use serde_json::{Value, json};

use super::iam::{IamTag, Pages, checked, encoded, name, only_root_path, outside, paged, validation};
use super::tagging::{self, TagMap};
use super::{Answer, Context, input};
use crate::auth::Kind;
use crate::error::ApiError;

input!(CreateUser { user_name: String, path: Option<String>, tags: Vec<IamTag> });
input!(UserReference { user_name: String });
input!(OwnReference { user_name: Option<String> });
input!(UserPage { user_name: String, path_prefix: Option<String>, marker: Option<String>, max_items: Option<i64> });
input!(OwnPage { user_name: Option<String>, marker: Option<String>, max_items: Option<i64> });
input!(KeyReference { user_name: Option<String>, access_key_id: String });
input!(KeyId { access_key_id: String });
input!(UpdateAccessKey { user_name: Option<String>, access_key_id: String, status: String });
input!(PolicyReference { user_name: String, policy_name: String });
input!(PutUserPolicy { user_name: String, policy_name: String, policy_document: String });
input!(TagUser { user_name: String, tags: Vec<IamTag> });
input!(UntagUser { user_name: String, tag_keys: Vec<String> });

fn shown(user: &User, tags: &TagMap) -> Value {
    json!({
        "Path": "/", "UserName": user.name.as_str(), "UserId": user.id, "Arn": user.arn,
        "CreateDate": user.created, "Tags": tagging::shown_with_name(tags, &user.arn, None),
    })
}

/// A user among others: without tags.
pub(super) fn shown_in_list(user: &User) -> Value {
    shown(user, &TagMap::new())
}

/// The user that is named, or the one that asks.
pub(super) fn meant(context: &Context<'_>, name: Option<String>) -> Result<String, ApiError> {
    match (name, &context.caller.kind) {
        (Some(name), _) => Ok(name),
        (None, Kind::User { name, .. }) => Ok(name.clone()),
        (None, _) => Err(validation("Must specify userName when calling with non-User credentials")),
    }
}

/// `CreateUser`.
pub(super) fn create(context: &Context<'_>, request: CreateUser) -> Answer {
    only_root_path(request.path.as_deref())?;
    let tags = checked(request.tags)?;
    let user = context.plane.roles().create_user(&name(&request.user_name)?)?;
    tags::set(context.plane.store(), std::slice::from_ref(&user.arn), &tags)?;
    Ok(json!({"User": shown(&user, &tagging::read(context)?)}))
}

/// `GetUser`: without a name, whoever asks, be it the account.
pub(super) fn get(context: &Context<'_>, request: OwnReference) -> Answer {
    if request.user_name.is_none() && context.caller.kind == Kind::Root {
        // The account has neither a name nor a path. It is as old as the state directory.
        let made = std::fs::metadata(context.plane.state_dir().root()).and_then(|there| there.created());
        let made = made.ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
        let created = made.map(|since| since.as_secs());
        return Ok(json!({"User": {"UserId": ACCOUNT, "Arn": context.caller.arn, "CreateDate": created}}));
    }
    let user = context.plane.roles().user(&meant(context, request.user_name)?)?;
    Ok(json!({"User": shown(&user, &tagging::read(context)?)}))
}

/// `DeleteUser`.
pub(super) fn delete(context: &Context<'_>, request: UserReference) -> Answer {
    let user = context.plane.roles().user(&request.user_name)?;
    context.plane.roles().delete_user(&request.user_name)?;
    tags::forget(context.plane.store(), &user.arn)?;
    Ok(json!({}))
}

/// `ListUsers`.
pub(super) fn list(context: &Context<'_>, request: Pages) -> Answer {
    let all = match outside(request.path_prefix.as_deref()) {
        true => Vec::new(),
        false => context.plane.roles().users()?,
    };
    let items = all.iter().map(shown_in_list).collect();
    paged(items, "Users", "UserName", request.marker, request.max_items)
}

/// `CreateAccessKey`: its secret is told here and nowhere else.
pub(super) fn create_key(context: &Context<'_>, request: OwnReference) -> Answer {
    let user = meant(context, request.user_name)?;
    let vault = Vault::open(context.plane.store(), context.plane.state_dir());
    let vault = vault.map_err(|e| ApiError::internal(&e))?;
    let (user, key) = context.plane.roles().create_key(&vault, &user)?;
    Ok(json!({"AccessKey": {
        "UserName": user.name.as_str(), "AccessKeyId": key.id, "Status": "Active",
        "SecretAccessKey": key.secret.expose(), "CreateDate": context.now,
    }}))
}

/// `ListAccessKeys`.
pub(super) fn list_keys(context: &Context<'_>, request: OwnPage) -> Answer {
    let user = context.plane.roles().user(&meant(context, request.user_name)?)?;
    let one = |key: &UserKey| {
        json!({
            "UserName": user.name.as_str(), "AccessKeyId": key.id,
            "Status": if key.active { "Active" } else { "Inactive" }, "CreateDate": key.created,
        })
    };
    let items = user.keys.iter().map(one).collect();
    paged(items, "AccessKeyMetadata", "AccessKeyId", request.marker, request.max_items)
}

/// `GetAccessKeyLastUsed`.
pub(super) fn key_last_used(context: &Context<'_>, request: KeyId) -> Answer {
    let (user, used) = context.plane.roles().key_use(&request.access_key_id)?;
    let shown = match used {
        Some(used) => json!({"LastUsedDate": used.at, "ServiceName": used.service, "Region": used.region}),
        None => json!({"ServiceName": "N/A", "Region": "N/A"}),
    };
    Ok(json!({"UserName": user.as_str(), "AccessKeyLastUsed": shown}))
}

/// `UpdateAccessKey`.
pub(super) fn update_key(context: &Context<'_>, request: UpdateAccessKey) -> Answer {
    let user = meant(context, request.user_name)?;
    let active = match request.status.as_str() {
        "Active" => true,
        "Inactive" => false,
        other => return Err(validation(format!("A key becomes Active or Inactive, not {other}"))),
    };
    context.plane.roles().set_key_active(&user, &request.access_key_id, active)?;
    Ok(json!({}))
}

/// `DeleteAccessKey`.
pub(super) fn delete_key(context: &Context<'_>, request: KeyReference) -> Answer {
    let user = meant(context, request.user_name)?;
    context.plane.roles().delete_key(&user, &request.access_key_id)?;
    Ok(json!({}))
}

/// `PutUserPolicy`.
pub(super) fn put_policy(context: &Context<'_>, request: PutUserPolicy) -> Answer {
    let policy = name(&request.policy_name)?;
    context.plane.roles().put_user_policy(&request.user_name, &policy, &request.policy_document)?;
    Ok(json!({}))
}

/// `GetUserPolicy`.
pub(super) fn get_policy(context: &Context<'_>, request: PolicyReference) -> Answer {
    let user = context.plane.roles().user(&request.user_name)?;
    let document = user.policies.inline.get(&request.policy_name).ok_or_else(|| {
        let message = format!("The user policy with name {} cannot be found.", request.policy_name);
        ApiError::new("NoSuchEntity", message)
    })?;
    Ok(json!({
        "UserName": user.name.as_str(), "PolicyName": request.policy_name, "PolicyDocument": encoded(document),
    }))
}

/// `DeleteUserPolicy`.
pub(super) fn delete_policy(context: &Context<'_>, request: PolicyReference) -> Answer {
    context.plane.roles().delete_user_policy(&request.user_name, &request.policy_name)?;
    Ok(json!({}))
}

/// `ListUserPolicies`.
pub(super) fn list_policies(context: &Context<'_>, request: UserPage) -> Answer {
    let user = context.plane.roles().user(&request.user_name)?;
    let items = user.policies.inline.into_keys().map(Value::from).collect();
    paged(items, "PolicyNames", "", request.marker, request.max_items)
}

/// `TagUser`.
pub(super) fn tag(context: &Context<'_>, request: TagUser) -> Answer {
    let user = context.plane.roles().user(&request.user_name)?;
    tags::set(context.plane.store(), &[user.arn], &checked(request.tags)?)?;
    Ok(json!({}))
}

/// `UntagUser`.
pub(super) fn untag(context: &Context<'_>, request: UntagUser) -> Answer {
    let user = context.plane.roles().user(&request.user_name)?;
    tags::remove(context.plane.store(), &[user.arn], |tag| request.tag_keys.iter().any(|k| k == tag.key()))?;
    Ok(json!({}))
}

/// `ListUserTags`.
pub(super) fn list_tags(context: &Context<'_>, request: UserPage) -> Answer {
    let user = context.plane.roles().user(&request.user_name)?;
    super::iam::tags_of(context, &user.arn, request.marker, request.max_items)
}
