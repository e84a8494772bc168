//! Ways to sign in that a user of IAM can have and none here has: passwords, second factors, keys and certificates
//! of other services. Clients look for them before they remove a user.

use super::iam::paged;
use super::users::meant;
use super::{Answer, Context, input};
use crate::error::ApiError;

input!(OwnPage { user_name: Option<String>, marker: Option<String>, max_items: Option<i64> });
input!(ServicePage { user_name: Option<String>, service_name: Option<String>, all_users: Option<bool>,
    marker: Option<String>, max_items: Option<i64> });
input!(DevicePage { assignment_status: Option<String>, marker: Option<String>, max_items: Option<i64> });
input!(OwnReference { user_name: Option<String> });

/// Nothing, of a user that must be there.
fn none_of(context: &Context<'_>, request: OwnPage, member: &str) -> Answer {
    context.plane.roles().user(&meant(context, request.user_name)?)?;
    paged(Vec::new(), member, "", request.marker, request.max_items)
}

/// `ListMFADevices`.
pub(super) fn list_devices(context: &Context<'_>, request: OwnPage) -> Answer {
    none_of(context, request, "MFADevices")
}

/// `ListSSHPublicKeys`.
pub(super) fn list_ssh_keys(context: &Context<'_>, request: OwnPage) -> Answer {
    none_of(context, request, "SSHPublicKeys")
}

/// `ListSigningCertificates`.
pub(super) fn list_certificates(context: &Context<'_>, request: OwnPage) -> Answer {
    none_of(context, request, "Certificates")
}

/// `ListServiceSpecificCredentials`.
pub(super) fn list_service_credentials(context: &Context<'_>, request: ServicePage) -> Answer {
    let ServicePage { user_name, marker, max_items, .. } = request;
    none_of(context, OwnPage { user_name, marker, max_items }, "ServiceSpecificCredentials")
}

/// `ListVirtualMFADevices`.
pub(super) fn list_virtual_devices(_: &Context<'_>, request: DevicePage) -> Answer {
    paged(Vec::new(), "VirtualMFADevices", "", request.marker, request.max_items)
}

/// `GetLoginProfile` and `DeleteLoginProfile`: nobody has a password.
pub(super) fn login_profile(context: &Context<'_>, request: OwnReference) -> Answer {
    let user = context.plane.roles().user(&meant(context, request.user_name)?)?;
    let message = format!("Login Profile for User {} cannot be found.", user.name);
    Err(ApiError::new("NoSuchEntity", message))
}
