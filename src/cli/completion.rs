//! Completion in the shell: commands, options, and the names of what there is.
//!
//! The script that `kiln completion` prints asks this program at each press of the key. What may stand for an
//! argument is told by its name, in one table, so that no argument is forgotten.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::{Arg, Command, CommandFactory};
use clap_complete::engine::{
    ArgValueCandidates, ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter as _,
};
use clap_complete::env::{CompleteEnv, Shells};
use kiln_controlplane::credentials::Role;
use kiln_controlplane::images::Image;
use kiln_controlplane::instances::Instance;
use kiln_controlplane::network::{
    ElasticAddress, Membership, NetworkAcl, PrefixList, SecurityGroup, Subnet, Vpc,
};
use kiln_controlplane::state::{Row, SqliteStore, dir, rows};
use kiln_controlplane::volumes::{Snapshot, Volume};
use kiln_model::InstanceType;

use crate::args::Cli;

/// Tells this program that it is asked for completions, and by which shell.
const VARIABLE: &str = "COMPLETE";
const PROGRAM: &str = "kiln";

/// Values, each with what it is.
type Values = Vec<(String, String)>;

/// Names of arguments, and what may stand there.
type Known = (&'static [&'static str], fn() -> Values);

const ARGUMENTS: [Known; 13] = [
    (&["instance", "instances", "peer"], instances),
    (&["instance_type"], types),
    (&["role"], || named(|role: &Role| (Some(role.name.as_str().to_owned()), role.id.clone()))),
    (&["group", "groups", "security_group"], || {
        named(|group: &SecurityGroup| (Some(group.name.clone()), group.id.to_string()))
    }),
    (&["vpc"], || named(|vpc: &Vpc| (vpc.name.clone(), vpc.id.to_string()))),
    (&["subnet"], || named(|subnet: &Subnet| (subnet.name.clone(), subnet.id.to_string()))),
    (&["acl"], || named(|acl: &NetworkAcl| (Some(acl.name.clone()), acl.id.to_string()))),
    (&["list"], || named(|list: &PrefixList| (Some(list.name.clone()), list.id.to_string()))),
    (&["volume", "volumes"], || named(|volume: &Volume| (None, volume.id.to_string()))),
    (&["snapshot", "snapshots"], || named(|snapshot: &Snapshot| (None, snapshot.id.to_string()))),
    (&["interface", "interfaces"], || named(|row: &Membership| (None, row.interface.id.to_string()))),
    (&["address"], || named(|row: &ElasticAddress| (Some(row.address.to_string()), row.id.to_string()))),
    (&["images"], images),
];

/// Arguments that stand for something else as options: what is made, in several parts.
const NO_OPTIONS: [&str; 2] = ["volume", "interface"];

/// Answers a shell that asks for completions, and ends the program; returns if none does.
pub fn answer() {
    CompleteEnv::with_factory(|| with_values(Cli::command())).var(VARIABLE).bin(PROGRAM).complete();
}

/// The script that has `shell` ask. A shell that is not known here is none that clap knows.
pub fn script(shell: clap_complete::Shell) -> std::io::Result<Vec<u8>> {
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let shell = shells.completer(&shell.to_string());
    let shell = shell.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::Unsupported))?;
    shell.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script)?;
    Ok(script)
}

fn with_values(command: Command) -> Command {
    command.mut_args(with_value).mut_subcommands(with_values)
}

fn with_value(argument: Arg) -> Arg {
    let name = argument.get_id().as_str();
    if name == "image" {
        return argument.add(ArgValueCompleter::new(image_or_path));
    }
    if NO_OPTIONS.contains(&name) && !argument.is_positional() {
        return argument;
    }
    match ARGUMENTS.iter().find(|(names, _)| names.contains(&name)) {
        Some((_, values)) => argument.add(ArgValueCandidates::new(|| candidates(values()))),
        None => argument,
    }
}

fn candidates(values: Values) -> Vec<CompletionCandidate> {
    let one = |(value, help): (String, String)| CompletionCandidate::new(value).help(Some(help.into()));
    values.into_iter().map(one).collect()
}

/// An image is one of ours or a file.
fn image_or_path(current: &OsStr) -> Vec<CompletionCandidate> {
    let mut found = candidates(images());
    found.retain(|own| own.get_value().as_encoded_bytes().starts_with(current.as_encoded_bytes()));
    found.extend(PathCompleter::any().complete(current));
    found
}

/// What is in the state directory, which is not made for this. Who may not read it gets no names.
fn all<R: Row>() -> Vec<std::sync::Arc<R>> {
    let root = std::env::var_os("KILN_STATE_DIR").map_or_else(|| PathBuf::from(dir::DEFAULT), PathBuf::from);
    let database = dir::database(&root);
    let store = database.exists().then(|| SqliteStore::open(&database).ok()).flatten();
    let rows = store.and_then(|store| rows::<R>(&store).ok());
    rows.map(|rows| rows.iter().cloned().collect()).unwrap_or_default()
}

/// Names where there are some, ids where there is none.
fn named<R: Row>(describe: impl Fn(&R) -> (Option<String>, String)) -> Values {
    let one = |row: &std::sync::Arc<R>| match describe(row) {
        (Some(name), id) => (name, id),
        (None, id) => (id, String::new()),
    };
    all::<R>().iter().map(one).collect()
}

fn instances() -> Values {
    let there = all::<Instance>();
    let there = there.iter().filter(|instance| !instance.is_gone());
    let one = |instance: &std::sync::Arc<Instance>| {
        let id = instance.id.to_string();
        let what = format!("{} {}", instance.instance_type, instance.state);
        match instance.name() {
            Some(name) => (name.to_owned(), format!("{id} {what}")),
            None => (id, what),
        }
    };
    there.map(one).collect()
}

fn images() -> Values {
    named(|image: &Image| (image.name.clone(), image.id.to_string()))
}

fn types() -> Values {
    InstanceType::all()
        .map(|kind| (kind.name.to_owned(), format!("{} vCPU, {}", kind.vcpus, kind.memory)))
        .collect()
}
