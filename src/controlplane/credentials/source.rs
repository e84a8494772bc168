//! Where the credentials of a role come from.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::file::FileSource;
use super::issuer::Issuer;
use super::process::ProcessSource;
use super::{Credentials, Lifetime};

/// A source that takes longer is given up: the program hangs, or the endpoint does.
pub(super) const FETCH_PATIENCE: Duration = Duration::from_secs(60);

/// Credentials on their way.
pub type Fetch<'a> = Pin<Box<dyn Future<Output = Result<Credentials, SourceError>> + Send + 'a>>;

/// Who asks: an instance in a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// `arn:aws:iam::…:role/…`.
    pub role_arn: String,
    /// `AROA…`.
    pub role_id: String,
    /// Name of the session: the instance id.
    pub session_name: String,
    /// How long credentials shall last.
    pub lifetime: Lifetime,
}

/// Gives credentials. Fetching never blocks the thread and ends within a minute.
pub trait CredentialSource: Send + Sync {
    /// Fetches a fresh set for `subject`. `now`: Unix seconds.
    fn fetch<'a>(&'a self, subject: &'a Subject, now: u64) -> Fetch<'a>;

    /// Whether there is something new since the last fetch; cheap enough to be asked every second.
    fn has_news(&self) -> bool {
        false
    }

    /// The set at once, where the source needs neither network nor program: then an instance has its
    /// credentials from its first instruction on.
    fn at_once(&self, _subject: &Subject, _now: u64) -> Option<Result<Credentials, SourceError>> {
        None
    }
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No answer has come yet.
    #[error("the credentials have not been fetched yet")]
    Pending,
    /// STS does not let us have the role.
    #[error("the STS endpoint refuses the role: {detail}")]
    Denied {
        /// What it says.
        detail: String,
    },
    /// STS cannot be reached or does not work.
    #[error("the STS endpoint gives no credentials: {detail}")]
    Sts {
        /// What went wrong.
        detail: String,
    },
    /// The credential process failed.
    #[error("the credential process failed: {detail}")]
    Process {
        /// What went wrong.
        detail: String,
    },
    /// The credential file cannot be used.
    #[error("the credential file cannot be used: {detail}")]
    File {
        /// What went wrong.
        detail: String,
    },
    /// What came is not in the form that was agreed.
    #[error("the credentials are not understood: {detail}")]
    Malformed {
        /// What is wrong; never the text itself, which may hold secrets.
        detail: String,
    },
    /// They have ended already.
    #[error(
        "the credentials expired at {expiration}, it is {now} here (compare the clocks of this host and \
         of the source)"
    )]
    Expired {
        /// When, RFC 3339.
        expiration: String,
        /// What this host takes for the present.
        now: String,
    },
    /// The source did not answer in time.
    #[error("the source did not answer within {} seconds", FETCH_PATIENCE.as_secs())]
    Timeout,
    /// The embedded issuer has no keys.
    #[error("the embedded issuer cannot sign: {detail}")]
    Issuer {
        /// What went wrong.
        detail: String,
    },
}

impl SourceError {
    /// `Code` of the document: that of EC2 where it has one.
    pub fn code(&self) -> &'static str {
        match self {
            SourceError::Pending => "CredentialsPending",
            SourceError::Denied { .. } => "AssumeRoleUnauthorizedAccess",
            SourceError::Expired { .. } => "ExpiredCredentials",
            _ => "CredentialSourceFailed",
        }
    }

    /// What the guest is told. Details of the host stay on the host.
    pub fn message_for_guest(&self) -> &'static str {
        match self {
            SourceError::Pending => "The credentials of the role are being fetched.",
            SourceError::Denied { .. } => {
                "The role cannot be assumed. Please check its trust relationship and its permissions."
            }
            SourceError::Expired { .. } => "The source of the role's credentials gave expired ones.",
            _ => "The source of the role's credentials fails. The host's operator can see why.",
        }
    }
}

/// A source as it is written in a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum SourceSpec {
    /// Credentials of Kiln's own, valid for its API and for whoever checks the token's signature.
    Issuer,
    /// A program run by the `credential_process` convention of the AWS CLI.
    Process {
        /// Program and arguments, quoted as in a shell.
        command: String,
    },
    /// A file in the same format, watched for changes.
    File {
        /// Absolute path.
        path: PathBuf,
    },
    /// `AssumeRole` at an STS endpoint.
    Sts(StsSource),
}

/// What is asked of STS. The host's own credentials come from its environment, configuration files
/// and so on, as for every AWS tool; they stay there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StsSource {
    /// The role to assume.
    pub role_arn: String,
    /// Endpoint instead of AWS's.
    pub endpoint: Option<String>,
    /// Region instead of the configured one.
    pub region: Option<String>,
    /// Profile of the host's configuration.
    pub profile: Option<String>,
    /// What the role's owner wants to see.
    pub external_id: Option<String>,
}

/// A source that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSourceError {
    /// No such kind.
    #[error("{0:?} is no credential source (issuer, process:COMMAND, file:PATH or sts:ROLE-ARN)")]
    Unknown(String),
    /// A program line that no shell would take.
    #[error("the command of the credential process is {0}")]
    Command(&'static str),
    /// A path that depends on where one stands.
    #[error("the path of the credential file must be absolute, not {0:?}")]
    RelativePath(PathBuf),
    /// Not the name of a role.
    #[error("{0:?} is not the ARN of a role (arn:aws:iam::ACCOUNT:role/NAME)")]
    RoleArn(String),
    /// Not a web address.
    #[error("the endpoint {0:?} is no http or https URL")]
    Endpoint(String),
}

impl FromStr for SourceSpec {
    type Err = ParseSourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let spec = match text.split_once(':') {
            None if text == "issuer" => SourceSpec::Issuer,
            Some(("process", command)) => SourceSpec::Process { command: command.to_owned() },
            Some(("file", path)) => SourceSpec::File { path: path.into() },
            Some(("sts", arn)) => {
                SourceSpec::Sts(StsSource { role_arn: arn.to_owned(), ..StsSource::default() })
            }
            _ => return Err(ParseSourceError::Unknown(text.to_owned())),
        };
        spec.check()?;
        Ok(spec)
    }
}

impl SourceSpec {
    /// Checks what can be checked without using it.
    pub fn check(&self) -> Result<(), ParseSourceError> {
        match self {
            SourceSpec::Issuer => Ok(()),
            SourceSpec::Process { command } => super::process::split(command).map(drop),
            SourceSpec::File { path } if path.is_absolute() => Ok(()),
            SourceSpec::File { path } => Err(ParseSourceError::RelativePath(path.clone())),
            SourceSpec::Sts(sts) => {
                let parts: Vec<&str> = sts.role_arn.splitn(6, ':').collect();
                if !matches!(parts[..], ["arn", _, "iam", "", account, role]
                    if account.len() == 12 && role.strip_prefix("role/").is_some_and(|name| !name.is_empty()))
                {
                    return Err(ParseSourceError::RoleArn(sts.role_arn.clone()));
                }
                let web = |url: &&String| url.starts_with("http://") || url.starts_with("https://");
                match sts.endpoint.as_ref().filter(|url| !web(url)) {
                    Some(url) => Err(ParseSourceError::Endpoint(url.clone())),
                    None => Ok(()),
                }
            }
        }
    }
}

impl fmt::Display for SourceSpec {
    /// The form that [`FromStr`] takes. The arguments of a process may hold secrets and are not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceSpec::Issuer => f.write_str("issuer"),
            SourceSpec::Process { command } => {
                write!(f, "process:{}", command.split_whitespace().next().unwrap_or_default())
            }
            SourceSpec::File { path } => write!(f, "file:{}", path.display()),
            SourceSpec::Sts(sts) => write!(f, "sts:{}", sts.role_arn),
        }
    }
}

/// A call of `AssumeRole`.
#[derive(Debug, Clone)]
pub struct AssumeRoleRequest {
    /// Whom to ask for what.
    pub source: StsSource,
    /// `RoleSessionName`.
    pub session_name: String,
    /// `DurationSeconds`.
    pub duration: u64,
}

/// A client of STS. It lives in a crate of its own: the SDK is larger than all the rest.
pub trait AssumeRole: Send + Sync {
    /// Calls the endpoint once, with the SDK's own retries.
    fn assume_role(&self, request: AssumeRoleRequest) -> Fetch<'static>;
}

/// For programs without an STS client.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSts;

impl AssumeRole for NoSts {
    fn assume_role(&self, _request: AssumeRoleRequest) -> Fetch<'static> {
        Box::pin(async { Err(SourceError::Sts { detail: "this program has no STS client".into() }) })
    }
}

/// Makes sources of their descriptions.
#[derive(Clone)]
pub struct Opener {
    /// The embedded issuer.
    pub issuer: Issuer,
    /// The STS client.
    pub sts: Arc<dyn AssumeRole>,
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener")
    }
}

impl Opener {
    /// The source that `spec` describes.
    pub fn open(&self, spec: &SourceSpec) -> Box<dyn CredentialSource> {
        match spec {
            SourceSpec::Issuer => Box::new(self.issuer.clone()),
            SourceSpec::Process { command } => Box::new(ProcessSource::new(command.clone())),
            SourceSpec::File { path } => Box::new(FileSource::new(path.clone())),
            SourceSpec::Sts(sts) => {
                Box::new(StsClient { source: sts.clone(), client: Arc::clone(&self.sts) })
            }
        }
    }
}

struct StsClient {
    source: StsSource,
    client: Arc<dyn AssumeRole>,
}

impl CredentialSource for StsClient {
    fn fetch<'a>(&'a self, subject: &'a Subject, _now: u64) -> Fetch<'a> {
        let request = AssumeRoleRequest {
            source: self.source.clone(),
            session_name: subject.session_name.clone(),
            duration: subject.lifetime.seconds(),
        };
        Box::pin(async move {
            let answer = tokio::time::timeout(FETCH_PATIENCE, self.client.assume_role(request)).await;
            answer.unwrap_or(Err(SourceError::Timeout))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_and_written() {
        for text in
            ["issuer", "process:/bin/get", "file:/run/c.json", "sts:arn:aws:iam::123456789012:role/a/b"]
        {
            assert_eq!(text.parse::<SourceSpec>().unwrap().to_string(), text);
        }
        let spec: SourceSpec = "process:/bin/get --password hunter2".parse().unwrap();
        assert_eq!(spec.to_string(), "process:/bin/get");
    }

    #[test]
    fn sources_that_cannot_be_are_refused() {
        use ParseSourceError as E;
        for (text, error) in [
            ("", E::Unknown(String::new())),
            ("magic:x", E::Unknown("magic:x".into())),
            ("issuer:x", E::Unknown("issuer:x".into())),
            ("process:", E::Command("empty")),
            ("process:/bin/x 'y", E::Command("badly quoted")),
            ("file:c.json", E::RelativePath("c.json".into())),
            ("sts:role", E::RoleArn("role".into())),
            ("sts:arn:aws:iam::1:role/x", E::RoleArn("arn:aws:iam::1:role/x".into())),
            ("sts:arn:aws:iam::123456789012:user/x", E::RoleArn("arn:aws:iam::123456789012:user/x".into())),
        ] {
            assert_eq!(text.parse::<SourceSpec>(), Err(error), "{text}");
        }
        let role_arn = "arn:aws:iam::123456789012:role/x".to_owned();
        let sts = StsSource { role_arn, endpoint: Some("ftp://x".into()), ..StsSource::default() };
        assert_eq!(SourceSpec::Sts(sts).check(), Err(E::Endpoint("ftp://x".into())));
    }
}
