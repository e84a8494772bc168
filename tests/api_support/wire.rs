//! A client that says the same signed request again and again on one connection, as fast as it is answered.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;

use super::Daemon;

const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// Where and as whom to ask.
#[derive(Clone)]
pub struct Endpoint {
    authority: String,
    key: String,
    secret: String,
}

/// An answer.
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    /// Texts of all elements of this name.
    pub fn all(&self, element: &str) -> Vec<String> {
        let (open, close) = (format!("<{element}>"), format!("</{element}>"));
        let parts = self.body.split(&open).skip(1);
        parts.map(|part| part.split(&close).next().unwrap().to_owned()).collect()
    }
}

impl Endpoint {
    /// That of a daemon, as the account.
    pub fn of(daemon: &Daemon) -> Self {
        let variables = daemon.environment();
        let get = |name: &str| {
            let value = variables.iter().find(|(other, _)| other == name).map(|(_, value)| value);
            value.unwrap().trim_matches(['\'', '"']).to_owned()
        };
        let authority = get("AWS_ENDPOINT_URL").trim_start_matches("http://").to_owned();
        Endpoint { authority, key: get("AWS_ACCESS_KEY_ID"), secret: get("AWS_SECRET_ACCESS_KEY") }
    }

    /// A signed request of EC2, as its bytes.
    pub fn request(&self, parameters: &str) -> Vec<u8> {
        let body = format!("Version=2016-11-15&{parameters}");
        let identity = Credentials::new(&self.key, &self.secret, None, None, "test").into();
        let parameters = SigningParams::builder()
            .identity(&identity)
            .region("us-east-1")
            .name("ec2")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let headers = [("host", self.authority.as_str()), ("content-type", FORM)];
        let url = format!("http://{}/", self.authority);
        let own = SignableBody::Bytes(body.as_bytes());
        let signable = SignableRequest::new("POST", url, headers.into_iter(), own).unwrap();
        let (instructions, _) = sign(signable, &parameters).unwrap().into_parts();
        let mut text = format!("POST / HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers.into_iter().chain(instructions.headers()) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        format!("{text}\r\n{body}").into_bytes()
    }

    /// Another connection.
    pub fn connect(&self) -> Connection {
        let stream = TcpStream::connect(&self.authority).unwrap();
        stream.set_nodelay(true).unwrap();
        Connection(BufReader::new(stream))
    }

    /// One request on a connection of its own.
    pub fn ask(&self, parameters: &str) -> Answer {
        self.connect().exchange(&self.request(parameters))
    }

    /// Registers an image and waits until it is there; answers its id.
    pub fn register(&self, path: &std::path::Path) -> String {
        let wish = format!("Action=RegisterImage&Name=disk&ImageLocation={}", path.display());
        let id = self.ask(&wish).all("imageId").remove(0);
        let look = format!("Action=DescribeImages&ImageId.1={id}");
        for _ in 0..3000 {
            match self.ask(&look).all("imageState").first().map(String::as_str) {
                Some("available") => return id,
                // Lets others work; nothing depends on how long.
                _ => std::thread::park_timeout(std::time::Duration::from_millis(20)),
            }
        }
        unreachable!("{}", self.ask(&look).body)
    }

    /// One of the daemon's counters.
    pub fn counter(&self, name: &str) -> u64 {
        let request = format!("GET /metrics HTTP/1.1\r\nhost: {}\r\n\r\n", self.authority);
        let answer = self.connect().exchange(request.as_bytes());
        let line = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap().parse().unwrap()
    }
}

/// A connection that is kept.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Says a request and reads its answer.
    pub fn exchange(&mut self, request: &[u8]) -> Answer {
        self.0.get_mut().write_all(request).unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut length = 0;
        loop {
            line.clear();
            self.0.read_line(&mut line).unwrap();
            match line.trim_end().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        Answer { status, body: String::from_utf8(body).unwrap() }
    }
}
