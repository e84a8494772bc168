//! `kiln run` and `kiln start`: an instance in the foreground, and what both kinds of `kiln run` ask for.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kiln_controlplane::host::host_memory;
use kiln_controlplane::instances::{
    BootOverride, ControlPlane, Ending, Instance, LaunchRequest, NetworkMode, Remembered, RunningInstance,
    ShutdownBehavior,
};
use kiln_controlplane::metadata::parse_options;
use kiln_controlplane::network::{Ipv6Wish, Placement};
use kiln_model::{SshPublicKey, UserData};
use kiln_vmspec::MetadataOptions;
use rustix::process::DumpableBehavior;

use crate::args::RunArgs;
use crate::console::{Events, Input, Quit, Session};
use crate::error::Failure;
use crate::instance_args::StartArgs;
use crate::open;
use crate::volume_arg::with_devices;

/// No public key comes near this size.
const MAX_KEY_FILE: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
#[error("cannot read {what} from {path}")]
struct ReadError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Reads a file of the user, at most one byte more than `limit`.
fn read_file(what: &'static str, path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    let failed = |source| ReadError { what, path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn user_data(path: &Path) -> Result<UserData, Failure> {
    let limit = u64::try_from(UserData::MAX).unwrap_or(u64::MAX);
    let bytes = read_file("user data", path, limit)?;
    if bytes.len() > UserData::MAX {
        // The whole size says more than "one too many".
        let size = std::fs::metadata(path).map_or(limit + 1, |m| m.len().max(limit + 1));
        return Err(kiln_model::InvalidUserData::TooLarge(size).into());
    }
    Ok(UserData::new(bytes)?)
}

fn ssh_key(path: &Path) -> Result<SshPublicKey, Failure> {
    let bytes = read_file("the SSH public key", path, MAX_KEY_FILE)?;
    let bad = |why: &str| Failure::new(format!("{} is no OpenSSH public key: {why}", path.display()));
    let text = String::from_utf8(bytes).map_err(|_| bad("it is not text"))?;
    text.parse().map_err(|e: kiln_model::ParseSshKeyError| bad(&e.to_string()))
}

/// An absolute path: the instance may be started again from elsewhere.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let what = "the path of a file";
    Ok(std::path::absolute(path).map_err(|source| ReadError { what, path: path.to_owned(), source })?)
}

/// What the arguments ask for. Everything that is wrong with the words themselves is said here, before
/// anything is touched.
pub fn request(args: &RunArgs) -> Result<LaunchRequest, Failure> {
    let options = MetadataOptions::default();
    let request = LaunchRequest {
        image: args.image.clone(),
        format: args.format.map(Into::into),
        instance_type: args.instance_type.clone(),
        vcpus: args.vcpus,
        memory: args.memory,
        hugepages: args.hugepages,
        volume_size: args.volume_size,
        network: if args.no_network { NetworkMode::LinkLocalOnly } else { NetworkMode::Vpc },
        placement: Placement {
            subnet: args.subnet.clone(),
            address: args.private_ip,
            ipv6: match args.ipv6 {
                None => Ipv6Wish::None,
                Some(None) => Ipv6Wish::Any,
                Some(Some(address)) => Ipv6Wish::Address(address),
            },
            groups: args.security_group.clone(),
            allow: args.allow.clone(),
            public_ip: args.public_ip,
            publish: args.publish.clone(),
            ..Placement::default()
        },
        more_interfaces: args.interface.iter().map(|interface| interface.0.clone()).collect(),
        user_data: args.user_data.as_deref().map(user_data).transpose()?,
        ssh_key: args.ssh_key.as_deref().map(ssh_key).transpose()?,
        metadata_options: parse_options(options, &args.metadata_options)?,
        boot: BootOverride {
            kernel: args.kernel.as_deref().map(absolute).transpose()?,
            initrd: args.initrd.as_deref().map(absolute).transpose()?,
            cmdline: args.cmdline.clone(),
        },
        console_log: args.console_log.as_deref().map(absolute).transpose()?,
        name: args.name.clone(),
        tags: args.tags.clone(),
        profile: args.role.clone(),
        keep: args.keep,
        shutdown: ShutdownBehavior::Stop,
        protected: false,
        key_name: None,
        launch_template: None,
        remembered: Remembered::default(),
        keep_root: None,
        root_kind: None,
        volumes: with_devices(&args.volume),
    };
    request.check(host_memory())?;
    Ok(request)
}

/// `kiln run` in the foreground.
pub fn run(state_dir: &Path, args: &RunArgs) -> Result<(), Failure> {
    let request = request(args)?;
    foreground(state_dir, args.console_input, move |plane| Ok(plane.launch(&request, host_memory())?))
}

/// `kiln start` in the foreground.
pub fn start(state_dir: &Path, args: &StartArgs) -> Result<(), Failure> {
    let wanted = args.instance.clone();
    foreground(state_dir, args.console_input, move |plane| {
        let instance = plane.find(&wanted)?;
        Ok(plane.start(instance.id)?)
    })
}

fn foreground(
    state_dir: &Path,
    console_input: bool,
    launch: impl FnOnce(&ControlPlane) -> Result<RunningInstance, Failure>,
) -> Result<(), Failure> {
    // Credentials and keys are in this memory: no core dump, and no debugger of other users.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let runtime = crate::runtime()?;
    // From here on SIGINT and its like are noted instead of ending this process half-way through a
    // launch; the session sees them when it begins.
    let session_signals = runtime.block_on(async { crate::console::Signals::new() })?;
    let plane = open(state_dir)?;
    let mut run = launch(&plane)?;
    introduce(run.instance());
    let title = title(run.instance());
    let commands = run.commands();
    let keeper = run.keeper();
    let result = runtime.block_on(async {
        let input = Input::choose(console_input);
        let session = Session::new(&title, commands, Events::Own(&mut run), input, Quit::Machine)?;
        // Dropped with the runtime; until then metadata follow what is said of the instance elsewhere.
        if let Some(keeper) = keeper {
            tokio::spawn(keeper.run());
        }
        session.run(session_signals).await
    });
    // Whatever the session met, the machine ends and its traces go.
    let (instance, ending) = run.finish()?;
    result?;
    conclude(&plane, &instance, &ending)
}

fn title(instance: &Instance) -> String {
    match instance.name() {
        Some(name) => format!("{name} ({})", instance.id),
        None => instance.id.to_string(),
    }
}

fn introduce(instance: &Instance) {
    eprintln!(
        "{}: {} ({} vCPU, {}), {}",
        title(instance),
        instance.instance_type,
        instance.vcpus,
        instance.memory,
        match instance.network {
            NetworkMode::Vpc => {
                let mut text = instance.interface.address.to_string();
                if let Some(ipv6) = instance.interface.ipv6 {
                    text += &format!(", {ipv6}");
                }
                if let Some(public) = instance.public_address {
                    text += &format!(", public {public}");
                }
                text
            }
            NetworkMode::LinkLocalOnly => "no network".to_owned(),
        }
    );
}

fn conclude(plane: &ControlPlane, instance: &Instance, ending: &Ending) -> Result<(), Failure> {
    if instance.stays() && plane.find(&instance.id.to_string()).is_ok() {
        eprintln!("{} is stopped; start it again with: kiln start {}", title(instance), instance.id);
    }
    match ending {
        Ending::PoweredOff => Ok(()),
        Ending::Killed => Err(Failure::new("the machine was ended before its guest powered off")),
        Ending::Failed(reason) => Err(Failure::new(reason.clone())),
    }
}
