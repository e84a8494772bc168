//! `kiln start`, `stop`, `reboot`, `terminate` and `type`.
//!
//! | an instance of | is started, stopped, rebooted and terminated by |
//! |---|---|
//! | `kiln run` | this program, through the machine's control socket |
//! | `kilnd` | `kilnd`, which is asked by the API |

use std::path::Path;
use std::time::{Duration, Instant};

use kiln_controlplane::instances::{Attribute, ControlPlane, Instance, InstanceError};
use kiln_controlplane::vmm_process::{Commands as _, VmmEvent};
use kiln_model::{InstanceEvent, InstanceState};
use kiln_vmspec::Command;

use crate::daemon::{Daemon, Parameters};
use crate::error::Failure;
use crate::instance_args::{InstanceArg, StartArgs, StopArgs, TerminateArgs, TypeArgs};
use crate::progress::Spinner;
use crate::{open, run};

/// How often a change of state is looked for.
const POLL: Duration = Duration::from_millis(100);
/// `kilnd` needs no longer to start or to end a machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// `kiln start`.
pub fn start(state_dir: &Path, args: &StartArgs) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let instance = plane.find(&args.instance)?;
    if !instance.supervised && !args.detach {
        return run::start(state_dir, args);
    }
    ask(&plane, &instance, "start", "StartInstances", Parameters::default())?;
    until_running(&plane, &instance)
}

/// `kiln stop`.
pub fn stop(state_dir: &Path, args: &StopArgs) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let instance = plane.find(&args.instance)?;
    if instance.state == InstanceState::Stopped {
        return Ok(());
    }
    let patience = Duration::from_secs(args.timeout);
    if instance.supervised {
        let force = Parameters::default().maybe("Force", args.force.then_some(true));
        ask(&plane, &instance, "stop", "StopInstances", force)?;
        let spinner = Spinner::new(format!("Waiting for {} to power off", instance.id));
        let stopped = until(&plane, &instance, patience, |now| now.state == InstanceState::Stopped)?;
        drop(spinner);
        return stopped.map(|_| ()).ok_or_else(|| late(&instance, args.timeout));
    }
    let (connection, mut events) = plane.connect(&instance)?;
    let runtime = crate::runtime()?;
    runtime.block_on(async {
        plane.note(instance.id, InstanceEvent::StopRequested)?;
        connection.request(if args.force { Command::Kill } else { Command::PowerButton }).await?;
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
        let result = tokio::time::timeout(patience, ended).await;
        drop(spinner);
        result.map_err(|_| late(&instance, args.timeout))
    })
}

fn late(instance: &Instance, seconds: u64) -> Failure {
    let id = instance.id;
    Failure::new(format!("{id} did not power off within {seconds} seconds (kiln stop --force {id} ends it)"))
}

/// `kiln reboot`.
pub fn reboot(state_dir: &Path, args: &InstanceArg) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let instance = plane.find(&args.instance)?;
    if instance.supervised {
        return ask(&plane, &instance, "reboot", "RebootInstances", Parameters::default());
    }
    let (connection, _events) = plane.connect(&instance)?;
    crate::runtime()?.block_on(connection.request(Command::Reboot))?;
    Ok(())
}

/// `kiln terminate`.
pub fn terminate(state_dir: &Path, args: &TerminateArgs) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let runtime = crate::runtime()?;
    for wanted in &args.instances {
        let instance = plane.find(wanted)?;
        let spinner = Spinner::new(format!("Terminating {}", instance.id));
        if instance.supervised {
            ask(&plane, &instance, "terminate", "TerminateInstances", Parameters::default())?;
            let gone = until(&plane, &instance, PATIENCE, Instance::is_gone)?;
            gone.ok_or_else(|| Failure::new(format!("{} is not terminated yet", instance.id)))?;
        } else {
            let result: Result<(), InstanceError> = runtime.block_on(plane.terminate(instance.id));
            result?;
        }
        drop(spinner);
    }
    Ok(())
}

/// `kiln type`.
pub fn change_type(state_dir: &Path, args: &TypeArgs) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let instance = plane.find(&args.instance)?;
    plane.modify(instance.id, &Attribute::InstanceType(args.instance_type.clone()))?;
    Ok(())
}

/// Asks `kilnd` for an action on one instance; `verb` is what it does.
fn ask(
    plane: &ControlPlane,
    instance: &Instance,
    verb: &str,
    action: &str,
    more: Parameters,
) -> Result<(), Failure> {
    let daemon = Daemon::need(plane, &format!("{verb} {}", instance.id))?;
    daemon.call(action, more.list("InstanceId", [instance.id]))?;
    Ok(())
}

/// Waits until an instance of `kilnd` runs; says why, if it does not come to that.
pub fn until_running(plane: &ControlPlane, instance: &Instance) -> Result<(), Failure> {
    let spinner = Spinner::new(format!("Starting {}", instance.id));
    let settled = until(plane, instance, PATIENCE, |now| now.state != InstanceState::Pending)?;
    drop(spinner);
    let Some(now) = settled else {
        return Err(Failure::new(format!("{} is still pending (see kiln events)", instance.id)));
    };
    if now.state == InstanceState::Running {
        return Ok(());
    }
    let reason = now.reason.map_or_else(String::new, |reason| format!(": {}", reason.message));
    Err(Failure::new(format!("{} is {}{reason}", now.id, now.state)))
}

/// Looks at an instance until it is as `wanted`; `None`: it did not become so in time.
fn until(
    plane: &ControlPlane,
    instance: &Instance,
    patience: Duration,
    wanted: impl Fn(&Instance) -> bool,
) -> Result<Option<Instance>, Failure> {
    let deadline = Instant::now().checked_add(patience);
    loop {
        let now = plane.find(&instance.id.to_string())?;
        if wanted(&now) {
            return Ok(Some(now));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}
