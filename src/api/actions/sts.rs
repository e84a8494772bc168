//! Who one is, and sessions of roles.

use kiln_controlplane::credentials::{Principal, SourceSpec, TrustPolicy};
use kiln_controlplane::metadata::ACCOUNT;
use serde_json::json;

use super::{Answer, Context, input};
use crate::auth::Kind;
use crate::error::ApiError;

/// Seconds of a session when nothing is said, and the least there are.
const DEFAULT_DURATION: u64 = 3600;
const MIN_DURATION: u64 = 900;

input!(GetCallerIdentity {});
input!(AssumeRole { role_arn: String, role_session_name: String, duration_seconds: Option<u64>,
    external_id: Option<String> });

/// `GetCallerIdentity`.
pub(super) fn identity(context: &Context<'_>, _: GetCallerIdentity) -> Answer {
    Ok(json!({"Account": ACCOUNT, "Arn": context.caller.arn, "UserId": context.caller.id}))
}

/// `AssumeRole`: by the account, and by sessions that the role's trust policy names.
pub(super) fn assume_role(context: &Context<'_>, request: AssumeRole) -> Answer {
    let denied = || {
        let message = format!(
            "{} is not authorized to perform sts:AssumeRole on {}",
            context.caller.arn, request.role_arn
        );
        ApiError::new("AccessDenied", message)
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_=,.@-".contains(c);
    let session = &request.role_session_name;
    if !session.chars().all(allowed) {
        return Err(ApiError::new("ValidationError", "A session's name has letters, digits and _ = , . @ -"));
    }
    let all = context.plane.roles().list()?;
    // Whether there is such a role is nobody's business.
    let role = all.into_iter().find(|role| role.arn == request.role_arn).ok_or_else(denied)?;
    if let Kind::Role(own) = &context.caller.kind {
        let trust = context.plane.roles().policies(role.name.as_str())?.trust.unwrap_or_default();
        let names = [
            context.caller.arn.clone(),
            format!("arn:aws:iam::{ACCOUNT}:role/{own}"),
            format!("arn:aws:iam::{ACCOUNT}:root"),
            ACCOUNT.to_owned(),
        ];
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        if !TrustPolicy::parse(&trust).is_ok_and(|policy| policy.trusts(&names)) {
            return Err(denied());
        }
    }
    if role.source != SourceSpec::Issuer {
        return Err(ApiError::new(
            "UnsupportedOperation",
            "The credentials of this role are not issued by Kiln",
        ));
    }
    let seconds = request.duration_seconds.unwrap_or(DEFAULT_DURATION);
    if !(MIN_DURATION..=role.lifetime.seconds()).contains(&seconds) {
        let message = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.";
        return Err(ApiError::new("ValidationError", message));
    }
    let principal = Principal {
        arn: format!("arn:aws:sts::{ACCOUNT}:assumed-role/{}/{session}", role.name),
        id: format!("{}:{session}", role.id),
    };
    let set = context
        .auth
        .issuer()
        .issue_for(&principal, seconds, context.now)
        .map_err(|e| ApiError::internal(&e))?;
    Ok(json!({
        "AssumedRoleUser": {"Arn": principal.arn, "AssumedRoleId": principal.id},
        "Credentials": {
            "AccessKeyId": set.access_key_id, "SecretAccessKey": set.secret_access_key.expose(),
            "SessionToken": set.session_token.expose(), "Expiration": set.expiration,
        },
    }))
}
