//! Asks a running `kilnd`, in the words of the EC2 API.
//!
//! ```text
//!   command ─▶ form ─▶ SigV4, key of the account ─▶ <state>/run/kilnd.sock ─▶ XML ─▶ ids, or one line
//! ```
//! Used for what belongs to the daemon: the lives of its instances. What only reads or writes rows of the
//! store is done there directly, with a daemon and without one.
//!
//! Requests are signed with the key of the account, as those of every other client. Whoever may open the
//! socket may read that key anyway, since both lie in the state directory; so there is no second rule by
//! which `kilnd` believes someone, and its log and policies see one kind of caller.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningError, SigningSettings, sign};
use aws_sigv4::sign::v4::{SigningParams, signing_params::BuildError};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use kiln_controlplane::credentials::AccessKey;
use kiln_controlplane::instances::ControlPlane;
use kiln_controlplane::metadata::REGION;
use kiln_controlplane::state::Vault;
use kiln_controlplane::state::dir::SOCKET;
use roxmltree::Document;
use tokio::net::UnixStream;

use crate::error::Failure;

/// Version of the EC2 API.
const VERSION: &str = "2016-11-15";
/// Host in requests: there is only one behind the socket.
const AUTHORITY: &str = "kilnd";
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
/// An answer has this long to come. Nothing that is asked here waits for a guest.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest answer in bytes.
const MAX_ANSWER: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot ask kilnd at {socket}")]
    Connect {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("kilnd broke off")]
    Http(#[source] hyper::Error),
    #[error("the request to kilnd cannot be written")]
    Request(#[source] hyper::http::Error),
    #[error("the request to kilnd cannot be signed")]
    Sign(#[source] SigningError),
    #[error("the request to kilnd cannot be signed")]
    Parameters(#[source] BuildError),
    #[error("the answer of kilnd broke off or is longer than {MAX_ANSWER} bytes")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("kilnd did not answer within {} seconds", PATIENCE.as_secs())]
    Late,
    #[error("the answer of kilnd cannot be read")]
    Xml(#[source] roxmltree::Error),
    #[error("the answer of kilnd has no {0}")]
    Lacks(&'static str),
    #[error("{message} ({code})")]
    Refused { code: String, message: String },
    #[error("kilnd answered with status {0}")]
    Status(u16),
}

/// A daemon that listens.
#[derive(Debug)]
pub struct Daemon {
    socket: PathBuf,
    key: AccessKey,
}

/// What it answered.
#[derive(Debug)]
pub struct Answer(String);

impl Answer {
    /// Text of the first element of this name.
    pub fn text(&self, element: &'static str) -> Result<String, Failure> {
        let document = Document::parse(&self.0).map_err(Error::Xml)?;
        let mut all = document.descendants();
        let found = all.find(|node| node.tag_name().name() == element).and_then(|node| node.text());
        Ok(found.ok_or(Error::Lacks(element))?.to_owned())
    }
}

/// Parameters of a request. Grows by one at a time; what is absent is not sent.
#[derive(Debug, Default)]
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// With one more.
    #[expect(clippy::needless_pass_by_value, reason = "numbers, ids and texts read alike at the call")]
    pub fn with(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.0.push((name.into(), value.to_string()));
        self
    }

    /// With one more if there is a value.
    pub fn maybe(self, name: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// With a list: `name.1`, `name.2`, …
    pub fn list(self, name: &str, values: impl IntoIterator<Item = impl ToString>) -> Self {
        let numbered = values.into_iter().zip(1..);
        numbered.fold(self, |all, (value, number): (_, u32)| all.with(format!("{name}.{number}"), value))
    }
}

impl Daemon {
    /// The daemon of a state directory, if one listens.
    pub fn find(plane: &ControlPlane) -> Result<Option<Self>, Failure> {
        let socket = plane.state_dir().run().join(SOCKET);
        // A killed daemon leaves its socket behind.
        match std::os::unix::net::UnixStream::connect(&socket) {
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(source) => return Err(Error::Connect { socket, source }.into()),
        }
        let vault = Vault::open(plane.store(), plane.state_dir())?;
        let key = AccessKey::root(&vault)?;
        Ok(Some(Daemon { socket, key }))
    }

    /// The same where there must be one; `purpose` says what for, such as `start i-1`.
    pub fn need(plane: &ControlPlane, purpose: &str) -> Result<Self, Failure> {
        Self::find(plane)?.ok_or_else(|| {
            Failure::new(format!("kilnd must run to {purpose} (systemctl start kilnd, or run kilnd as root)"))
        })
    }

    /// Asks for one action of EC2. Blocks.
    pub fn call(&self, action: &str, parameters: Parameters) -> Result<Answer, Failure> {
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("Action", action)
            .append_pair("Version", VERSION)
            .extend_pairs(parameters.0)
            .finish();
        let request = self.signed(body)?;
        let (status, text) = crate::runtime()?.block_on(async {
            tokio::time::timeout(PATIENCE, self.exchange(request)).await.map_err(|_| Error::Late)?
        })?;
        if status == 200 {
            return Ok(Answer(text));
        }
        Err(refusal(status, &text).into())
    }

    /// Lines that `path` goes on answering, each given to `take` until that says `false`. Blocks.
    pub fn follow(&self, path: &str, mut take: impl FnMut(&str) -> bool) -> Result<(), Failure> {
        let request = Request::get(path).header(HOST, AUTHORITY).body(Full::default());
        let request = request.map_err(Error::Request)?;
        crate::runtime()?.block_on(async {
            let mut body = self.send(request).await?.into_body();
            let mut pending = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(Error::Http)?;
                pending.extend_from_slice(frame.data_ref().map(AsRef::as_ref).unwrap_or_default());
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    if !take(String::from_utf8_lossy(&line).trim_end()) {
                        return Ok(());
                    }
                }
                if pending.len() > MAX_ANSWER {
                    return Err(Error::Lacks("end of a line"));
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    fn signed(&self, body: String) -> Result<Request<Full<Bytes>>, Error> {
        let secret = self.key.secret.expose().clone();
        let identity = Credentials::new(self.key.id.clone(), secret, None, None, "kiln").into();
        let parameters = SigningParams::builder()
            .identity(&identity)
            .region(REGION)
            .name("ec2")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(Error::Parameters)?
            .into();
        let headers = [(HOST.as_str(), AUTHORITY), (CONTENT_TYPE.as_str(), FORM)];
        let url = format!("http://{AUTHORITY}/");
        let own = SignableBody::Bytes(body.as_bytes());
        let signable = SignableRequest::new("POST", url, headers.into_iter(), own).map_err(Error::Sign)?;
        let (instructions, _) = sign(signable, &parameters).map_err(Error::Sign)?.into_parts();
        let mut request = Request::post("/");
        for (name, value) in headers.into_iter().chain(instructions.headers()) {
            request = request.header(name, value);
        }
        request.body(Full::from(body)).map_err(Error::Request)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        let failed = |source| Error::Connect { socket: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(failed)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Error::Http)?;
        // Its errors show in the answer.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(Error::Http)
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(u16, String), Error> {
        let response = self.send(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(Error::Body)?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    }
}

/// The error that an answer tells of.
fn refusal(status: u16, text: &str) -> Error {
    let Ok(document) = Document::parse(text) else { return Error::Status(status) };
    let of = |name: &str| {
        let mut all = document.descendants();
        all.find(|node| node.tag_name().name() == name).and_then(|node| node.text()).map(str::to_owned)
    };
    match (of("Code"), of("Message")) {
        (Some(code), Some(message)) => Error::Refused { code, message },
        _ => Error::Status(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_by_the_names_of_their_elements() {
        let text = r#"<?xml version="1.0"?><RunInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
            <instancesSet><item><instanceId>i-1</instanceId><tag>a &lt;b&gt;</tag></item></instancesSet>
            </RunInstancesResponse>"#;
        let answer = Answer(text.to_owned());
        assert_eq!(answer.text("instanceId").unwrap(), "i-1");
        assert_eq!(answer.text("tag").unwrap(), "a <b>");
        assert!(answer.text("volumeId").is_err());
        assert!(Answer("<a".to_owned()).text("a").is_err());
    }

    #[test]
    fn refusals_say_what_and_why_in_one_line() {
        let text = "<Response><Errors><Error><Code>InvalidAMIID.NotFound</Code><Message>no such image</Message>\
                    </Error></Errors></Response>";
        assert_eq!(refusal(400, text).to_string(), "no such image (InvalidAMIID.NotFound)");
        assert_eq!(refusal(502, "<html>").to_string(), "kilnd answered with status 502");
    }

    #[test]
    fn lists_are_numbered_and_absent_values_left_out() {
        let all = Parameters::default().with("A", 1).maybe("B", None::<u8>).list("C", ["x", "y"]);
        let expected = [("A", "1"), ("C.1", "x"), ("C.2", "y")];
        assert_eq!(all.0, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
