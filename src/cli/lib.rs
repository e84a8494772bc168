//! The command line of Kiln: arguments in, terminal out. What is done is in the control plane.

#![forbid(unsafe_code)]

mod acls;
mod args;
mod completion;
mod console;
mod daemon;
mod detached;
mod environment;
mod error;
mod events;
mod groups;
mod host;
mod identity;
mod image_args;
mod images;
mod instance_args;
mod instances;
mod interface_arg;
mod interfaces;
mod lifecycle;
mod metadata;
mod metadata_args;
mod network_args;
mod networks;
mod progress;
mod roles;
mod run;
mod ssh;
mod table;
mod volume_arg;
mod volume_args;
mod volumes;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use kiln_controlplane::instances::ControlPlane;
use kiln_controlplane::network::HostFabric;
use kiln_sts::Sts;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command};
use error::Failure;

/// Runs the program with these arguments, the first of which is its name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    console::restore_on_panic();
    completion::answer();
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        // Help and version are "errors" that go to standard output.
        Err(e) if !e.use_stderr() => {
            // Nobody left to read the help is no failure.
            let _ = e.print();
            return ExitCode::SUCCESS;
        }
        Err(e) => return Failure::usage(&e).report(),
    };
    log(cli.verbose);
    match dispatch(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn dispatch(cli: &Cli) -> Result<(), Failure> {
    let state_dir = cli.state_dir.as_path();
    match &cli.command {
        Command::Run(args) if args.detach => detached::run(state_dir, args),
        Command::Run(args) => run::run(state_dir, args),
        Command::Image(command) => images::image(state_dir, command),
        Command::Ps(args) => instances::ps(state_dir, args),
        Command::Console(args) => instances::console(state_dir, args),
        Command::Logs(args) => instances::logs(state_dir, args),
        Command::Ssh(args) => ssh::ssh(state_dir, args),
        Command::Start(args) => lifecycle::start(state_dir, args),
        Command::Stop(args) => lifecycle::stop(state_dir, args),
        Command::Reboot(args) => lifecycle::reboot(state_dir, args),
        Command::Terminate(args) => lifecycle::terminate(state_dir, args),
        Command::Type(args) => lifecycle::change_type(state_dir, args),
        Command::Volume(command) => volumes::volume(state_dir, command),
        Command::Snapshot(command) => volumes::snapshot(state_dir, command),
        Command::Events(args) => events::events(state_dir, args),
        Command::Sg(command) => groups::sg(state_dir, command),
        Command::Vpc(command) => networks::vpc(state_dir, command),
        Command::Address(command) => networks::address(state_dir, command),
        Command::Acl(command) => acls::acl(state_dir, command),
        Command::PrefixList(command) => interfaces::prefix_list(state_dir, command),
        Command::Interface(command) => interfaces::interface(state_dir, command),
        Command::Subnet(command) => networks::subnet(state_dir, command),
        Command::Role(command) => roles::role(state_dir, command),
        Command::Metadata(args) => metadata::metadata(state_dir, args),
        Command::Tag(args) => metadata::tag(state_dir, args),
        Command::Password(args) => metadata::password(state_dir, args),
        Command::Env => environment::env(state_dir),
        Command::Identity(command) => identity::identity(state_dir, *command),
        Command::Types(args) => host::types(args),
        Command::Doctor(args) => host::doctor(state_dir, args),
        Command::Completion { shell } => {
            let script = completion::script(*shell).map_err(|e| Host("write for this shell", e))?;
            write_out(&script)
        }
    }
}

/// Logs go to standard error. Without a wish, only what needs attention.
fn log(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "kiln=info,kiln_cli=info,kiln_controlplane=info,kiln_hostnet=info,warn",
        _ => "kiln=debug,kiln_cli=debug,kiln_controlplane=debug,kiln_hostnet=debug,info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colour = io::stderr().is_terminal();
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    format.with_ansi(colour).with_writer(io::stderr).init();
}

/// Opens the state directory; clears away what killed processes left.
fn open(state_dir: &Path) -> Result<ControlPlane, Failure> {
    Ok(ControlPlane::open(state_dir, Arc::new(HostFabric::default()), Arc::new(Sts))?)
}

#[derive(Debug, thiserror::Error)]
#[error("cannot {0}")]
struct Host(&'static str, #[source] io::Error);

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Ok(builder.enable_all().build().map_err(|e| Host("start the event loop", e))?)
}

/// Writes to standard output. A reader that has gone (`kiln ps | head`) is no failure.
fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Host("write to standard output", e).into()),
        _ => Ok(()),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    write_out(text.as_bytes())
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print(&text)
}
