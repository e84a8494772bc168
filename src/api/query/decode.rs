//! Parameters to a value that fits a shape.
//!
//! `BlockDeviceMapping.1.Ebs.VolumeSize=8` is a path; the paths of a request make a tree, and the tree
//! is walked along the shape. What the shape does not know is an error, so no parameter is ever lost.
//! An empty value is no value, as some clients mean it, but for members that say something by being there.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::Parameters;
use crate::schema::{Bounds, List, Member, Shape};

/// Deepest path of a parameter. The model has some of 8 parts.
const MAX_DEPTH: usize = 12;
/// Most elements of one list, where the model has no tighter limit.
const MAX_ELEMENTS: usize = 1000;
/// Longest text in bytes, where the model has no tighter limit.
const MAX_TEXT: usize = 128 << 10;

/// Why parameters are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The operation has no such parameter.
    #[error("The parameter {0} is not recognized")]
    Unknown(String),
    /// The operation needs it.
    #[error("The request must contain the parameter {0}")]
    Missing(String),
    /// It cannot have that value.
    #[error("Invalid value '{value}' for {name}: {why}")]
    Value {
        /// Which parameter.
        name: String,
        /// As given, shortened.
        value: String,
        /// What is expected.
        why: String,
    },
}

impl DecodeError {
    /// Error code of EC2.
    pub fn code(&self) -> &'static str {
        match self {
            DecodeError::Unknown(_) => "UnknownParameter",
            DecodeError::Missing(_) => "MissingParameter",
            DecodeError::Value { .. } => "InvalidParameterValue",
        }
    }
}

/// The parameters below one part of a path.
#[derive(Debug, Default)]
struct Node {
    value: Option<String>,
    children: BTreeMap<String, Node>,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.value.as_ref().is_none_or(String::is_empty) && self.children.values().all(Node::is_empty)
    }
}

/// Members whose value means nothing: that they are there does.
const SAYS_BY_BEING_THERE: [&str; 1] = ["NoDevice"];

/// Where in the request: for messages.
#[derive(Clone, Copy)]
struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    part: &'a str,
}

impl Path<'_> {
    fn text(&self) -> String {
        match self.parent {
            Some(parent) if !parent.part.is_empty() => format!("{}.{}", parent.text(), self.part),
            _ => self.part.to_owned(),
        }
    }

    fn bad(&self, value: &str, why: impl Into<String>) -> DecodeError {
        let value = value.chars().take(64).collect();
        DecodeError::Value { name: self.text(), value, why: why.into() }
    }
}

/// Reads what `shape`, a structure, says from `parameters`. Names starting with a name of `ignored` are
/// the protocol's own.
pub fn decode(shape: &Shape, parameters: &Parameters, ignored: &[&str]) -> Result<Value, DecodeError> {
    let mut root = Node::default();
    for (name, value) in parameters.iter().filter(|(name, _)| !ignored.contains(&name.as_str())) {
        if name.split('.').count() > MAX_DEPTH {
            return Err(DecodeError::Unknown(name.clone()));
        }
        let node =
            name.split('.').fold(&mut root, |node, part| node.children.entry(part.into()).or_default());
        if node.value.replace(value.clone()).is_some() {
            let root = Path { parent: None, part: name };
            return Err(root.bad(value, "it is given twice"));
        }
    }
    structure(shape.members(), root, &Path { parent: None, part: "" })
}

fn structure(members: &[Member], mut node: Node, at: &Path<'_>) -> Result<Value, DecodeError> {
    let mut object = Map::new();
    for member in members {
        let at = Path { parent: Some(at), part: member.wire };
        match node.children.remove(member.wire) {
            Some(child) if !child.is_empty() => {
                object.insert(member.name.to_owned(), value(member.shape, child, &at)?);
            }
            Some(child) if child.value.is_some() && SAYS_BY_BEING_THERE.contains(&member.name) => {
                object.insert(member.name.to_owned(), Value::String(String::new()));
            }
            // Text may be empty where it must be there.
            Some(_)
                if member.required
                    && matches!(member.shape, Shape::Text(b) if b.min.is_none_or(|m| m == 0)) =>
            {
                object.insert(member.name.to_owned(), Value::String(String::new()));
            }
            _ if member.required => return Err(DecodeError::Missing(at.text())),
            _ => {}
        }
    }
    no_rest(&node, at)?;
    Ok(Value::Object(object))
}

/// Whatever was not taken is unknown, be it empty.
fn no_rest(node: &Node, at: &Path<'_>) -> Result<(), DecodeError> {
    if node.value.as_ref().is_some_and(|value| !value.is_empty()) {
        return Err(DecodeError::Unknown(at.text()));
    }
    match node.children.first_key_value() {
        Some((part, _)) => Err(DecodeError::Unknown(Path { parent: Some(at), part }.text())),
        None => Ok(()),
    }
}

fn list(list: &List, mut node: Node, at: &Path<'_>) -> Result<Value, DecodeError> {
    if !list.flat {
        let inner = node.children.remove(list.element).unwrap_or_default();
        no_rest(&node, at)?;
        node = inner;
    }
    let mut elements = BTreeMap::new();
    for (part, child) in node.children {
        let at = Path { parent: Some(at), part: &part };
        let index: u32 = part.parse().map_err(|_| DecodeError::Unknown(at.text()))?;
        if index == 0 || elements.insert(index, value(list.shape, child, &at)?).is_some() {
            return Err(DecodeError::Unknown(at.text()));
        }
    }
    if let Some(value) = node.value.filter(|value| !value.is_empty()) {
        return Err(at.bad(&value, "it is a list"));
    }
    within(list.bounds, elements.len(), MAX_ELEMENTS, "elements").map_err(|why| at.bad("", why))?;
    Ok(Value::Array(elements.into_values().collect()))
}

fn value(shape: &Shape, node: Node, at: &Path<'_>) -> Result<Value, DecodeError> {
    match shape {
        Shape::Structure(members) => return structure(members, node, at),
        Shape::List(shape) => return list(shape, node, at),
        _ => {}
    }
    let text = node.value.unwrap_or_default();
    no_rest(&Node { value: None, children: node.children }, at)?;
    scalar(shape, text).map_err(|(text, why)| at.bad(&text, why))
}

fn scalar(shape: &Shape, text: String) -> Result<Value, (String, String)> {
    let bad = |text: &str, why: &str| Err((text.to_owned(), why.to_owned()));
    match shape {
        Shape::Text(bounds) => match within(*bounds, text.chars().count(), MAX_TEXT, "characters") {
            Ok(()) => Ok(Value::String(text)),
            Err(why) => Err((text, why)),
        },
        Shape::Choice(words) => match words.contains(&text.as_str()) {
            true => Ok(Value::String(text)),
            false => Err((text, format!("expected {}", words.join(", ")))),
        },
        Shape::Integer(bounds) => match text.parse::<i64>() {
            Err(_) => bad(&text, "expected an integer"),
            Ok(n) if bounds.min.is_some_and(|min| n < min) || bounds.max.is_some_and(|max| n > max) => {
                bad(&text, "it is out of range")
            }
            Ok(n) => Ok(n.into()),
        },
        Shape::Number => match text.parse::<f64>() {
            Ok(n) if n.is_finite() => Ok(n.into()),
            _ => bad(&text, "expected a number"),
        },
        Shape::Boolean => match text.as_str() {
            "true" | "True" | "1" => Ok(true.into()),
            "false" | "False" | "0" => Ok(false.into()),
            _ => bad(&text, "expected true or false"),
        },
        Shape::Timestamp => match kiln_model::Utc::parse_rfc3339(&text) {
            Some(_) => Ok(Value::String(text)),
            None => bad(&text, "expected an ISO 8601 time"),
        },
        Shape::Blob => match STANDARD.decode(&text) {
            Ok(bytes) if bytes.len() <= MAX_TEXT => Ok(Value::String(text)),
            _ => bad("(bytes)", "expected base64"),
        },
        Shape::Structure(_) | Shape::List(_) => bad(&text, "expected further parts of a name"),
    }
}

fn within(bounds: Bounds, count: usize, most: usize, what: &str) -> Result<(), String> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let most = bounds.max.unwrap_or(i64::try_from(most).unwrap_or(i64::MAX));
    let least = bounds.min.unwrap_or(0);
    if (least..=most).contains(&count) { Ok(()) } else { Err(format!("expected {least} to {most} {what}")) }
}
