//! From a request to the operation that it means, and to its parameters.

use serde_json::Value;

use super::{HEADER, PUT};
use crate::error::ApiError;
use crate::query::{DecodeError, Parameters};
use crate::schema::{EBS, EBS_ROUTES, Operation};

/// First part of every path.
const ROOT: &str = "/snapshots";
/// Longest name of a member in bytes, with those that it is in.
const MAX_NAME: usize = 256;

/// The operation that a request means.
#[derive(Debug)]
pub(crate) struct Target {
    /// Itself.
    pub operation: &'static Operation,
    /// Status of its answer.
    pub status: u16,
    /// What the path says.
    path: Parameters,
}

impl Target {
    /// Whether its body is the bytes of a block.
    pub(crate) fn takes_block(&self) -> bool {
        self.operation.name == PUT
    }
}

/// Whether a path is one of this protocol, be there an operation or not.
pub(crate) fn serves(path: &str) -> bool {
    path.strip_prefix(ROOT).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Finds the operation of a path. What the path says is taken as it is: no id has anything to encode.
pub(crate) fn find(method: &str, path: &str) -> Option<Target> {
    EBS_ROUTES.iter().filter(|route| route.method == method).find_map(|route| {
        let (mut said, mut parameters) = (path.split('/'), Vec::new());
        for part in route.path.split('/') {
            let own = said.next()?;
            match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
                Some(name) if !own.is_empty() => parameters.push((name.to_owned(), own.to_owned())),
                None if own == part => {}
                _ => return None,
            }
        }
        let operation = said.next().is_none().then(|| EBS.operation(route.operation))??;
        Some(Target { operation, status: route.status, path: parameters })
    })
}

/// All parameters of a request. What the operation does not know is for the decoder to refuse.
pub(crate) fn gather(
    target: &Target,
    query: &Parameters,
    headers: &[(String, String)],
    body: &[u8],
) -> Result<Parameters, ApiError> {
    let mut parameters = target.path.clone();
    let members = target.operation.input.members();
    let in_body = |name: &str| members.iter().any(|member| member.name == name && member.wire == name);
    for (name, value) in query {
        if in_body(name) || name.starts_with(HEADER) || name.contains('.') {
            return Err(unknown(name).into());
        }
        parameters.push((name.clone(), value.clone()));
    }
    for member in members.iter().filter(|member| member.wire.starts_with(HEADER)) {
        let own = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(member.wire));
        parameters.extend(own.map(|(_, value)| (member.wire.to_owned(), value.trim().to_owned())));
    }
    if target.takes_block() || body.is_empty() {
        return Ok(parameters);
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(said)) => {
            for (name, value) in &said {
                if !in_body(name) {
                    return Err(unknown(name).into());
                }
                flatten(&mut parameters, name, value)?;
            }
            Ok(parameters)
        }
        _ => Err(ApiError::new("SerializationException", "The body of the request is no JSON object")),
    }
}

fn unknown(name: &str) -> DecodeError {
    DecodeError::Unknown(name.chars().take(64).collect())
}

/// A member of a JSON document as a form would have it: `Tags.1.Key`. As deep as names are long.
fn flatten(parameters: &mut Parameters, name: &str, value: &Value) -> Result<(), DecodeError> {
    if name.len() > MAX_NAME {
        return Err(unknown(name));
    }
    let mut put = |value: String| {
        parameters.push((name.to_owned(), value));
        Ok(())
    };
    match value {
        Value::Null => Ok(()),
        Value::Bool(value) => put(value.to_string()),
        Value::Number(value) => put(value.to_string()),
        Value::String(value) => put(value.clone()),
        Value::Array(values) => {
            let mut numbered = (1u32..).zip(values);
            numbered.try_for_each(|(at, value)| flatten(parameters, &format!("{name}.{at}"), value))
        }
        Value::Object(members) => members.iter().try_for_each(|(own, value)| {
            match own.contains('.') {
                // It would be taken for a path.
                true => Err(unknown(own)),
                false => flatten(parameters, &format!("{name}.{own}"), value),
            }
        }),
    }
}
