//! Policies: documents that say what may be done.
//!
//! Statements with `Effect`, `Action` or `NotAction`, `Resource` or `NotResource`, and a `Condition`. What
//! is not understood is refused when a policy is set, because ignoring it would allow too much. A statement
//! of deny wins over every one that allows; what nobody allows is denied.

use serde::Deserialize;
use serde_json::Value;

use super::RequestContext;
use super::condition::{Conditions, Pattern};

/// Version of the language that has variables.
const WITH_VARIABLES: &str = "2012-10-17";
/// Longest document in bytes (IAM: 10 240 for all policies of a role).
const MAX_DOCUMENT: usize = 10_240;

/// Why a document is refused. IAM calls all of these `MalformedPolicyDocument`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    /// Too long.
    #[error("The policy document is longer than {MAX_DOCUMENT} bytes")]
    TooLong,
    /// Not a policy.
    #[error("The policy document is malformed: {0}")]
    Malformed(String),
    /// Not understood here.
    #[error("Policies with {0} are not supported")]
    Unsupported(&'static str),
}

/// What a policy says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may be done.
    Allow,
    /// It must not, whatever others say.
    Deny,
    /// Nothing.
    Silent,
}

/// A policy of a role.
#[derive(Debug, Clone)]
pub struct Policy(Vec<Statement>);

/// Who may assume a role.
#[derive(Debug, Clone)]
pub struct TrustPolicy(Vec<(Statement, Vec<String>)>);

#[derive(Debug, Clone)]
struct Statement {
    allow: bool,
    actions: Patterns,
    resources: Patterns,
    conditions: Conditions,
}

#[derive(Debug, Clone)]
struct Patterns {
    but: bool,
    /// Whether they are in lower case.
    fold: bool,
    patterns: Vec<Pattern>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Document {
    version: Option<String>,
    #[serde(rename = "Id")]
    _id: Option<String>,
    statement: OneOrMore<RawStatement>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct RawStatement {
    #[serde(rename = "Sid")]
    _sid: Option<String>,
    effect: Effect,
    action: Option<OneOrMore<String>>,
    not_action: Option<OneOrMore<String>>,
    resource: Option<OneOrMore<String>>,
    not_resource: Option<OneOrMore<String>>,
    principal: Option<Value>,
    condition: Option<Value>,
}

#[derive(Deserialize)]
enum Effect {
    Allow,
    Deny,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> OneOrMore<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        }
    }
}

impl Patterns {
    /// The patterns of `these`, or all but `others`; `fold` for what is alike in other case.
    fn new(
        what: &str,
        these: Option<OneOrMore<String>>,
        others: Option<OneOrMore<String>>,
        (fold, variables): (bool, bool),
    ) -> Result<Self, InvalidPolicy> {
        let (but, texts) = match (these, others) {
            (Some(these), None) => (false, these.into_vec()),
            (None, Some(others)) => (true, others.into_vec()),
            _ => return Err(InvalidPolicy::Malformed(format!("a statement has either {what} or Not{what}"))),
        };
        let pattern =
            |text: String| Pattern::new(&if fold { text.to_ascii_lowercase() } else { text }, variables);
        Ok(Patterns { but, fold, patterns: texts.into_iter().map(pattern).collect::<Result<_, _>>()? })
    }

    fn cover(&self, text: &str, context: &RequestContext) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(text, context, self.fold)) != self.but
    }
}

/// The statements of a document, and whether they may have variables.
fn statements(document: &str) -> Result<(Vec<RawStatement>, bool), InvalidPolicy> {
    if document.len() > MAX_DOCUMENT {
        return Err(InvalidPolicy::TooLong);
    }
    let document: Document =
        serde_json::from_str(document).map_err(|e| InvalidPolicy::Malformed(e.to_string()))?;
    Ok((document.statement.into_vec(), document.version.as_deref() == Some(WITH_VARIABLES)))
}

impl Policy {
    /// Reads the document of a role's policy.
    pub fn parse(document: &str) -> Result<Self, InvalidPolicy> {
        let (statements, variables) = statements(document)?;
        let read = |raw: RawStatement| {
            if raw.principal.is_some() {
                return Err(InvalidPolicy::Malformed("the policy of a role has no Principal".into()));
            }
            Ok(Statement {
                allow: matches!(raw.effect, Effect::Allow),
                actions: Patterns::new("Action", raw.action, raw.not_action, (true, false))?,
                resources: Patterns::new("Resource", raw.resource, raw.not_resource, (false, variables))?,
                conditions: Conditions::parse(raw.condition.as_ref(), variables)?,
            })
        };
        statements.into_iter().map(read).collect::<Result<_, _>>().map(Policy)
    }

    /// What it says of `action` (`ec2:StartInstances`) on `resource` (an ARN, or `*` where an action is
    /// on none).
    pub fn judge(&self, action: &str, resource: &str, context: &RequestContext) -> Verdict {
        let action = action.to_ascii_lowercase();
        let about = |s: &&Statement| {
            s.actions.cover(&action, context)
                && s.resources.cover(resource, context)
                && s.conditions.hold(context)
        };
        let mut found = self.0.iter().filter(about).map(|s| s.allow).peekable();
        match (found.peek().is_some(), found.all(|allow| allow)) {
            (false, _) => Verdict::Silent,
            (true, true) => Verdict::Allow,
            (true, false) => Verdict::Deny,
        }
    }
}

impl TrustPolicy {
    /// Reads the document that says who may assume a role.
    pub fn parse(document: &str) -> Result<Self, InvalidPolicy> {
        let (statements, variables) = statements(document)?;
        let read = |raw: RawStatement| {
            if raw.resource.is_some() || raw.not_resource.is_some() {
                return Err(InvalidPolicy::Malformed("a trust policy has no Resource".into()));
            }
            let principals = match raw.principal {
                Some(principal) => principals(&principal)?,
                None => return Err(InvalidPolicy::Malformed("a trust policy has a Principal".into())),
            };
            let statement = Statement {
                allow: matches!(raw.effect, Effect::Allow),
                actions: Patterns::new("Action", raw.action, raw.not_action, (true, false))?,
                resources: Patterns { but: true, fold: false, patterns: Vec::new() },
                conditions: Conditions::parse(raw.condition.as_ref(), variables)?,
            };
            Ok((statement, principals))
        };
        statements.into_iter().map(read).collect::<Result<_, _>>().map(TrustPolicy)
    }

    /// Whether one with any of these names (ARNs, account ids) may assume the role.
    pub fn trusts(&self, names: &[&str], context: &RequestContext) -> bool {
        let named =
            |principals: &[String]| principals.iter().any(|p| p == "*" || names.contains(&p.as_str()));
        let about = |(s, principals): &&(Statement, Vec<String>)| {
            s.actions.cover("sts:assumerole", context) && named(principals) && s.conditions.hold(context)
        };
        let mut found = self.0.iter().filter(about).map(|(s, _)| s.allow).peekable();
        found.peek().is_some() && found.all(|allow| allow)
    }
}

/// `"*"`, or `{"AWS": …, "Service": …}`.
fn principals(value: &Value) -> Result<Vec<String>, InvalidPolicy> {
    let malformed = || InvalidPolicy::Malformed("the Principal is neither \"*\" nor an object".into());
    match value {
        Value::String(any) if any == "*" => Ok(vec!["*".to_owned()]),
        Value::Object(kinds) => {
            let mut names = Vec::new();
            for value in kinds.values() {
                let some: OneOrMore<String> = Deserialize::deserialize(value).map_err(|_| malformed())?;
                names.extend(some.into_vec());
            }
            Ok(names)
        }
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTANCE: &str = "arn:aws:ec2:us-east-1:000000000000:instance/i-1";

    #[test]
    fn deny_wins_and_silence_is_told() {
        let policy = Policy::parse(
            r#"{"Version": "2012-10-17", "Statement": [
                {"Effect": "Allow", "Action": ["ec2:Describe*", "EC2:StartInstances"], "Resource": "*"},
                {"Effect": "Deny", "Action": "ec2:*", "Resource": "arn:aws:ec2:*:*:instance/i-2"},
                {"Effect": "Allow", "NotAction": "ec2:*", "NotResource": "arn:aws:iam::*:role/secret"}]}"#,
        )
        .unwrap();
        for (action, resource, verdict) in [
            ("ec2:DescribeVpcs", "*", Verdict::Allow),
            ("ec2:startinstances", INSTANCE, Verdict::Allow),
            ("ec2:StartInstances", "arn:aws:ec2:us-east-1:0:instance/i-2", Verdict::Deny),
            ("ec2:StopInstances", INSTANCE, Verdict::Silent),
            ("iam:GetRole", "arn:aws:iam::0:role/open", Verdict::Allow),
            ("iam:GetRole", "arn:aws:iam::0:role/secret", Verdict::Silent),
        ] {
            let context = RequestContext::default();
            assert_eq!(policy.judge(action, resource, &context), verdict, "{action} {resource}");
        }
    }

    #[test]
    fn conditions_and_variables_are_of_the_request() {
        let policy = Policy::parse(
            r#"{"Version": "2012-10-17", "Statement": [
                {"Effect": "Allow", "Action": "iam:*", "Resource": "arn:aws:iam::*:user/${aws:username}"},
                {"Effect": "Deny", "Action": "*", "Resource": "*",
                 "Condition": {"NotIpAddress": {"aws:SourceIp": "10.0.0.0/8"}}}]}"#,
        )
        .unwrap();
        let from = |ip: &str| RequestContext::default().with("aws:username", "ann").with("aws:SourceIp", ip);
        let own = "arn:aws:iam::000000000000:user/ann";
        assert_eq!(policy.judge("iam:GetUser", own, &from("10.0.0.1")), Verdict::Allow);
        assert_eq!(policy.judge("iam:GetUser", &format!("{own}a"), &from("10.0.0.1")), Verdict::Silent);
        assert_eq!(policy.judge("iam:GetUser", own, &from("11.0.0.1")), Verdict::Deny);
        // Without an address it is not from there.
        let local = RequestContext::default().with("aws:username", "ann");
        assert_eq!(policy.judge("iam:GetUser", own, &local), Verdict::Deny);
    }

    #[test]
    fn documents_that_would_be_misread_are_refused() {
        for document in [
            "",
            "{}",
            r#"{"Statement": {"Effect": "Permit", "Action": "*", "Resource": "*"}}"#,
            r#"{"Statement": {"Effect": "Allow", "Resource": "*"}}"#,
            r#"{"Statement": {"Effect": "Allow", "Action": "*"}}"#,
            r#"{"Statement": {"Effect": "Allow", "Action": "*", "NotAction": "a", "Resource": "*"}}"#,
            r#"{"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": {"Bool": {"a:b": "true"}}}}"#,
            r#"{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "${a:b}"}}"#,
            r#"{"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*", "Principal": "*"}}"#,
        ] {
            assert!(Policy::parse(document).is_err(), "{document}");
        }
        assert_eq!(Policy::parse(&" ".repeat(20_000)).unwrap_err(), InvalidPolicy::TooLong);
    }

    #[test]
    fn trust_is_by_name() {
        let policy = TrustPolicy::parse(
            r#"{"Statement": {"Effect": "Allow", "Action": "sts:AssumeRole",
                "Principal": {"Service": "ec2.amazonaws.com", "AWS": ["arn:aws:iam::000000000000:role/a"]}}}"#,
        )
        .unwrap();
        let context = RequestContext::default();
        assert!(policy.trusts(&["x", "arn:aws:iam::000000000000:role/a"], &context));
        assert!(!policy.trusts(&["arn:aws:iam::000000000000:role/b"], &context));
        let policy = TrustPolicy::parse(
            r#"{"Statement": {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": "*",
                "Condition": {"StringEquals": {"sts:ExternalId": "7"}}}}"#,
        )
        .unwrap();
        assert!(!policy.trusts(&["x"], &context));
        assert!(policy.trusts(&["x"], &context.with("sts:ExternalId", "7")));
        assert!(TrustPolicy::parse(r#"{"Statement": {"Effect": "Allow", "Action": "*"}}"#).is_err());
    }
}
