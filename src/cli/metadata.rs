//! `kiln metadata`, `kiln tag`, `kiln password`.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use kiln_controlplane::instances::{ControlPlane, Instance, TagChange};
use kiln_controlplane::metadata::parse_options;

use crate::error::Failure;
use crate::metadata_args::{MetadataArgs, PasswordArgs, TagArgs};
use crate::open;

/// The guest sees a change within a second; a process that takes longer is in trouble.
const PATIENCE: Duration = Duration::from_secs(10);
/// Deepest directory that is followed; EC2's tree has eight levels.
const MAX_DEPTH: usize = 16;
/// Most names printed of a whole tree.
const MAX_NAMES: usize = 16_384;

/// `kiln metadata`.
pub fn metadata(state_dir: &Path, args: &MetadataArgs) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let instance = plane.find(&args.instance)?;
    if let Some(options) = &args.set {
        let options = parse_options(instance.metadata_options, options)?;
        plane.modify_metadata_options(instance.id, options)?;
        return until_applied(&plane, &instance);
    }
    let runtime = crate::runtime()?;
    match &args.path {
        Some(path) => {
            let found = runtime.block_on(plane.read_metadata(&instance, &target(path)))?;
            let nothing = || Failure::new(format!("{} reads nothing at {path} (404)", instance.id));
            show(found.ok_or_else(nothing)?)
        }
        None => runtime.block_on(whole_tree(&plane, &instance)),
    }
}

/// The request target that `path` means.
fn target(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/latest/{path}") }
}

/// Bytes as they are; to a terminal, without what could steer it.
fn show(mut bytes: Vec<u8>) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        let text = String::from_utf8_lossy(&bytes);
        let harmless = |c: char| if c.is_control() && c != '\n' && c != '\t' { '?' } else { c };
        bytes = text.chars().map(harmless).collect::<String>().into_bytes();
        bytes.push(b'\n');
    }
    crate::write_out(&bytes)
}

/// Prints the path of every value, as a guest finds them by following listings. Values are not shown:
/// credentials are among them.
async fn whole_tree(plane: &ControlPlane, instance: &Instance) -> Result<(), Failure> {
    let mut directories = vec![(String::new(), 0)];
    let mut text = String::new();
    let mut names = 0;
    while let Some((directory, depth)) = directories.pop() {
        let listing = plane.read_metadata(instance, &format!("/latest/{directory}")).await?;
        let listing = String::from_utf8_lossy(&listing.unwrap_or_default()).into_owned();
        for name in listing.lines() {
            names += 1;
            if depth > MAX_DEPTH || names > MAX_NAMES {
                return Err(Failure::new(format!("the metadata of {} have no end", instance.id)));
            }
            // Directories: those that say so, those of the top level, and keys.
            if let Some((number, _)) = name.split_once('=').filter(|_| directory.ends_with("public-keys/")) {
                directories.push((format!("{directory}{number}/"), depth + 1));
            } else if name.ends_with('/') {
                directories.push((format!("{directory}{name}"), depth + 1));
            } else if depth == 0 && name != "user-data" {
                directories.push((format!("{name}/"), depth + 1));
            } else {
                text.push_str(&format!("{directory}{name}\n"));
            }
        }
    }
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    show(lines.join("\n").into_bytes())
}

/// Waits until a running instance sees what was changed.
pub fn until_applied(plane: &ControlPlane, instance: &Instance) -> Result<(), Failure> {
    if crate::runtime()?.block_on(plane.metadata_applied(instance.id, PATIENCE))? {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the change is noted, but the process that runs {} has not taken it to the guest yet (see its messages)",
        instance.id
    )))
}

/// `kiln tag`.
pub fn tag(state_dir: &Path, args: &TagArgs) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let instance = plane.find(&args.instance)?;
    let change = TagChange { set: args.tags.clone(), remove: args.remove.clone() };
    plane.change_tags(instance.id, &change)?;
    until_applied(&plane, &instance)
}

/// `kiln password`.
pub fn password(state_dir: &Path, args: &PasswordArgs) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let instance = plane.find(&args.instance)?;
    match plane.password(&instance)? {
        Some(report) => crate::print(&format!("{}\n", report.password_data)),
        None => Err(Failure::new(format!(
            "{} has reported no password on its serial port (a Windows guest does so when it is ready, \
             minutes after its first start)",
            instance.id
        ))),
    }
}
