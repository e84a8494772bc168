//! `kiln-vmm`: runs one virtual machine, told by its control plane what it is made of.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use clap::Parser;
use kiln_vmspec::ExitReason;

/// Runs one virtual machine. Started by the control plane, not by hand.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Number of the inherited descriptor that listens for control connections.
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(3..))]
    control_fd: i32,
}

fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let listener = inherited(options.control_fd);
    match kiln_vmm::process::run(listener) {
        Ok(ExitReason::PowerOff | ExitReason::Killed) => ExitCode::SUCCESS,
        Ok(ExitReason::Failed { message }) => {
            eprintln!("kiln-vmm: {message}");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("kiln-vmm: {:#}", anyhow::Error::from(e));
            ExitCode::FAILURE
        }
    }
}

/// The listening socket that the control plane left open for us.
fn inherited(fd: i32) -> UnixListener {
    #[expect(unsafe_code, reason = "an inherited descriptor is known by its number only")]
    // SAFETY: the parent opened this descriptor for us; nothing else in this process, which has only
    // begun, owns it. Should the number be wrong, using it fails like any other bad descriptor.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    UnixListener::from(owned)
}
