//! Groups of users, as IAM has them.

use kiln_controlplane::credentials::UserGroup;
use serde_json::{Value, json};

use super::iam::{Pages, encoded, name, only_root_path, outside, paged};
use super::managed_policies::attached;
use super::{Answer, Context, input, users};
use crate::error::ApiError;

input!(CreateGroup { group_name: String, path: Option<String> });
input!(GroupReference { group_name: String });
input!(GroupPage { group_name: String, path_prefix: Option<String>, marker: Option<String>, max_items: Option<i64> });
input!(UserPage { user_name: String, marker: Option<String>, max_items: Option<i64> });
input!(Membership { group_name: String, user_name: String });
input!(PolicyReference { group_name: String, policy_name: String });
input!(PutGroupPolicy { group_name: String, policy_name: String, policy_document: String });
input!(OfGroup { group_name: String, policy_arn: String });

fn shown(group: &UserGroup) -> Value {
    json!({
        "Path": "/", "GroupName": group.name.as_str(), "GroupId": group.id, "Arn": group.arn,
        "CreateDate": group.created,
    })
}

/// `CreateGroup`.
pub(super) fn create(context: &Context<'_>, request: CreateGroup) -> Answer {
    only_root_path(request.path.as_deref())?;
    let group = context.plane.roles().create_group(&name(&request.group_name)?)?;
    Ok(json!({"Group": shown(&group)}))
}

/// `GetGroup`.
pub(super) fn get(context: &Context<'_>, request: GroupPage) -> Answer {
    let (group, members) = context.plane.roles().group(&request.group_name)?;
    let items = members.iter().map(users::shown_in_list).collect();
    let mut answer = paged(items, "Users", "UserName", request.marker, request.max_items)?;
    answer["Group"] = shown(&group);
    Ok(answer)
}

/// `DeleteGroup`.
pub(super) fn delete(context: &Context<'_>, request: GroupReference) -> Answer {
    context.plane.roles().delete_group(&request.group_name)?;
    Ok(json!({}))
}

/// `ListGroups`.
pub(super) fn list(context: &Context<'_>, request: Pages) -> Answer {
    let all = match outside(request.path_prefix.as_deref()) {
        true => Vec::new(),
        false => context.plane.roles().groups()?,
    };
    let items = all.iter().map(shown).collect();
    paged(items, "Groups", "GroupName", request.marker, request.max_items)
}

/// `ListGroupsForUser`.
pub(super) fn of_user(context: &Context<'_>, request: UserPage) -> Answer {
    let items = context.plane.roles().groups_of_user(&request.user_name)?.iter().map(shown).collect();
    paged(items, "Groups", "GroupName", request.marker, request.max_items)
}

/// `AddUserToGroup`.
pub(super) fn add_user(context: &Context<'_>, request: Membership) -> Answer {
    context.plane.roles().add_to_group(&request.group_name, &request.user_name)?;
    Ok(json!({}))
}

/// `RemoveUserFromGroup`.
pub(super) fn remove_user(context: &Context<'_>, request: Membership) -> Answer {
    context.plane.roles().remove_from_group(&request.group_name, &request.user_name)?;
    Ok(json!({}))
}

/// `PutGroupPolicy`.
pub(super) fn put_policy(context: &Context<'_>, request: PutGroupPolicy) -> Answer {
    let policy = name(&request.policy_name)?;
    context.plane.roles().put_group_policy(&request.group_name, &policy, &request.policy_document)?;
    Ok(json!({}))
}

/// `GetGroupPolicy`.
pub(super) fn get_policy(context: &Context<'_>, request: PolicyReference) -> Answer {
    let (group, _) = context.plane.roles().group(&request.group_name)?;
    let document = group.policies.inline.get(&request.policy_name).ok_or_else(|| {
        let message = format!("The group policy with name {} cannot be found.", request.policy_name);
        ApiError::new("NoSuchEntity", message)
    })?;
    Ok(json!({
        "GroupName": group.name.as_str(), "PolicyName": request.policy_name, "PolicyDocument": encoded(document),
    }))
}

/// `DeleteGroupPolicy`.
pub(super) fn delete_policy(context: &Context<'_>, request: PolicyReference) -> Answer {
    context.plane.roles().delete_group_policy(&request.group_name, &request.policy_name)?;
    Ok(json!({}))
}

/// `ListGroupPolicies`.
pub(super) fn list_policies(context: &Context<'_>, request: GroupPage) -> Answer {
    let (group, _) = context.plane.roles().group(&request.group_name)?;
    let items = group.policies.inline.into_keys().map(Value::from).collect();
    paged(items, "PolicyNames", "", request.marker, request.max_items)
}

/// `AttachGroupPolicy`.
pub(super) fn attach(context: &Context<'_>, request: OfGroup) -> Answer {
    context.plane.roles().attach_to_group(&request.group_name, &request.policy_arn)?;
    Ok(json!({}))
}

/// `DetachGroupPolicy`.
pub(super) fn detach(context: &Context<'_>, request: OfGroup) -> Answer {
    context.plane.roles().detach_from_group(&request.group_name, &request.policy_arn)?;
    Ok(json!({}))
}

/// `ListAttachedGroupPolicies`.
pub(super) fn list_attached(context: &Context<'_>, request: GroupPage) -> Answer {
    let all = context.plane.roles().managed_of_group(&request.group_name)?;
    attached(&all, request.path_prefix.as_deref(), request.marker, request.max_items)
}
