//! A connection to the machine of a running instance, for callers that may block.

use std::future::Future;

use tokio::runtime::Runtime;

use super::{ControlPlane, Instance};
use crate::vmm_process::{ControlConnection, VmmError, VmmEvent};

/// See the module.
pub(super) struct Machine {
    /// As it was when the connection was made.
    pub(super) row: Instance,
    pub(super) connection: ControlConnection,
    runtime: Runtime,
    /// Nobody reads it; replies come only as long as it is there.
    _events: tokio::sync::mpsc::Receiver<VmmEvent>,
}

impl Machine {
    /// Connects to whoever runs as the machine of `row`.
    pub(super) fn connect(plane: &ControlPlane, row: Instance) -> Result<Self, VmmError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|source| VmmError::Start { action: "wait for a VMM", source })?;
        let socket = plane.parts.dir.instance(row.id).control_socket();
        let (connection, events) = ControlConnection::connect(&socket)?;
        Ok(Machine { row, connection, runtime, _events: events })
    }

    /// Waits for what the machine is asked.
    pub(super) fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }
}
