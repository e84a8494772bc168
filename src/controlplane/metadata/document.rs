//! JSON documents in the style of the metadata service: two spaces of indent, spaces around the
//! colon, times in whole seconds of UTC. botocore parses times in exactly this form.

use kiln_model::Utc;
use serde_json::Value;

/// An object with `fields` in this order, without a newline at the end.
pub(crate) fn object(fields: &[(&str, Value)]) -> String {
    let lines: Vec<String> =
        fields.iter().map(|(key, value)| format!("  {} : {value}", Value::from(*key))).collect();
    format!("{{\n{}\n}}", lines.join(",\n"))
}

/// Unix seconds as `2023-06-30T19:06:42Z`.
pub(crate) fn timestamp(unix: u64) -> String {
    Utc::from_unix(unix).rfc3339()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn style_is_that_of_the_service() {
        let text = object(&[("Code", json!("Success")), ("kernelId", json!(null)), ("n", json!("a\"b"))]);
        assert_eq!(text, "{\n  \"Code\" : \"Success\",\n  \"kernelId\" : null,\n  \"n\" : \"a\\\"b\"\n}");
        serde_json::from_str::<Value>(&text).unwrap();
    }
}
