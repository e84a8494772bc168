//! `kiln ps`, `console`, `stop`, `terminate`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kiln_controlplane::instances::{BaseImage, ControlPlane, Instance, InstanceError, NetworkMode};
use kiln_controlplane::network::Membership;
use kiln_controlplane::vmm_process::{Commands as _, VmmEvent};
use kiln_model::{InstanceEvent, InstanceState};
use kiln_vmspec::Command;
use serde::Serialize;

use crate::args::{InstanceArg, PsArgs, StopArgs, TerminateArgs};
use crate::console::{Events, Input, Outcome, Quit, Session, Signals};
use crate::error::Failure;
use crate::progress::Spinner;
use crate::table::{Table, ago};
use crate::{open, print_json};

/// How often a change of state is looked for.
const POLL: Duration = Duration::from_millis(100);

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
    public_ip: Option<String>,
    subnet_id: String,
    vpc_id: String,
    security_groups: Vec<String>,
    keep: bool,
    created: u64,
    launched: u64,
    pid: Option<u32>,
    control_socket: String,
    console_log: String,
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
    let membership = memberships.iter().find(|row| row.interface.id == instance.interface.id);
    let groups = membership.map_or_else(Vec::new, |row| row.groups.iter().map(ToString::to_string).collect());
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
        public_ip: instance.public_address.map(|address| address.to_string()),
        subnet_id: instance.interface.subnet.id.to_string(),
        vpc_id: instance.interface.subnet.vpc.to_string(),
        security_groups: groups,
        keep: instance.keep,
        created: instance.created,
        launched: instance.launched,
        pid: instance.vmm.map(|vmm| vmm.pid),
        control_socket: dir.control_socket().display().to_string(),
        console_log: instance.console_log.clone().unwrap_or_else(|| dir.console_log()).display().to_string(),
    }
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

/// `kiln stop`.
pub fn stop(state_dir: &Path, args: &StopArgs) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let instance = plane.find(&args.instance)?;
    if instance.state == InstanceState::Stopped {
        return Ok(());
    }
    let (connection, mut events) = plane.connect(&instance)?;
    let runtime = crate::runtime()?;
    runtime.block_on(async {
        plane.note(instance.id, InstanceEvent::StopRequested)?;
        connection.request(Command::PowerButton).await?;
        let spinner = Spinner::new(format!("Waiting for {} to power off", instance.id));
        let ended = async {
            while let Some(event) = events.recv().await {
                if matches!(event, VmmEvent::Exited(_) | VmmEvent::Lost { .. }) {
                    break;
                }
            }
            // The process that runs it still has to clean up.
            while plane.find(&instance.id.to_string()).is_ok_and(|i| i.state != InstanceState::Stopped) {
                tokio::time::sleep(POLL).await;
            }
        };
        let result = tokio::time::timeout(Duration::from_secs(args.timeout), ended).await;
        drop(spinner);
        result.map_err(|_| {
            Failure::new(format!(
                "{} did not power off within {} seconds (kiln terminate {0} ends it at once)",
                instance.id, args.timeout
            ))
        })
    })
}

/// `kiln terminate`.
pub fn terminate(state_dir: &Path, args: &TerminateArgs) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let runtime = crate::runtime()?;
    for wanted in &args.instances {
        let instance = plane.find(wanted)?;
        let spinner = Spinner::new(format!("Terminating {}", instance.id));
        let result: Result<(), InstanceError> = runtime.block_on(plane.terminate(instance.id));
        drop(spinner);
        result?;
    }
    Ok(())
}
