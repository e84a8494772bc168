//! What the integration tests share: where things are, what a test needs of its host, and drivers
//! for the real binaries.
//!
//! A test that needs something absent says so on a line `SKIPPED: …` and passes; `scripts/test`
//! counts those lines, and fails where the absent thing should have been there.

// Every test binary uses its own part of this, and a failed step is a failed test.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

pub mod run;
pub mod vm;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Path of a binary of this workspace. Inside the lab the binaries are not where they were built.
pub fn binary(name: &str) -> PathBuf {
    match std::env::var_os("KILN_BIN_DIR") {
        Some(dir) => PathBuf::from(dir).join(name),
        None => PathBuf::from(match name {
            "kiln" => env!("CARGO_BIN_EXE_kiln"),
            "kiln-vmm" => env!("CARGO_BIN_EXE_kiln-vmm"),
            "kilnd" => env!("CARGO_BIN_EXE_kilnd"),
            other => panic!("no binary {other}"),
        }),
    }
}

/// A root-volume image by recipe name, where the test runner provides it (`KILN_IMAGES`).
pub fn image(name: &str) -> Option<PathBuf> {
    let path = Path::new(&std::env::var_os("KILN_IMAGES")?).join(format!("{name}.raw"));
    path.exists().then_some(path)
}

/// Where tests put large files: a real file system that takes direct I/O.
pub fn scratch() -> tempfile::TempDir {
    let base = std::env::var_os("KILN_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::Builder::new().prefix("kiln-test-").tempdir_in(base).unwrap()
}

/// Says why a test does nothing here.
pub fn skip(why: &str) {
    println!("SKIPPED: {why}");
}

/// The image `name`, or a `SKIPPED` line: without hardware-backed KVM, as in the lab, no stock
/// kernel boots.
#[macro_export]
macro_rules! lab_image {
    ($name:expr) => {
        match $crate::support::image($name) {
            Some(path) => path,
            None => {
                $crate::support::skip(concat!(
                    "needs the image ",
                    $name,
                    " and a KVM that can run it: scripts/test lab"
                ));
                return;
            }
        }
    };
}

/// Runs an ignored test of this test binary in namespaces of its own, where the shell command `host` ran first. It
/// must pass. What it prints is printed by the caller too, so that a failure shows it.
#[track_caller]
pub fn run_apart(test: &str, namespaces: &[&str], host: &str, variables: &[(&str, &OsStr)]) {
    let output = Command::new("unshare")
        .args(namespaces)
        .args(["--propagation", "private", "sh", "-c", &format!("{host} && exec \"$@\""), "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test} failed: {}", output.status);
}

/// A point in time to give up at.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// From now. Generous: it only tells a hang from a slow machine.
    pub fn after(seconds: u64) -> Self {
        Deadline(Instant::now() + Duration::from_secs(seconds))
    }

    /// Time left; panics with `what` when there is none.
    #[track_caller]
    pub fn left(self, what: &str) -> Duration {
        let left = self.0.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "gave up waiting for {what}");
        left
    }
}
