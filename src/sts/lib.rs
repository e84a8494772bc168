//! Credentials of a role from an AWS-compatible STS endpoint, through the official SDK.
//!
//! A crate of its own because the SDK is larger than the rest of the control plane: only programs that
//! say so link it, and a change elsewhere does not build it again.
//!
//! The host's own credentials come from where every AWS tool looks (environment, configuration files,
//! a container's or instance's role) and go to the endpoint as signatures. What comes back is all that
//! an instance sees.

#![forbid(unsafe_code)]

use aws_config::{BehaviorVersion, Region};
use aws_sdk_sts::config::Builder;
use aws_sdk_sts::error::{DisplayErrorContext, ProvideErrorMetadata};
use aws_sdk_sts::operation::assume_role::AssumeRoleOutput;
use kiln_controlplane::credentials::{AssumeRole, AssumeRoleRequest, Credentials, Fetch, SourceError};
use kiln_controlplane::printable;
use kiln_model::Secret;

/// Region where neither role nor host names one; STS's global endpoint answers for it.
const REGION: &str = "us-east-1";
/// Error codes of STS that say "not you".
const DENIED: [&str; 2] = ["AccessDenied", "AccessDeniedException"];

/// The STS client. Reads the host's configuration anew at each call, so that changed host credentials
/// count at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sts;

impl AssumeRole for Sts {
    fn assume_role(&self, request: AssumeRoleRequest) -> Fetch<'static> {
        Box::pin(assume(request))
    }
}

async fn assume(request: AssumeRoleRequest) -> Result<Credentials, SourceError> {
    let source = request.source;
    let mut loader = aws_config::defaults(BehaviorVersion::latest());
    if let Some(profile) = &source.profile {
        loader = loader.profile_name(profile);
    }
    let host = loader.load().await;
    let mut config = Builder::from(&host);
    match source.region {
        Some(region) => config = config.region(Region::new(region)),
        None if host.region().is_none() => config = config.region(Region::from_static(REGION)),
        None => {}
    }
    if let Some(endpoint) = source.endpoint {
        config = config.endpoint_url(endpoint);
    }
    let duration = i32::try_from(request.duration).unwrap_or(i32::MAX);
    let call = aws_sdk_sts::Client::from_conf(config.build())
        .assume_role()
        .role_arn(source.role_arn)
        .role_session_name(request.session_name)
        .set_external_id(source.external_id)
        .duration_seconds(duration);
    match call.send().await {
        Ok(output) => credentials(&output),
        Err(error) => {
            let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
            let denied = code.is_some_and(|code| DENIED.contains(&code));
            let detail = printable(&match error.as_service_error().and_then(ProvideErrorMetadata::message) {
                Some(message) => format!("{}: {message}", code.unwrap_or("error")),
                // Of the connection, or of finding the host's own credentials.
                None => DisplayErrorContext(&error).to_string(),
            });
            Err(if denied { SourceError::Denied { detail } } else { SourceError::Sts { detail } })
        }
    }
}

fn credentials(output: &AssumeRoleOutput) -> Result<Credentials, SourceError> {
    let malformed = |detail: &str| SourceError::Malformed { detail: detail.to_owned() };
    let set = output.credentials().ok_or_else(|| malformed("STS answered without credentials"))?;
    let expiration = u64::try_from(set.expiration().secs()).map_err(|_| malformed("they end before 1970"))?;
    Ok(Credentials {
        access_key_id: set.access_key_id().to_owned(),
        secret_access_key: Secret::new(set.secret_access_key().to_owned()),
        session_token: Secret::new(set.session_token().to_owned()),
        expiration,
    })
}
