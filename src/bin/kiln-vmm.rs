//! `kiln-vmm`: runs one virtual machine, told by its control plane what it is made of.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use clap::Parser;
use kiln_disk::{Format, Layer, bootable};
use kiln_sandbox::confine::{Bounds, confine};
use kiln_vmspec::ExitReason;

/// Runs one virtual machine. Started by the control plane, not by hand.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Number of the inherited descriptor that listens for control connections.
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(3..))]
    control_fd: Option<i32>,
    /// Instead, say what is on the disk image on this inherited descriptor, as JSON.
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(3..), requires = "format",
          conflicts_with = "control_fd", required_unless_present = "control_fd")]
    inspect: Option<i32>,
    /// Format of that image.
    #[arg(long, value_name = "FORMAT", value_parser = ["raw", "qcow2"])]
    format: Option<String>,
}

/// An image needs some MiB to be read; a hostile one gets no more than this.
const INSPECTION: Bounds = Bounds { memory_bytes: 1 << 30, cpu_seconds: 60 };

fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    if let Some(fd) = options.inspect {
        return inspect(inherited(fd), options.format.as_deref());
    }
    let Some(fd) = options.control_fd else { return ExitCode::FAILURE };
    match kiln_vmm::process::run(UnixListener::from(inherited(fd))) {
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

/// A descriptor that the control plane left open for us.
fn inherited(fd: i32) -> OwnedFd {
    #[expect(unsafe_code, reason = "an inherited descriptor is known by its number only")]
    // SAFETY: the parent opened this descriptor for us; nothing else in this process, which has only
    // begun, owns it. Should the number be wrong, using it fails like any other bad descriptor.
    unsafe {
        OwnedFd::from_raw_fd(fd)
    }
}

/// Prints what is on an image. Its contents are hostile, so this process gives up its rights first.
fn inspect(image: OwnedFd, format: Option<&str>) -> ExitCode {
    let look = || -> anyhow::Result<String> {
        confine(INSPECTION)?;
        let format = if format == Some("qcow2") { Format::Qcow2 } else { Format::Raw };
        let disk = kiln_disk::open(vec![Layer { file: File::from(image), format }], true)?;
        Ok(serde_json::to_string(&bootable::inspect(&disk, &bootable::Limits::default())?)?)
    };
    match look() {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e:#}");
            ExitCode::FAILURE
        }
    }
}
