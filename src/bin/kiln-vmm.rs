//! `kiln-vmm`: runs one virtual machine, told by its control plane what it is made of.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use clap::Parser;
use kiln_disk::{Format, Layer, bootable};
use kiln_sandbox::confine::{Bounds, confine};
use kiln_sandbox::{jail, last_words, seccomp};
use kiln_vmm::confined::Confinement;
use kiln_vmspec::ExitReason;

/// Runs one virtual machine. Started by the control plane, not by hand.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Number of the inherited descriptor that listens for control connections.
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(3..))]
    control_fd: Option<i32>,
    /// Close the jail first: give up all rights, become this user and group, see nothing of the host. The
    /// control plane always asks for it.
    #[arg(long, value_name = "UID", requires = "largest_file")]
    jail: Option<u32>,
    /// Bytes that no file may grow beyond in the jail.
    #[arg(long, value_name = "BYTES", requires = "jail")]
    largest_file: Option<u64>,
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

/// Descriptors of a VMM with the most vCPUs, queues and interrupt vectors that there can be.
const MOST_DESCRIPTORS: u64 = 1024;
/// Threads likewise, with those that the kernel makes for io_uring.
const MOST_THREADS: u64 = 512;
/// Exit status after a panic, as Rust programs have it.
const PANICKED: i32 = 101;

fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // What is logged while nobody reads is lost; to complain about that on the same pipe would be a panic.
        .log_internal_errors(false)
        .init();
    if let Some(fd) = options.inspect {
        return inspect(inherited(fd), options.format.as_deref());
    }
    let Some(fd) = options.control_fd else { return ExitCode::FAILURE };
    let listener = inherited(fd);
    let plan = options.jail.zip(options.largest_file).map(|(uid, largest_file)| jail::Plan {
        uid,
        largest_file,
        descriptors: MOST_DESCRIPTORS,
        threads: MOST_THREADS,
    });
    let confinement = match plan.map(|plan| close_jail(&plan, &listener)) {
        Some(Ok(())) => Confinement::On,
        Some(Err(e)) => {
            say(&format!("{e:#}"));
            return ExitCode::FAILURE;
        }
        None => Confinement::Off,
    };
    let status = match kiln_vmm::process::run(UnixListener::from(listener), confinement) {
        Ok(ExitReason::PowerOff | ExitReason::Killed) => 0,
        Ok(ExitReason::Failed { message }) => {
            say(&message);
            1
        }
        Err(e) => {
            say(&format!("{:#}", anyhow::Error::from(e)));
            1
        }
    };
    // The threads of the machine wait for work that will not come.
    last_words::leave(status)
}

/// One line for whoever reads what this process prints, if anybody does.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "kiln-vmm: {text}");
}

/// Everything from which nothing that a guest does may free this process.
fn close_jail(plan: &jail::Plan, listener: &OwnedFd) -> anyhow::Result<()> {
    seccomp::one_heap();
    seccomp::report_violations()?;
    // A panic unwinds and then aborts by calls that no list has: say it and end, whichever thread it is.
    std::panic::set_hook(Box::new(|panic| {
        last_words::say_and_leave(&[&panic.to_string()], PANICKED);
    }));
    for gap in jail::enter(plan, listener.as_fd())? {
        say(&format!("the jail lacks {gap}"));
    }
    Ok(())
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
