//! Conditions of policies, and what is known of a request when they are judged.
//!
//! A condition names an operator, a key and values; it holds when one of the values fits what the request
//! has under that key, and a negated one when none does. Without a value in the request only negated ones
//! hold, and those that end in `IfExists`. All conditions of a statement must hold.
//!
//! A key or an operator that is not known here is refused when the policy is set: to ignore it would
//! allow too much.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;

use kiln_model::{Ipv4Cidr, Ipv6Cidr, Utc, Wildcard};
use serde_json::Value;

use super::policy::InvalidPolicy;

/// What is known of a request. Keys are alike in other case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestContext(BTreeMap<String, String>);

impl RequestContext {
    /// With one more value. A key that no policy can name is a mistake of ours, and of no use.
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.0.insert(key.to_ascii_lowercase(), value.into());
        self
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

/// Keys that conditions and variables may name.
const KEYS: [&str; 12] = [
    "aws:currenttime",
    "aws:epochtime",
    "aws:principalaccount",
    "aws:principalarn",
    "aws:principaltype",
    "aws:requestedregion",
    "aws:securetransport",
    "aws:sourceip",
    "aws:userid",
    "aws:username",
    "iam:passedtoservice",
    "sts:externalid",
];

/// Keys of tags, before the key of the tag itself.
const TAG_KEYS: [&str; 3] = ["aws:requesttag/", "aws:resourcetag/", "ec2:resourcetag/"];

/// The key as it is looked up.
fn known(key: &str) -> Option<String> {
    let key = key.to_ascii_lowercase();
    let tag = |start: &&str| key.strip_prefix(*start).is_some_and(|tag| !tag.is_empty());
    (KEYS.contains(&key.as_str()) || TAG_KEYS.iter().any(tag)).then_some(key)
}

/// Conditions of one statement.
#[derive(Debug, Clone, Default)]
pub(super) struct Conditions(Vec<Condition>);

#[derive(Debug, Clone)]
struct Condition {
    key: String,
    negated: bool,
    if_exists: bool,
    values: Vec<Test>,
}

/// One value of a condition.
#[derive(Debug, Clone)]
enum Test {
    Exactly(String),
    IgnoringCase(String),
    Like(Pattern),
    Arn(Vec<Pattern>),
    Bool(bool),
    Range(Range),
    /// How a moment may be to this one, in Unix seconds.
    Moment(&'static [Ordering], u64),
    /// Whether there must be no value.
    Null(bool),
}

#[derive(Debug, Clone, Copy)]
enum Range {
    V4(Ipv4Cidr),
    V6(Ipv6Cidr),
}

/// Text with wildcards, and with variables where the policy's version has them.
#[derive(Debug, Clone)]
pub(super) enum Pattern {
    Fixed(Wildcard),
    /// Text, then key after key with the text behind it.
    Variable(String, Vec<(String, String)>),
}

impl Pattern {
    /// Reads a pattern. `variables`: whether `${…}` is one.
    pub(super) fn new(text: &str, variables: bool) -> Result<Self, InvalidPolicy> {
        let Some((head, mut rest)) = text.split_once("${").filter(|_| variables) else {
            return Ok(Pattern::Fixed(Wildcard::new(text)));
        };
        let mut parts = Vec::new();
        loop {
            let unsupported = InvalidPolicy::Unsupported("this policy variable");
            let (name, behind) = rest.split_once('}').ok_or(unsupported.clone())?;
            let key = known(name).ok_or(unsupported)?;
            match behind.split_once("${") {
                Some((between, more)) => {
                    parts.push((key, between.to_owned()));
                    rest = more;
                }
                None => {
                    parts.push((key, behind.to_owned()));
                    return Ok(Pattern::Variable(head.to_owned(), parts));
                }
            }
        }
    }

    /// Whether `text` fits. A variable without a value fits nothing.
    pub(super) fn matches(&self, text: &str, context: &RequestContext, fold: bool) -> bool {
        match self {
            Pattern::Fixed(pattern) => pattern.matches(text),
            Pattern::Variable(head, parts) => {
                let mut pattern = escaped_backslashes(head);
                for (key, behind) in parts {
                    let Some(value) = context.get(key) else { return false };
                    // What a request says is taken as it is.
                    value.chars().for_each(|c| pattern.extend(['\\', c]));
                    pattern.push_str(&escaped_backslashes(behind));
                }
                let pattern = if fold { pattern.to_ascii_lowercase() } else { pattern };
                Wildcard::with_escapes(&pattern).matches(text)
            }
        }
    }
}

fn escaped_backslashes(text: &str) -> String {
    text.replace('\\', "\\\\")
}

impl Conditions {
    /// Reads the `Condition` of a statement.
    pub(super) fn parse(value: Option<&Value>, variables: bool) -> Result<Self, InvalidPolicy> {
        let malformed = || InvalidPolicy::Malformed("a Condition is operators, keys and values".to_owned());
        let Some(value) = value else { return Ok(Self::default()) };
        let mut all = Vec::new();
        for (operator, keys) in value.as_object().ok_or_else(malformed)? {
            let (name, if_exists) = match operator.strip_suffix("IfExists") {
                Some(name) => (name, true),
                None => (operator.as_str(), false),
            };
            for (key, values) in keys.as_object().ok_or_else(malformed)? {
                let key = known(key).ok_or(InvalidPolicy::Unsupported("this condition key"))?;
                let values = match values {
                    Value::Array(values) => values.as_slice(),
                    one => std::slice::from_ref(one),
                };
                let mut tests = Vec::new();
                let mut negated = false;
                for value in values {
                    let text = match value {
                        Value::String(text) => text.clone(),
                        Value::Bool(value) => value.to_string(),
                        _ => return Err(malformed()),
                    };
                    let (not, test) = test(name, &text, variables)?;
                    negated = not;
                    tests.push(test);
                }
                if tests.is_empty() || name == "Null" && if_exists {
                    return Err(malformed());
                }
                all.push(Condition { key, negated, if_exists, values: tests });
            }
        }
        Ok(Conditions(all))
    }

    /// Whether all of them hold.
    pub(super) fn hold(&self, context: &RequestContext) -> bool {
        self.0.iter().all(|condition| {
            let value = context.get(&condition.key);
            if let [Test::Null(absent)] = condition.values.as_slice() {
                return value.is_none() == *absent;
            }
            match value {
                None => condition.negated || condition.if_exists,
                Some(value) => {
                    condition.values.iter().any(|test| test.fits(value, context)) != condition.negated
                }
            }
        })
    }
}

/// Whether an operator is negated, and one of its values.
fn test(operator: &str, text: &str, variables: bool) -> Result<(bool, Test), InvalidPolicy> {
    let word = |text: &str| match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(InvalidPolicy::Malformed(format!("{operator} compares with true or false"))),
    };
    let plain = |text: &str| match variables && text.contains("${") {
        true => Err(InvalidPolicy::Unsupported("variables but in StringLike")),
        false => Ok(text.to_owned()),
    };
    Ok(match operator {
        "StringEquals" => (false, Test::Exactly(plain(text)?)),
        "StringNotEquals" => (true, Test::Exactly(plain(text)?)),
        "StringEqualsIgnoreCase" => (false, Test::IgnoringCase(plain(text)?)),
        "StringNotEqualsIgnoreCase" => (true, Test::IgnoringCase(plain(text)?)),
        "StringLike" => (false, Test::Like(Pattern::new(text, variables)?)),
        "StringNotLike" => (true, Test::Like(Pattern::new(text, variables)?)),
        "ArnEquals" | "ArnLike" => (false, arn(&plain(text)?)?),
        "ArnNotEquals" | "ArnNotLike" => (true, arn(&plain(text)?)?),
        "Bool" => (false, Test::Bool(word(text)?)),
        "IpAddress" => (false, range(text)?),
        "NotIpAddress" => (true, range(text)?),
        "DateEquals" => (false, Test::Moment(&[Ordering::Equal], date(text)?)),
        "DateNotEquals" => (true, Test::Moment(&[Ordering::Equal], date(text)?)),
        "DateLessThan" => (false, Test::Moment(&[Ordering::Less], date(text)?)),
        "DateLessThanEquals" => (false, Test::Moment(&[Ordering::Less, Ordering::Equal], date(text)?)),
        "DateGreaterThan" => (false, Test::Moment(&[Ordering::Greater], date(text)?)),
        "DateGreaterThanEquals" => (false, Test::Moment(&[Ordering::Greater, Ordering::Equal], date(text)?)),
        "Null" => (false, Test::Null(word(text)?)),
        _ => return Err(InvalidPolicy::Unsupported("this condition operator")),
    })
}

/// An ARN is compared part by part: no wildcard reaches over a colon but in the last of its six parts.
fn arn(text: &str) -> Result<Test, InvalidPolicy> {
    let parts: Vec<_> = text.splitn(6, ':').collect();
    match parts.len() {
        6 => Ok(Test::Arn(parts.into_iter().map(|p| Pattern::new(p, false)).collect::<Result<_, _>>()?)),
        _ => Err(InvalidPolicy::Malformed(format!("{text:?} is no ARN"))),
    }
}

/// Unix seconds of a moment: a number of them, a day, or a time of it.
fn moment(text: &str) -> Option<u64> {
    let day = || Utc::parse_rfc3339(&format!("{text}T00:00:00Z"));
    text.parse().ok().or_else(|| Utc::parse_rfc3339(text)).or_else(day)
}

fn date(text: &str) -> Result<u64, InvalidPolicy> {
    moment(text).ok_or_else(|| InvalidPolicy::Malformed(format!("{text:?} is no date")))
}

fn range(text: &str) -> Result<Test, InvalidPolicy> {
    let malformed = || InvalidPolicy::Malformed(format!("{text:?} is no range of addresses"));
    let address = text.split('/').next().unwrap_or_default().parse::<IpAddr>().map_err(|_| malformed())?;
    let whole = |bits: u8| if text.contains('/') { text.to_owned() } else { format!("{text}/{bits}") };
    Ok(Test::Range(match address {
        IpAddr::V4(_) => Range::V4(whole(32).parse().map_err(|_| malformed())?),
        IpAddr::V6(_) => Range::V6(whole(128).parse().map_err(|_| malformed())?),
    }))
}

impl Test {
    fn fits(&self, value: &str, context: &RequestContext) -> bool {
        match self {
            Test::Exactly(text) => text == value,
            Test::IgnoringCase(text) => text.to_lowercase() == value.to_lowercase(),
            Test::Like(pattern) => pattern.matches(value, context, false),
            Test::Arn(patterns) => {
                let parts: Vec<_> = value.splitn(6, ':').collect();
                parts.len() == patterns.len()
                    && patterns.iter().zip(parts).all(|(pattern, part)| pattern.matches(part, context, false))
            }
            Test::Bool(wanted) => value == if *wanted { "true" } else { "false" },
            Test::Range(range) => match (range, value.parse()) {
                (Range::V4(range), Ok(IpAddr::V4(address))) => range.contains(address),
                (Range::V6(range), Ok(IpAddr::V6(address))) => range.contains(address),
                _ => false,
            },
            Test::Moment(wanted, at) => moment(value).is_some_and(|now| wanted.contains(&now.cmp(at))),
            Test::Null(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn context() -> RequestContext {
        RequestContext::default()
            .with("aws:PrincipalArn", "arn:aws:iam::000000000000:user/Ann")
            .with("aws:username", "Ann")
            .with("aws:SecureTransport", "false")
            .with("aws:SourceIp", "10.1.2.3")
            .with("aws:CurrentTime", "2026-11-29T12:00:00Z")
            .with("aws:EpochTime", "1795953600")
            .with("ec2:ResourceTag/Team", "A")
    }

    fn holds(condition: &Value) -> Result<bool, InvalidPolicy> {
        Conditions::parse(Some(condition), true).map(|all| all.hold(&context()))
    }

    #[test]
    fn operators_are_those_of_iam() {
        for (condition, expected) in [
            (json!({}), true),
            (json!({"StringEquals": {"aws:UserName": ["Bob", "Ann"]}}), true),
            (json!({"StringEquals": {"aws:username": "ann"}}), false),
            (json!({"StringEqualsIgnoreCase": {"aws:username": "ann"}}), true),
            (json!({"StringNotEquals": {"aws:username": ["Bob", "Ann"]}}), false),
            (json!({"StringNotEqualsIgnoreCase": {"aws:username": "bob"}}), true),
            (json!({"StringLike": {"aws:username": "A?n*"}}), true),
            (json!({"StringNotLike": {"aws:username": "A*"}}), false),
            (json!({"StringEquals": {"aws:username": "A*"}}), false),
            (json!({"StringLike": {"aws:PrincipalArn": "*/${aws:username}"}}), true),
            (json!({"StringLike": {"aws:PrincipalArn": "*/${aws:userid}"}}), false),
            (json!({"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::*:user/*"}}), true),
            (json!({"ArnEquals": {"aws:PrincipalArn": "arn:*:user/Ann:*:*:*"}}), false),
            (json!({"ArnNotLike": {"aws:PrincipalArn": "arn:aws:iam::*:role/*"}}), true),
            (json!({"Bool": {"aws:SecureTransport": "false"}}), true),
            (json!({"Bool": {"aws:SecureTransport": true}}), false),
            (json!({"IpAddress": {"aws:SourceIp": ["192.0.2.0/24", "10.0.0.0/8"]}}), true),
            (json!({"IpAddress": {"aws:SourceIp": "10.1.2.3"}}), true),
            (json!({"IpAddress": {"aws:SourceIp": "fd00::/8"}}), false),
            (json!({"NotIpAddress": {"aws:SourceIp": "10.0.0.0/8"}}), false),
            (json!({"DateLessThan": {"aws:CurrentTime": "2026-11-29T12:00:01Z"}}), true),
            (json!({"DateLessThan": {"aws:CurrentTime": "2026-11-29T12:00:00Z"}}), false),
            (json!({"DateLessThanEquals": {"aws:CurrentTime": "2026-11-29T13:00:00+01:00"}}), true),
            (json!({"DateGreaterThan": {"aws:CurrentTime": "2026-11-29"}}), true),
            (json!({"DateGreaterThanEquals": {"aws:EpochTime": "1795953601"}}), false),
            (json!({"DateEquals": {"aws:EpochTime": "2026-11-29T12:00:00Z"}}), true),
            (json!({"DateNotEquals": {"aws:CurrentTime": "1795953600"}}), false),
            (json!({"StringEquals": {"ec2:ResourceTag/team": "A"}}), true),
            (json!({"StringEquals": {"ec2:ResourceTag/team": "a"}}), false),
            (json!({"StringEquals": {"aws:RequestTag/team": "A"}}), false),
            (json!({"Null": {"aws:RequestTag/team": "true"}}), true),
            (json!({"StringLike": {"aws:PrincipalArn": "*${ec2:ResourceTag/Team}nn"}}), true),
            // Both must hold.
            (json!({"Bool": {"aws:SecureTransport": "false"}, "StringEquals": {"aws:username": "x"}}), false),
            // What the request does not say.
            (json!({"StringEquals": {"sts:ExternalId": "x"}}), false),
            (json!({"StringNotEquals": {"sts:ExternalId": "x"}}), true),
            (json!({"StringEqualsIfExists": {"sts:ExternalId": "x"}}), true),
            (json!({"StringEqualsIfExists": {"aws:username": "x"}}), false),
            (json!({"Null": {"sts:ExternalId": "true"}}), true),
            (json!({"Null": {"aws:username": "true"}}), false),
            (json!({"Null": {"aws:username": "false"}}), true),
        ] {
            assert_eq!(holds(&condition), Ok(expected), "{condition}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for condition in [
            json!([]),
            json!({"StringEquals": "x"}),
            json!({"StringEquals": {"aws:username": []}}),
            json!({"StringEquals": {"aws:username": [["x"]]}}),
            json!({"StringEquals": {"aws:username": "${aws:userid}"}}),
            json!({"StringEquals": {"aws:ResourceTag/": "b"}}),
            json!({"StringEquals": {"aws:PrincipalTag/a": "b"}}),
            json!({"StringEquals": {"aws:TagKeys": "b"}}),
            json!({"DateLessThan": {"aws:CurrentTime": "tomorrow"}}),
            json!({"StringLike": {"aws:username": "${aws:tag}"}}),
            json!({"StringLike": {"aws:username": "${aws:username"}}),
            json!({"ForAnyValue:StringEquals": {"aws:username": "x"}}),
            json!({"NumericEquals": {"aws:username": "1"}}),
            json!({"Bool": {"aws:SecureTransport": "yes"}}),
            json!({"NullIfExists": {"aws:username": "true"}}),
            json!({"IpAddress": {"aws:SourceIp": "10.0.0.0/33"}}),
            json!({"ArnLike": {"aws:PrincipalArn": "*"}}),
        ] {
            assert!(holds(&condition).is_err(), "{condition}");
        }
    }

    #[test]
    fn value_of_a_variable_is_no_pattern() {
        let pattern = Pattern::new("a\\${sts:ExternalId}*", true).unwrap();
        let with = |value: &str| RequestContext::default().with("sts:ExternalId", value);
        assert!(pattern.matches("a\\*b", &with("*"), false));
        assert!(!pattern.matches("a\\xb", &with("*"), false));
        assert!(!pattern.matches("a\\", &RequestContext::default(), false));
        let folded = Pattern::new("EC2:${aws:username}", true).unwrap();
        assert!(folded.matches("ec2:ann", &context(), true));
        assert!(Pattern::new("${x}", false).unwrap().matches("${x}", &context(), false));
    }
}
