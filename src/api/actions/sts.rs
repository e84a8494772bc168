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
/// Seconds of a user's session when nothing is said, and the most there are.
const DEFAULT_SESSION: u64 = 12 * 3600;
const MAX_SESSION: u64 = 36 * 3600;

input!(GetCallerIdentity {});
input!(GetSessionToken { duration_seconds: Option<u64> });
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
    if context.caller.kind != Kind::Root {
        let trust = context.plane.roles().policies(role.name.as_str())?.trust.unwrap_or_default();
        let names = [
            context.caller.arn.clone(),
            context.caller.principal(),
            format!("arn:aws:iam::{ACCOUNT}:root"),
            ACCOUNT.to_owned(),
        ];
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let mut known = context.caller.context(context.source, context.now);
        if let Some(id) = request.external_id {
            known = known.with("sts:ExternalId", id);
        }
        if !TrustPolicy::parse(&trust).is_ok_and(|policy| policy.trusts(&names, &known)) {
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
    let credentials = issued(context, &principal, seconds)?;
    Ok(json!({
        "AssumedRoleUser": {"Arn": principal.arn, "AssumedRoleId": principal.id}, "Credentials": credentials,
    }))
}

fn issued(context: &Context<'_>, principal: &Principal, seconds: u64) -> Answer {
    let set = context.auth.issuer().issue_for(principal, seconds, context.now);
    let set = set.map_err(|e| ApiError::internal(&e))?;
    Ok(json!({
        "AccessKeyId": set.access_key_id, "SecretAccessKey": set.secret_access_key.expose(),
        "SessionToken": set.session_token.expose(), "Expiration": set.expiration,
    }))
}

/// `GetSessionToken`: of a user, by its own key.
pub(super) fn session_token(context: &Context<'_>, request: GetSessionToken) -> Answer {
    if !matches!(context.caller.kind, Kind::User { temporary: false, .. }) {
        return Err(ApiError::new(
            "AccessDenied",
            "Only users get session tokens, with their own access keys",
        ));
    }
    let seconds = request.duration_seconds.unwrap_or(DEFAULT_SESSION);
    if !(MIN_DURATION..=MAX_SESSION).contains(&seconds) {
        let message = format!("DurationSeconds is {MIN_DURATION} to {MAX_SESSION}");
        return Err(ApiError::new("ValidationError", message));
    }
    let principal = Principal { arn: context.caller.arn.clone(), id: context.caller.id.clone() };
    Ok(json!({"Credentials": issued(context, &principal, seconds)?}))
}
