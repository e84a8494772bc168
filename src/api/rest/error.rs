//! Errors in the words of the EBS direct APIs: an exception, mostly with a reason.

use serde_json::{Map, Value};

use super::{JSON, Written};
use crate::error::ApiError;

/// Longest message in characters.
const MAX_MESSAGE: usize = 256;

/// Reasons of a `ValidationException` that codes of ours are.
const REASONS: [&str; 9] = [
    "INVALID_BLOCK",
    "INVALID_BLOCK_TOKEN",
    "INVALID_PAGE_TOKEN",
    "INVALID_PARAMETER_VALUE",
    "INVALID_SNAPSHOT_ID",
    "INVALID_TAG",
    "INVALID_VOLUME_SIZE",
    "UNRELATED_SNAPSHOTS",
    "WRITE_REQUEST_TIMEOUT",
];

/// The exception for a code of ours, its reason and its status.
fn exception(code: &str) -> (&'static str, Option<&'static str>, u16) {
    match code {
        "AccessDenied" => ("AccessDeniedException", Some("UNAUTHORIZED_ACCOUNT"), 403),
        "MissingAuthenticationToken" => ("MissingAuthenticationTokenException", None, 403),
        "IncompleteSignature" => ("IncompleteSignatureException", None, 403),
        "SignatureDoesNotMatch" => ("InvalidSignatureException", None, 403),
        "InvalidClientTokenId" => ("UnrecognizedClientException", None, 403),
        "ExpiredToken" => ("ExpiredTokenException", None, 403),
        "UnknownOperation" => ("UnknownOperationException", None, 404),
        "SerializationException" => ("SerializationException", None, 400),
        "InvalidSnapshot.NotFound" => ("ResourceNotFoundException", Some("SNAPSHOT_NOT_FOUND"), 404),
        "IdempotentParameterMismatch" => ("ConflictException", None, 409),
        "ConcurrentLimitExceeded" => ("ConcurrentLimitExceededException", None, 400),
        "SnapshotLimitExceeded" => {
            ("ServiceQuotaExceededException", Some("DEPENDENCY_SERVICE_QUOTA_EXCEEDED"), 402)
        }
        "Unavailable" => ("RequestThrottledException", Some("ACCOUNT_THROTTLED"), 400),
        "InternalError" | "ServiceFailure" => ("InternalServerException", None, 500),
        "IncorrectState" | "InvalidSnapshotID.Malformed" => validation("INVALID_SNAPSHOT_ID"),
        "TagLimitExceeded" => validation("INVALID_TAG"),
        _ => validation(REASONS.iter().find(|reason| **reason == code).unwrap_or(&"INVALID_PARAMETER_VALUE")),
    }
}

fn validation(reason: &'static str) -> (&'static str, Option<&'static str>, u16) {
    ("ValidationException", Some(reason), 400)
}

/// The whole answer.
pub(crate) fn failure(error: &ApiError) -> Written {
    let (exception, reason, status) = exception(&error.code);
    let mut body = Map::new();
    body.insert("Message".to_owned(), error.message.chars().take(MAX_MESSAGE).collect::<String>().into());
    body.extend(reason.map(|reason| ("Reason".to_owned(), Value::from(reason))));
    Written {
        status,
        kind: JSON,
        headers: vec![("x-amzn-errortype", exception.to_owned())],
        body: Value::Object(body).to_string().into_bytes(),
    }
}
