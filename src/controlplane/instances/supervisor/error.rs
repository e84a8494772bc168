//! Why a supervisor refuses.

use kiln_model::{IllegalTransition, InstanceId, InstanceState};

use crate::instances::{InstanceError, LaunchError, ModifyError, RequestError};
use crate::network::NetworkError;
use crate::state::StoreError;
use crate::vmm_process::VmmError;
use crate::volumes::VolumeError;

/// Why something was not done with an instance. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Another process is the daemon of this state directory.
    #[error("another kilnd serves this state directory")]
    AnotherDaemon,
    /// A thread could not be started, or the like.
    #[error("cannot {action}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// `InvalidInstanceID.NotFound`.
    #[error("the instance ID '{0}' does not exist")]
    NotFound(InstanceId),
    /// `IncorrectInstanceState`.
    #[error("the instance '{id}' is {state}, in which it cannot {action}")]
    IncorrectState {
        /// Which.
        id: InstanceId,
        /// Its state.
        state: InstanceState,
        /// What was asked, such as `be stopped`.
        action: &'static str,
    },
    /// `OperationNotPermitted`.
    #[error(
        "the instance '{0}' may not be terminated; modify its 'disableApiTermination' attribute and try again"
    )]
    Protected(InstanceId),
    /// `IncorrectInstanceState` too: it is run in the foreground.
    #[error("the instance '{0}' is run by `kiln run` at the moment")]
    Foreground(InstanceId),
    /// `InsufficientInstanceCapacity`.
    #[error("this host has room for {room} more of {instance_type}, not for {wanted}")]
    Capacity {
        /// The type.
        instance_type: String,
        /// Least number asked for.
        wanted: u32,
        /// Number that fits.
        room: u32,
    },
    /// `UnsupportedOperation`.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The wish, the image, the placement or the profile.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Tags or profile.
    #[error(transparent)]
    Modify(#[from] ModifyError),
    /// Volumes and snapshots.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Groups.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// See source.
    #[error(transparent)]
    Instance(Box<InstanceError>),
    /// Its VMM does not serve.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SupervisorError {
    pub(super) fn state(id: InstanceId, action: &'static str) -> impl FnOnce(IllegalTransition) -> Self {
        move |IllegalTransition { state, .. }| SupervisorError::IncorrectState { id, state, action }
    }
}

impl From<InstanceError> for SupervisorError {
    fn from(error: InstanceError) -> Self {
        match error {
            InstanceError::Store(error) => SupervisorError::Store(error),
            InstanceError::Launch(error) => SupervisorError::Launch(error),
            InstanceError::Vmm(error) => SupervisorError::Vmm(error),
            InstanceError::Busy(id) => SupervisorError::Foreground(id),
            InstanceError::Protected(id) => SupervisorError::Protected(id),
            error => SupervisorError::Instance(Box::new(error)),
        }
    }
}

impl RequestError {
    pub(super) fn into_launch(self) -> LaunchError {
        self.into()
    }
}
