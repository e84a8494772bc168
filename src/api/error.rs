//! Errors as clients see them: a code, a message, a status, in the dialect of the service.

use std::borrow::Cow;

use kiln_controlplane::credentials::RoleError;
use kiln_controlplane::instances::{InstanceError, ModifyError};
use kiln_controlplane::key_pairs::KeyPairError;
use kiln_controlplane::launch_templates::LaunchTemplateError;
use kiln_controlplane::network::NetworkError;
use kiln_controlplane::state::StoreError;
use kiln_controlplane::tags::TagError;
use kiln_controlplane::volumes::VolumeError;

use crate::query::{DecodeError, FormError, escape};
use crate::schema::Service;

/// What went wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    /// Such as `InvalidVpcID.NotFound`.
    pub code: Cow<'static, str>,
    /// One line.
    pub message: String,
}

impl ApiError {
    pub(crate) fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        ApiError { code: code.into(), message: message.into() }
    }

    /// A value that makes no sense.
    pub(crate) fn value(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterValue", message)
    }

    /// Parameters that make no sense together.
    pub(crate) fn combination(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterCombination", message)
    }

    /// A parameter that must be there.
    pub(crate) fn missing(name: &str) -> Self {
        Self::new("MissingParameter", format!("The request must contain the parameter {name}"))
    }

    /// Part of the API that Kiln does not have.
    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new("UnsupportedOperation", message)
    }

    /// A failure of the host. The cause is in the log.
    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut chain = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            chain.push_str(&format!(": {cause}"));
            next = cause.source();
        }
        tracing::error!(error = chain, "a request failed");
        Self::new("InternalError", "An internal error has occurred; the log of kilnd says which")
    }

    /// HTTP status.
    pub(crate) fn status(&self) -> u16 {
        match self.code.as_ref() {
            "AuthFailure" => 401,
            "UnauthorizedOperation"
            | "AccessDenied"
            | "InvalidClientTokenId"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "MissingAuthenticationToken"
            | "IncompleteSignature" => 403,
            "NoSuchEntity" => 404,
            "EntityAlreadyExists" | "LimitExceeded" | "DeleteConflict" => 409,
            "DryRunOperation" => 412,
            "RequestEntityTooLarge" => 413,
            "InternalError" | "ServiceFailure" | "InsufficientInstanceCapacity" => 500,
            "Unavailable" | "RequestLimitExceeded" => 503,
            _ => 400,
        }
    }

    /// The whole answer, in the dialect of `service`.
    pub(crate) fn to_xml(&self, service: &Service, request_id: &str) -> String {
        let mut body = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let mut inner = String::from("<Code>");
        escape(&self.code, &mut inner);
        inner.push_str("</Code><Message>");
        escape(&self.message, &mut inner);
        inner.push_str("</Message>");
        body.push_str(&match service.name {
            "ec2" => format!(
                "<Response><Errors><Error>{inner}</Error></Errors><RequestID>{request_id}</RequestID></Response>"
            ),
            _ => {
                let kind = if self.status() < 500 { "Sender" } else { "Receiver" };
                let namespace = service.namespace;
                format!(
                    "<ErrorResponse xmlns=\"{namespace}\"><Error><Type>{kind}</Type>{inner}</Error>\
                     <RequestId>{request_id}</RequestId></ErrorResponse>"
                )
            }
        });
        body
    }
}

impl From<DecodeError> for ApiError {
    fn from(error: DecodeError) -> Self {
        ApiError::new(error.code(), error.to_string())
    }
}

impl From<FormError> for ApiError {
    fn from(error: FormError) -> Self {
        ApiError::new("MalformedQueryString", error.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        ApiError::internal(&error)
    }
}

/// Errors of services that name their own code.
macro_rules! coded {
    ($($error:ty),*) => {
        $(impl From<$error> for ApiError {
            fn from(error: $error) -> Self {
                match error.code() {
                    "InternalError" | "ServiceFailure" => ApiError::internal(&error),
                    code => ApiError::new(code, error.to_string()),
                }
            }
        })*
    };
}

coded!(NetworkError, RoleError, ModifyError, KeyPairError, VolumeError, LaunchTemplateError);

impl From<TagError> for ApiError {
    fn from(error: TagError) -> Self {
        match error {
            TagError::TooMany { .. } => ApiError::new("TagLimitExceeded", error.to_string()),
            TagError::Store(error) => error.into(),
        }
    }
}

impl From<InstanceError> for ApiError {
    fn from(error: InstanceError) -> Self {
        ModifyError::Instance(error).into()
    }
}
