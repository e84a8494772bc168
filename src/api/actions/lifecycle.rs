//! Start, stop, reboot and terminate.

use kiln_controlplane::instances::{Change, SupervisorError};
use kiln_model::{InstanceId, InstanceState};
use serde_json::{Value, json};

use super::ids::INSTANCE;
use super::{Answer, Context, input};
use crate::error::ApiError;

/// Instances of one request.
const MAX_INSTANCES: usize = 1000;

input!(Instances { instance_ids: Vec<String> });
input!(StartInstances { instance_ids: Vec<String>, additional_info: Option<String> });
input!(StopInstances { instance_ids: Vec<String>, force: bool, hibernate: bool, skip_os_shutdown: bool });
input!(TerminateInstances { instance_ids: Vec<String>, force: bool, skip_os_shutdown: bool });

/// The ids, each once; every one must be of an instance.
pub(super) fn ids(context: &Context<'_>, wanted: &[String]) -> Result<Vec<InstanceId>, ApiError> {
    if wanted.is_empty() {
        return Err(ApiError::missing("InstanceId"));
    }
    if wanted.len() > MAX_INSTANCES {
        return Err(ApiError::value(format!("A request names at most {MAX_INSTANCES} instances")));
    }
    wanted.iter().try_for_each(|id| INSTANCE.check(id))?;
    let all = context.plane.instance_rows()?;
    let mut found = Vec::new();
    for wanted in wanted {
        let id = INSTANCE.parse(wanted)?;
        if all.get(&id).is_none() {
            return Err(INSTANCE.missing(wanted));
        }
        if !found.contains(&id) {
            found.push(id);
        }
    }
    Ok(found)
}

/// A state with its number.
pub(super) fn state(state: InstanceState) -> Value {
    json!({"Name": state.to_string(), "Code": state.code()})
}

fn changes(member: &str, changes: &[Change]) -> Value {
    let one = |change: &Change| {
        json!({
            "InstanceId": change.id.to_string(), "PreviousState": state(change.previous),
            "CurrentState": state(change.current),
        })
    };
    json!({ member: changes.iter().map(one).collect::<Vec<_>>() })
}

/// `StartInstances`.
pub(super) fn start(context: &Context<'_>, request: StartInstances) -> Answer {
    let ids = ids(context, &request.instance_ids)?;
    Ok(changes("StartingInstances", &context.supervisor.start(&ids)?))
}

/// `StopInstances`.
pub(super) fn stop(context: &Context<'_>, request: StopInstances) -> Answer {
    if request.hibernate {
        return Err(ApiError::new("UnsupportedHibernationConfiguration", "Instances cannot hibernate"));
    }
    let ids = ids(context, &request.instance_ids)?;
    let force = request.force || request.skip_os_shutdown;
    Ok(changes("StoppingInstances", &context.supervisor.stop(&ids, force)?))
}

/// `RebootInstances`.
pub(super) fn reboot(context: &Context<'_>, request: Instances) -> Answer {
    context.supervisor.reboot(&ids(context, &request.instance_ids)?)?;
    Ok(json!({}))
}

/// `TerminateInstances`.
pub(super) fn terminate(context: &Context<'_>, request: TerminateInstances) -> Answer {
    let ids = ids(context, &request.instance_ids)?;
    Ok(changes("TerminatingInstances", &context.supervisor.terminate(&ids)?))
}

impl From<SupervisorError> for ApiError {
    fn from(error: SupervisorError) -> Self {
        use SupervisorError as E;
        let code = match error {
            E::NotFound(_) => "InvalidInstanceID.NotFound",
            E::IncorrectState { .. } | E::Foreground(_) => "IncorrectInstanceState",
            E::Protected(_) => "OperationNotPermitted",
            E::Capacity { .. } => "InsufficientInstanceCapacity",
            E::Unsupported(_) => "UnsupportedOperation",
            E::Launch(error) => return super::launch::refused(error),
            E::Modify(error) => return error.into(),
            E::Network(error) => return error.into(),
            E::Volume(error) => return error.into(),
            E::Instance(error) => return (*error).into(),
            E::Store(error) => return error.into(),
            error => return ApiError::internal(&error),
        };
        ApiError::new(code, error.to_string())
    }
}
