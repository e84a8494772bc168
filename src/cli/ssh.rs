//! `kiln ssh`: the system's `ssh` with the address, the user and the key of an instance.
//!
//! | what | how it is chosen |
//! |---|---|
//! | address | the private one, where groups and ACLs let this host in; else the public one |
//! | user | what is said before `@`; else that of the distribution that the image is named after |
//! | key | `--identity`; else a private key beside the `.pub` in `~/.ssh` that is the instance's; else as `ssh` |
//! | host key | known by the instance's id, since addresses come back |

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_controlplane::instances::{BaseImage, ControlPlane, Instance, InstanceError, NetworkMode};
use kiln_model::security::Message;
use kiln_model::{InstanceState, SshPublicKey};

use crate::error::Failure;
use crate::instance_args::SshArgs;
use crate::open;

/// Users that the images of distributions make, by a word in the image's name.
const USERS: [(&str, &str); 9] = [
    ("debian", "debian"),
    ("ubuntu", "ubuntu"),
    ("fedora", "fedora"),
    ("alpine", "alpine"),
    ("rocky", "rocky"),
    ("alma", "almalinux"),
    ("centos", "centos"),
    ("amazon", "ec2-user"),
    ("al2023", "ec2-user"),
];
/// The user of all others.
const OTHERS: &str = "root";
/// No public key file comes near this size.
const MAX_KEY_FILE: u64 = 64 << 10;

/// Becomes `ssh`; returns only if that fails.
pub fn ssh(state_dir: &Path, args: &SshArgs) -> Result<(), Failure> {
    let (user, wanted) = match args.instance.split_once('@') {
        Some((user, wanted)) => (Some(user), wanted),
        None => (None, args.instance.as_str()),
    };
    let plane = open(state_dir)?;
    let instance = plane.find(wanted)?;
    if instance.state != InstanceState::Running {
        return Err(InstanceError::NotRunning { id: instance.id, state: instance.state }.into());
    }
    let address = address(&plane, &instance, args.port)?;
    let user = user.map_or_else(|| user_of(&plane, &instance), str::to_owned);
    let mut command = Command::new("ssh");
    command
        .args(["-o", "StrictHostKeyChecking=accept-new", "-o"])
        .arg(format!("HostKeyAlias={}", instance.id));
    if let Some(identity) = args.identity.clone().or_else(|| identity(&instance)) {
        command.arg("-i").arg(identity);
    }
    command.args(["-p", &args.port.to_string(), "-l", &user, &address.to_string()]).args(&args.command);
    Err(crate::Host("run ssh", command.exec()).into())
}

/// An address of the instance at which this host may connect to `port`.
fn address(plane: &ControlPlane, instance: &Instance, port: u16) -> Result<Ipv4Addr, Failure> {
    let id = instance.id;
    if instance.network == NetworkMode::LinkLocalOnly {
        return Err(Failure::new(format!("{id} was run without a network (see kiln console)")));
    }
    let networks = plane.networks();
    let vpc = networks.find_vpc(Some(&instance.interface.subnet.vpc.to_string()))?;
    if let Some(host) = vpc.host_address() {
        let (host, own) = (IpAddr::V4(host), IpAddr::V4(instance.interface.address));
        if networks.explain(vpc.id, host, own, Message::Tcp { port })?.passes() {
            return Ok(instance.interface.address);
        }
    }
    instance.public_address.ok_or_else(|| {
        Failure::new(format!(
            "no rule lets this host connect to {id}, which has no public address either \
             (kiln sg authorize GROUP --allow tcp:{port}:host)"
        ))
    })
}

fn user_of(plane: &ControlPlane, instance: &Instance) -> String {
    let name = match &instance.root.base {
        BaseImage::Imported { image } => {
            plane.images().find(&image.to_string()).ok().and_then(|image| image.name)
        }
        BaseImage::InPlace { path, .. } => path.file_name().map(|name| name.to_string_lossy().into_owned()),
    };
    let name = name.unwrap_or_default().to_ascii_lowercase();
    let found = USERS.iter().find(|(word, _)| name.contains(word));
    found.map_or(OTHERS, |(_, user)| user).to_owned()
}

/// The private key beside a public one in `~/.ssh` that is the instance's.
fn identity(instance: &Instance) -> Option<PathBuf> {
    let key = instance.ssh_key.as_ref()?;
    let directory = PathBuf::from(std::env::var_os("HOME")?).join(".ssh");
    let files = std::fs::read_dir(directory).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let is_its = |path: &PathBuf| {
        let small = std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= MAX_KEY_FILE);
        let text = small.then(|| std::fs::read_to_string(path).ok()).flatten();
        let parsed = text.and_then(|text| text.parse::<SshPublicKey>().ok());
        parsed.is_some_and(|other| other.is_same_key(key)) && path.with_extension("").exists()
    };
    let mut public = files.filter(|path| path.extension().is_some_and(|end| end == "pub"));
    public.find(is_its).map(|path| path.with_extension(""))
}
