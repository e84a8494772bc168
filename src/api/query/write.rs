//! A value that fits a shape, as XML.

use kiln_model::Utc;
use serde_json::Value;

use crate::schema::{Operation, Service, Shape};

/// A value that does not fit: a mistake of ours, never of a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the answer does not fit the service model at {path}: {why}")]
pub struct Mismatch {
    path: String,
    why: &'static str,
}

impl Mismatch {
    fn new(why: &'static str) -> Self {
        Mismatch { path: String::new(), why }
    }

    fn below(mut self, part: &str) -> Self {
        self.path = if self.path.is_empty() { part.to_owned() } else { format!("{part}.{}", self.path) };
        self
    }
}

/// Writes the contents of an element. `null` is nothing.
pub fn write(shape: &Shape, value: &Value, out: &mut String) -> Result<(), Mismatch> {
    match (shape, value) {
        (_, Value::Null) => {}
        (Shape::Structure(members), Value::Object(object)) => {
            if let Some(name) = object.keys().find(|name| !members.iter().any(|m| m.name == name.as_str())) {
                return Err(Mismatch::new("no such member").below(name));
            }
            // In the order of the model.
            for member in *members {
                match object.get(member.name) {
                    None | Some(Value::Null) => {}
                    Some(value) => element(member.location, out, |out| write(member.shape, value, out))
                        .map_err(|e| e.below(member.name))?,
                }
            }
        }
        (Shape::List(list), Value::Array(elements)) => {
            for value in elements {
                element(list.element, out, |out| write(list.shape, value, out))
                    .map_err(|e| e.below(list.element))?;
            }
        }
        // The words of the model are not all that the service says: an internet gateway is `available`.
        (Shape::Text(_) | Shape::Choice(_) | Shape::Blob, Value::String(text)) => escape(text, out),
        (Shape::Integer(_), Value::Number(n)) if n.is_i64() || n.is_u64() => out.push_str(&n.to_string()),
        (Shape::Number, Value::Number(n)) => out.push_str(&n.to_string()),
        (Shape::Boolean, Value::Bool(b)) => out.push_str(if *b { "true" } else { "false" }),
        (Shape::Timestamp, Value::Number(n)) => match n.as_u64() {
            Some(seconds) => out.push_str(&timestamp(seconds)),
            None => return Err(Mismatch::new("not a moment")),
        },
        _ => return Err(Mismatch::new("of another kind")),
    }
    Ok(())
}

/// A whole answer: the value with what the protocol puts around it.
pub fn envelope(
    service: &Service,
    operation: &Operation,
    value: &Value,
    request_id: &str,
) -> Result<String, Mismatch> {
    let mut contents = String::new();
    write(operation.output, value, &mut contents)?;
    let (name, namespace) = (operation.name, service.namespace);
    let inner = match (service.name, operation.wrapper) {
        ("ec2", _) => {
            // Actions that have nothing to say, say that it is done.
            let plain = operation.output.members().is_empty()
                || operation.output.member("Return").is_some() && value.get("Return").is_none();
            let done = if plain { "<return>true</return>" } else { "" };
            format!("<requestId>{request_id}</requestId>{contents}{done}")
        }
        (_, wrapper) => {
            let result = wrapper.map(|w| format!("<{w}>{contents}</{w}>")).unwrap_or_default();
            format!("{result}<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata>")
        }
    };
    Ok(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{name}Response xmlns=\"{namespace}\">{inner}</{name}Response>"
    ))
}

fn element(
    name: &str,
    out: &mut String,
    contents: impl FnOnce(&mut String) -> Result<(), Mismatch>,
) -> Result<(), Mismatch> {
    out.push('<');
    out.push_str(name);
    out.push('>');
    contents(out)?;
    out.push_str("</");
    out.push_str(name);
    out.push('>');
    Ok(())
}

/// As EC2 writes them, with milliseconds.
fn timestamp(seconds: u64) -> String {
    let Utc { year, month, day, hour, minute, second, .. } = Utc::from_unix(seconds);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}

/// Text in an element. Line breaks are written so that no parser turns them into blanks, and characters
/// that XML 1.0 (section 2.2) has no way to write are replaced.
pub fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\t' | '\n' | '\r' => out.push_str(&format!("&#{};", u32::from(c))),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
}
