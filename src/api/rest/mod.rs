//! The REST protocol with JSON, as the EBS direct APIs have it: requests to checked values and back.
//!
//! ```text
//!   path, query, x-amz- headers, JSON ─gather─▶ names and values ─query::decode─▶ checked Value
//!   Value ─write─▶ x-amz- headers and JSON, or the bytes of a block
//! ```
//! What a request says is made names and values as a form has them, so that one decoder checks both protocols.

mod error;
mod request;

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::schema::Operation;

pub(crate) use error::failure;
pub(crate) use request::{find, gather, serves};

/// The one operation whose body is bytes. They are no part of the signature, if the client says so: the checksum
/// of them is.
const PUT: &str = "PutSnapshotBlock";
/// What members begin with that are headers.
const HEADER: &str = "x-amz-";

/// What an operation answers: a value of the model, and the bytes that are the body instead of JSON.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Members by their names.
    pub value: Value,
    /// Bytes of a block.
    pub block: Option<Vec<u8>>,
}

/// An answer, or an error, as it is sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub kind: &'static str,
    /// Names and values.
    pub headers: Vec<(&'static str, String)>,
    /// All of it.
    pub body: Vec<u8>,
}

const JSON: &str = "application/json";

/// Writes what an operation answers; an error would be a mistake of ours.
pub(crate) fn write(operation: &Operation, status: u16, reply: Reply) -> Result<Written, ApiError> {
    let Value::Object(members) = reply.value else { return Err(mismatch(operation, "its answer")) };
    let (mut headers, mut body) = (Vec::new(), Map::new());
    for (name, value) in members.into_iter().filter(|(_, value)| !value.is_null()) {
        let member = operation.output.member(&name).ok_or_else(|| mismatch(operation, &name))?;
        if !member.location.starts_with(HEADER) {
            body.insert(member.location.to_owned(), value);
            continue;
        }
        let text = match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        headers.push((member.location, text));
    }
    Ok(match reply.block {
        Some(body) => Written { status, kind: "application/octet-stream", headers, body },
        None => Written { status, kind: JSON, headers, body: Value::Object(body).to_string().into_bytes() },
    })
}

fn mismatch(operation: &Operation, name: &str) -> ApiError {
    tracing::error!(operation = operation.name, member = name, "an answer does not fit the service model");
    ApiError::new("InternalError", "An internal error has occurred; the log of kilnd says which")
}

#[cfg(test)]
mod tests;
