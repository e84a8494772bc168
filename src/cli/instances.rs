//! `kiln ps`, `console` and `logs`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiln_controlplane::instances::{BaseImage, ControlPlane, Instance, NetworkMode};
use kiln_controlplane::network::{Interface, Membership};
use kiln_controlplane::state::StoreError;
use kiln_model::InstanceState;
use serde::Serialize;

use crate::console::{Events, Input, Outcome, Quit, Session, Signals};
use crate::error::Failure;
use crate::instance_args::{InstanceArg, LogsArgs, PsArgs};
use crate::table::{Table, ago};
use crate::{open, print_json, write_out};

/// How often more output is looked for.
const POLL: Duration = Duration::from_millis(200);
/// Most bytes of a log that are read at one time.
const PIECE: u64 = 1 << 20;

/// An instance as `--json` shows it. User data are not shown: people put secrets there.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    id: String,
    name: Option<&'a str>,
    state: InstanceState,
    instance_type: &'a str,
    vcpus: u8,
    memory_bytes: u64,
    image: String,
    volume_id: String,
    volume_bytes: u64,
    interface_id: String,
    mac: String,
    private_ip: Option<String>,
    ipv6: Option<String>,
    public_ip: Option<String>,
    subnet_id: String,
    vpc_id: String,
    security_groups: Vec<String>,
    interfaces: Vec<ShownInterface>,
    keep: bool,
    /// It belongs to kilnd.
    supervised: bool,
    /// Why it is in its state, where there is something to say.
    reason: Option<&'a str>,
    created: u64,
    launched: u64,
    pid: Option<u32>,
    control_socket: String,
    console_log: String,
}

/// One of its network interfaces, the primary one first.
#[derive(Debug, Serialize)]
struct ShownInterface {
    id: String,
    mac: String,
    private_ip: String,
    ipv6: Option<String>,
    subnet_id: String,
    security_groups: Vec<String>,
}

fn image(instance: &Instance) -> String {
    match &instance.root.base {
        BaseImage::Imported { image } => image.to_string(),
        BaseImage::InPlace { path, .. } => path.display().to_string(),
    }
}

fn address(instance: &Instance) -> Option<String> {
    (instance.network == NetworkMode::Vpc).then(|| instance.interface.address.to_string())
}

fn shown<'a>(plane: &ControlPlane, memberships: &[Membership], instance: &'a Instance) -> Shown<'a> {
    let dir = plane.instance_dir(instance.id);
    let groups = |interface: &Interface| -> Vec<String> {
        let membership = memberships.iter().find(|row| row.interface.id == interface.id);
        membership.map_or_else(Vec::new, |row| row.groups.iter().map(ToString::to_string).collect())
    };
    let interface = |interface: &Interface| ShownInterface {
        id: interface.id.to_string(),
        mac: interface.mac.to_string(),
        private_ip: interface.address.to_string(),
        ipv6: interface.ipv6.map(|address| address.to_string()),
        subnet_id: interface.subnet.id.to_string(),
        security_groups: groups(interface),
    };
    Shown {
        id: instance.id.to_string(),
        name: instance.name(),
        state: instance.state,
        instance_type: &instance.instance_type,
        vcpus: instance.vcpus,
        memory_bytes: instance.memory.as_bytes(),
        image: image(instance),
        volume_id: instance.root.id.to_string(),
        volume_bytes: instance.root.size.as_bytes(),
        interface_id: instance.interface.id.to_string(),
        mac: instance.interface.mac.to_string(),
        private_ip: address(instance),
        ipv6: instance.interface.ipv6.map(|address| address.to_string()),
        public_ip: instance.public_address.map(|address| address.to_string()),
        subnet_id: instance.interface.subnet.id.to_string(),
        vpc_id: instance.interface.subnet.vpc.to_string(),
        security_groups: groups(&instance.interface),
        interfaces: instance.interfaces().map(interface).collect(),
        keep: instance.keep,
        supervised: instance.supervised,
        reason: instance.reason.as_ref().map(|reason| reason.message.as_str()),
        created: instance.created,
        launched: instance.launched,
        pid: instance.vmm.map(|vmm| vmm.pid),
        control_socket: dir.control_socket().display().to_string(),
        console_log: console_log(plane, instance).display().to_string(),
    }
}

fn console_log(plane: &ControlPlane, instance: &Instance) -> PathBuf {
    instance.console_log.clone().unwrap_or_else(|| plane.instance_dir(instance.id).console_log())
}

/// `kiln ps`.
pub fn ps(state_dir: &Path, args: &PsArgs) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let instances = plane.instances()?;
    if args.json {
        let memberships = plane.networks().memberships()?;
        return print_json(&instances.iter().map(|i| shown(&plane, &memberships, i)).collect::<Vec<_>>());
    }
    let now = plane.clock().unix_seconds();
    let mut table = Table::new(["ID", "NAME", "STATE", "TYPE", "ADDRESS", "STARTED", "IMAGE"]);
    for instance in &instances {
        table.row([
            instance.id.to_string(),
            instance.name().unwrap_or_default().to_owned(),
            instance.state.to_string(),
            instance.instance_type.clone(),
            address(instance).unwrap_or_else(|| "-".to_owned()),
            ago(instance.launched, now),
            image(instance),
        ]);
    }
    crate::print(&table.render())
}

/// `kiln console`.
pub fn console(state_dir: &Path, args: &InstanceArg) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let instance = plane.find(&args.instance)?;
    let (connection, events) = plane.connect(&instance)?;
    let runtime = crate::runtime()?;
    let outcome = runtime.block_on(async {
        let input = Input::choose(false);
        let title = instance.id.to_string();
        Session::new(&title, Arc::new(connection), Events::Other(events), input, Quit::Session)?
            .run(Signals::new()?)
            .await
    })?;
    if outcome == Outcome::Ended {
        eprintln!("{} has ended", instance.id);
    }
    Ok(())
}

/// `kiln logs`.
pub fn logs(state_dir: &Path, args: &LogsArgs) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let instance = plane.find(&args.instance)?;
    let path = console_log(&plane, &instance);
    let failed = |source| StoreError::File { action: "read the console log", path: path.clone(), source };
    let mut file = match File::open(&path) {
        // It has printed nothing, and never will.
        Err(e) if e.kind() == io::ErrorKind::NotFound && !args.follow => return Ok(()),
        file => file.map_err(failed)?,
    };
    loop {
        // Before reading: what is printed until then is shown.
        let lives = plane.find(&instance.id.to_string()).is_ok_and(|now| now.vmm.is_some());
        let mut bytes = Vec::new();
        while (&mut file).take(PIECE).read_to_end(&mut bytes).map_err(failed)? > 0 {
            write_out(&bytes)?;
            bytes.clear();
        }
        if !args.follow || !lives {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}
