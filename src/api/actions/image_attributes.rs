//! Attributes of images.

use kiln_controlplane::images::Image;
use kiln_controlplane::metadata::ACCOUNT;
use kiln_model::ImageId;
use serde_json::{Value, json};

use super::attributes::Text;
use super::ids::IMAGE;
use super::{Answer, Context, devices, done, input};
use crate::error::ApiError;

input!(DescribeImageAttribute { image_id: String, attribute: String });
input!(Permission { user_id: Option<String>, group: Option<String> });
input!(Permissions { add: Vec<Permission>, remove: Vec<Permission> });
input!(ModifyImageAttribute { image_id: String, attribute: Option<String>, value: Option<String>,
    description: Option<Text>, launch_permission: Option<Permissions>, operation_type: Option<String>,
    user_ids: Vec<String>, user_groups: Vec<String> });

fn find(context: &Context<'_>, id: &str) -> Result<Image, ApiError> {
    let id: ImageId = IMAGE.parse(id)?;
    Ok(context.plane.images().find(&id.to_string())?)
}

/// `DescribeImageAttribute`.
pub(super) fn describe(context: &Context<'_>, request: DescribeImageAttribute) -> Answer {
    let image = find(context, &request.image_id)?;
    let mut answer = json!({"ImageId": image.id.to_string()});
    let (name, value) = match request.attribute.as_str() {
        "description" => ("Description", json!({"Value": image.description})),
        // It is its owner's alone, who need not be named.
        "launchPermission" => ("LaunchPermissions", json!([])),
        "productCodes" => ("ProductCodes", json!([])),
        "blockDeviceMapping" => {
            let all = std::iter::once(image.root_volume()).chain(image.devices.iter().cloned());
            ("BlockDeviceMappings", all.map(|device| devices::shown(&device)).collect())
        }
        "kernel" => ("KernelId", json!({})),
        "ramdisk" => ("RamdiskId", json!({})),
        "sriovNetSupport" => ("SriovNetSupport", json!({"Value": image.drivers.sriov})),
        "bootMode" => ("BootMode", json!({})),
        "tpmSupport" => ("TpmSupport", json!({})),
        "uefiData" => ("UefiData", json!({})),
        "lastLaunchedTime" => ("LastLaunchedTime", json!({})),
        "imdsSupport" => ("ImdsSupport", json!({})),
        _ => ("DeregistrationProtection", json!({"Value": "disabled"})),
    };
    answer[name] = value;
    Ok(answer)
}

/// There is one account: it may launch what is its own, and nobody else is there to be allowed to.
fn check_permissions(users: &[String], groups: &[String]) -> Result<(), ApiError> {
    if !groups.is_empty() {
        return Err(ApiError::unsupported("There are no other accounts for which an image could be public"));
    }
    match users.iter().find(|user| *user != ACCOUNT) {
        Some(user) => Err(ApiError::new(
            "InvalidAMIAttributeItemValue",
            format!("Invalid attribute item value \"{user}\" for userId"),
        )),
        None => Ok(()),
    }
}

/// `ModifyImageAttribute`: its description, or who may launch it.
pub(super) fn modify(context: &Context<'_>, request: ModifyImageAttribute) -> Answer {
    let image = find(context, &request.image_id)?;
    let mut users = request.user_ids;
    let mut groups = request.user_groups;
    let permissions = request.launch_permission.is_some() || !users.is_empty() || !groups.is_empty();
    if request.operation_type.is_some() && users.is_empty() && groups.is_empty() {
        return Err(ApiError::combination("An OperationType needs a UserId or a UserGroup"));
    }
    let said = request.launch_permission.unwrap_or_default();
    for permission in said.add.into_iter().chain(said.remove) {
        if permission.user_id.is_none() && permission.group.is_none() {
            return Err(ApiError::missing("LaunchPermission.UserId"));
        }
        users.extend(permission.user_id);
        groups.extend(permission.group);
    }
    let text = match (request.description, request.attribute.as_deref()) {
        (Some(text), None | Some("description")) => text.value.or(request.value),
        (None, Some("description")) => request.value,
        (None, None | Some("launchPermission")) => None,
        (_, Some(other)) => {
            return Err(ApiError::unsupported(format!("The attribute {other} cannot be modified")));
        }
    };
    match (text, permissions) {
        (Some(_), true) => Err(ApiError::combination(
            "Fields for multiple attribute types specified; a request modifies one of them",
        )),
        (None, false) => Err(ApiError::combination("No attributes specified.")),
        (None, true) => check_permissions(&users, &groups).and_then(|()| done()),
        (Some(text), false) => {
            context.plane.images().describe(image.id, &text)?;
            done()
        }
    }
}

/// Why an image could not be made.
pub(super) fn reason(image: &Image) -> Value {
    match &image.failure {
        Some(why) => {
            json!({"Code": "Client.InternalError", "Message": format!("Client.InternalError: {why}")})
        }
        None => Value::Null,
    }
}
