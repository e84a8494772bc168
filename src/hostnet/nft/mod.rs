//! The packet filter, as text for the program `nft`.
//!
//! ```text
//!  base (once per namespace) · filter: from one state to another ──text──▶ run: one nft process, one transaction
//! ```
//! Base chains are created once and never replaced: replacing one loses packets between the old and
//! the new. Everything that changes later is in regular chains, sets and maps.

mod difference;
mod filter;
mod gateway;
mod host;
mod line;
mod port;
mod vpc;

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::BorrowedFd;
use std::process::{Command, Stdio};

pub(crate) use difference::Edits;
pub(crate) use filter::{
    Element, Family, Filter, Place, allowance_counter, host_counter, rule_counter, spoof_counter,
};
pub(crate) use gateway::{base as gateway_base, base_ipv6 as gateway_base_ipv6};
pub(crate) use host::{
    base as host_base, base_ipv6 as host_base_ipv6, remove as host_remove, routed as host_routed,
};
#[cfg(test)]
pub(crate) use line::Match;
pub(crate) use line::{Allow, Line, PeerMatch};
pub use port::Rate;
pub(crate) use port::{kind_counter, make as make_port, rate_counter, remove_chain, remove_counters};
pub(crate) use vpc::base as vpc_base;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::error::HostNetError;
use crate::names;

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

/// The lock under which a script runs. The program holds it too: should this process be killed, whoever
/// waits for the lock waits for what is still under way.
pub(crate) type Held<'a> = Option<BorrowedFd<'a>>;

/// Carries out `script` as one transaction in the calling thread's network namespace.
pub(crate) fn run(held: Held<'_>, script: &str, place: &str) -> Result<Outcome, HostNetError> {
    let filter = |message: String| HostNetError::Filter { place: place.to_owned(), message };
    // A file and not a pipe: whatever ends this process while it writes, nft never reads half a script.
    let input = whole(script).map_err(|error| filter(format!("no memory for the script: {error}")))?;
    let held = held.map(|lock| lock.try_clone_to_owned()).transpose();
    let held = held.map_err(|error| filter(format!("the lock cannot be shared: {error}")))?;
    let child = Command::new(PROGRAM)
        .args(["-f", "-"])
        .env("LC_ALL", "C")
        .stdin(input)
        // It has nothing to say there.
        .stdout(held.map_or_else(Stdio::null, Stdio::from))
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => HostNetError::NoNft(source),
            _ => filter(format!("nft did not start: {source}")),
        })?;
    let output = child.wait_with_output().map_err(|error| filter(format!("nft was lost: {error}")))?;
    if output.status.success() {
        return Ok(Outcome::Done);
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

/// An unnamed file with this text, at its start.
fn whole(script: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create("nft", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(script.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// Lists the named counters of a family in the calling thread's network namespace, as JSON.
pub(crate) fn list_counters(family: &str) -> Result<Vec<u8>, HostNetError> {
    let output = Command::new(PROGRAM)
        .args(["-j", "list", "counters", "table", family, names::TABLE])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(HostNetError::NoNft)?;
    // A table that is not there has no counters.
    Ok(if output.status.success() { output.stdout } else { Vec::new() })
}

/// As [`run`], for what may be there already.
pub(crate) fn ensure(held: Held<'_>, script: &str, place: &str) -> Result<(), HostNetError> {
    match run(held, script, place)? {
        Outcome::Done | Outcome::Exists => Ok(()),
        Outcome::Missing => Err(missing(place)),
    }
}

/// As [`run`], where neither outcome but the first is expected.
pub(crate) fn apply(held: Held<'_>, script: &str, place: &str) -> Result<(), HostNetError> {
    match run(held, script, place)? {
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
