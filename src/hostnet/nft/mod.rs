//! The packet filter, as text for the program `nft`.
//!
//! ```text
//!  render: base (once per namespace) · attach · detach ──text──▶ run: one nft process, one transaction
//! ```
//! Base chains are created once and never replaced: replacing one loses packets between the old and
//! the new. Everything that changes later is in regular chains, sets and maps.

mod gateway;
mod host;
mod vpc;

use std::io::{self, Write};
use std::process::{Command, Stdio};

pub(crate) use gateway::base as gateway_base;
pub(crate) use host::{base as host_base, remove as host_remove};
pub(crate) use vpc::{Member, attach, base as vpc_base, detach};

use crate::error::HostNetError;

/// The program.
const PROGRAM: &str = "nft";
/// Longest part of its complaint that is passed on.
const MAX_MESSAGE: usize = 400;

/// How a transaction ended that may find things already there, or not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of it happened.
    Done,
    /// None of it happened, because something it creates exists.
    Exists,
    /// None of it happened, because something it refers to is missing.
    Missing,
}

/// Carries out `script` as one transaction in the calling thread's network namespace.
pub(crate) fn run(script: &str, place: &str) -> Result<Outcome, HostNetError> {
    let filter = |message: String| HostNetError::Filter { place: place.to_owned(), message };
    let mut child = Command::new(PROGRAM)
        .args(["-f", "-"])
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => HostNetError::NoNft(source),
            _ => filter(format!("nft did not start: {source}")),
        })?;
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output().map_err(|error| filter(format!("nft was lost: {error}")))?;
    if output.status.success() {
        // A write that failed although nft was content cannot have been part of the script.
        return written.unwrap_or(Ok(())).map(|()| Outcome::Done).map_err(|error| filter(error.to_string()));
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    if complaint.contains("File exists") {
        return Ok(Outcome::Exists);
    }
    if complaint.contains("No such file or directory") {
        return Ok(Outcome::Missing);
    }
    tracing::debug!(place, script, %complaint, "nft refused");
    let line = complaint.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    Err(filter(line.chars().take(MAX_MESSAGE).collect()))
}

/// As [`run`], for what may be there already.
pub(crate) fn ensure(script: &str, place: &str) -> Result<(), HostNetError> {
    match run(script, place)? {
        Outcome::Done | Outcome::Exists => Ok(()),
        Outcome::Missing => Err(missing(place)),
    }
}

/// As [`run`], where neither outcome but the first is expected.
pub(crate) fn apply(script: &str, place: &str) -> Result<(), HostNetError> {
    match run(script, place)? {
        Outcome::Done => Ok(()),
        Outcome::Exists => {
            let message = "something of this name is there already and differs".to_owned();
            Err(HostNetError::Filter { place: place.to_owned(), message })
        }
        Outcome::Missing => Err(missing(place)),
    }
}

fn missing(place: &str) -> HostNetError {
    let message = "nft or the kernel lacks something that it refers to".to_owned();
    HostNetError::Filter { place: place.to_owned(), message }
}
