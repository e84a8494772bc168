//! Instance profiles of instances, as EC2 sees them.

use std::sync::Arc;

use kiln_controlplane::credentials::{Association, InstanceProfile};
use kiln_controlplane::instances::Instance;
use kiln_controlplane::state::{Rows, rows};
use kiln_model::InstanceId;
use serde_json::{Value, json};

use super::ids::INSTANCE;
use super::listing::{self, Filters, listing};
use super::{Answer, Context, input, parse};
use crate::error::ApiError;

input!(ProfileReference { arn: Option<String>, name: Option<String> });
input!(AssociateIamInstanceProfile { iam_instance_profile: ProfileReference, instance_id: String });
input!(DisassociateIamInstanceProfile { association_id: String });
input!(ReplaceIamInstanceProfileAssociation {
    iam_instance_profile: ProfileReference,
    association_id: String
});
listing!(DescribeIamInstanceProfileAssociations { association_ids: Vec<String> });

const FILTERS: &Filters = &[("instance-id", "InstanceId"), ("state", "State")];

/// The profile that a request means. What is wrong has the words that clients wait and retry on.
pub(super) fn find(context: &Context<'_>, wanted: &ProfileReference) -> Result<InstanceProfile, ApiError> {
    let all = context.plane.roles().profiles()?;
    let (found, shown) = match (&wanted.name, &wanted.arn) {
        (Some(_), Some(_)) => {
            return Err(ApiError::combination("Name an instance profile by name or ARN, not both"));
        }
        (Some(name), None) => {
            (all.into_iter().find(|p| p.name.as_str().eq_ignore_ascii_case(name)), format!("name ({name})"))
        }
        (None, Some(arn)) => (all.into_iter().find(|p| p.arn == *arn), format!("ARN ({arn})")),
        (None, None) => return Err(ApiError::missing("IamInstanceProfile.Name")),
    };
    let (what, value) = shown.split_once(' ').unwrap_or_default();
    found.ok_or_else(|| {
        let parameter = if what == "name" { "iamInstanceProfile.name" } else { "iamInstanceProfile.arn" };
        let value = value.trim_matches(['(', ')']);
        ApiError::value(format!(
            "Value ({value}) for parameter {parameter} is invalid. Invalid IAM Instance Profile {what}"
        ))
    })
}

/// The role that a request gives to an instance, or puts into a profile.
pub(crate) fn passed_role(
    context: &Context<'_>,
    service: &str,
    action: &str,
    input: &Value,
) -> Result<Option<String>, ApiError> {
    match (service, action) {
        ("iam", "AddRoleToInstanceProfile") => {
            Ok(input.get("RoleName").and_then(Value::as_str).map(str::to_owned))
        }
        ("ec2", "RunInstances" | "AssociateIamInstanceProfile" | "ReplaceIamInstanceProfileAssociation") => {
            let Some(wanted) = input.get("IamInstanceProfile") else { return Ok(None) };
            let profile = find(context, &parse(wanted.clone())?)?;
            Ok(profile.role.map(|role| role.as_str().to_owned()))
        }
        _ => Ok(None),
    }
}

/// How an instance shows its profile.
pub(super) fn specification(profiles: &Rows<InstanceProfile>, association: &Association) -> Value {
    let profile = profiles.get(&association.profile.folded());
    json!({"Arn": profile.map(|p| p.arn.as_str()), "Id": profile.map(|p| p.id.as_str())})
}

fn shown(id: InstanceId, association: &Association, profiles: &Rows<InstanceProfile>, state: &str) -> Value {
    json!({
        "AssociationId": association.id, "InstanceId": id.to_string(), "State": state,
        "IamInstanceProfile": specification(profiles, association),
    })
}

fn answer(context: &Context<'_>, id: InstanceId, association: &Association, state: &str) -> Answer {
    let profiles = rows(context.plane.store())?;
    Ok(json!({"IamInstanceProfileAssociation": shown(id, association, &profiles, state)}))
}

fn holder(context: &Context<'_>, association: &str) -> Result<Instance, ApiError> {
    Ok(context.plane.find_association(association)?)
}

/// `AssociateIamInstanceProfile`.
pub(super) fn associate(context: &Context<'_>, request: AssociateIamInstanceProfile) -> Answer {
    let id: InstanceId = INSTANCE.parse(&request.instance_id)?;
    let profile = find(context, &request.iam_instance_profile)?;
    let association = context.plane.associate_profile(id, profile.name.as_str())?;
    answer(context, id, &association, "associating")
}

/// `ReplaceIamInstanceProfileAssociation`.
pub(super) fn replace(context: &Context<'_>, request: ReplaceIamInstanceProfileAssociation) -> Answer {
    let instance = holder(context, &request.association_id)?;
    let profile = find(context, &request.iam_instance_profile)?;
    let association = context.plane.replace_profile(instance.id, profile.name.as_str())?;
    answer(context, instance.id, &association, "associating")
}

/// `DisassociateIamInstanceProfile`.
pub(super) fn disassociate(context: &Context<'_>, request: DisassociateIamInstanceProfile) -> Answer {
    let instance = holder(context, &request.association_id)?;
    let association = context.plane.disassociate_profile(instance.id)?;
    answer(context, instance.id, &association, "disassociating")
}

/// `DescribeIamInstanceProfileAssociations`.
pub(super) fn describe(context: &Context<'_>, mut request: DescribeIamInstanceProfileAssociations) -> Answer {
    let profiles = rows(context.plane.store())?;
    let instances = context.plane.instance_rows()?;
    let one = |i: &Arc<Instance>| i.profile.as_ref().map(|there| shown(i.id, there, &profiles, "associated"));
    let mut items: Vec<_> = instances.iter().filter_map(one).collect();
    listing::select_names(&mut items, &request.association_ids, "AssociationId", |id| {
        ApiError::new("InvalidAssociationID.NotFound", format!("The association ID '{id}' does not exist"))
    })?;
    listing::answer(items, request.wish(), FILTERS, "IamInstanceProfileAssociations", "AssociationId")
}
