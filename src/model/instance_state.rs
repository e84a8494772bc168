//! The life of an instance, as EC2 names its states.
//!
//! ```text
//!               Booted                StopRequested          MachineEnded
//!   Pending ───────────▶ Running ───────────────────▶ Stopping ───────────▶ Stopped
//!      │                  │ │ ▲                          │                  │    │
//!      │ LaunchFailed     │ │ └──── Booted ── Pending ◀──┼── StartRequested ┘    │
//!      ▼                  │ │ MachineEnded ▶ Stopped     │ TerminateRequested    │
//!   Terminated ◀──────────┼─┼── ShuttingDown ◀───────────┴───────────────────────┘
//!        MachineEnded     └─┴──▶ (TerminateRequested)
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// Being launched or started.
    Pending,
    /// vCPUs run.
    Running,
    /// On the way to `Terminated`.
    ShuttingDown,
    /// Gone; nothing of it is left.
    Terminated,
    /// The power button was pressed.
    Stopping,
    /// No machine; volume and addresses are kept.
    Stopped,
}

/// What may happen to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InstanceEvent {
    /// The VMM reports that vCPUs run.
    Booted,
    /// The launch plan failed and was undone.
    LaunchFailed,
    /// A user asks for a clean stop.
    StopRequested,
    /// A user asks to start again.
    StartRequested,
    /// A user asks to end it for good.
    TerminateRequested,
    /// The VMM has ended, for whatever reason.
    MachineEnded,
}

/// The event makes no sense in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an instance that is {state} cannot take {event:?}")]
pub struct IllegalTransition {
    /// State before the event.
    pub state: InstanceState,
    /// What was tried.
    pub event: InstanceEvent,
}

impl InstanceState {
    /// Every state.
    pub const ALL: [InstanceState; 6] = [
        InstanceState::Pending,
        InstanceState::Running,
        InstanceState::ShuttingDown,
        InstanceState::Terminated,
        InstanceState::Stopping,
        InstanceState::Stopped,
    ];

    /// The code that EC2's API gives with the name.
    pub fn code(self) -> u16 {
        match self {
            InstanceState::Pending => 0,
            InstanceState::Running => 16,
            InstanceState::ShuttingDown => 32,
            InstanceState::Terminated => 48,
            InstanceState::Stopping => 64,
            InstanceState::Stopped => 80,
        }
    }

    /// The state after `event`. Repeating a request that is already under way changes nothing, as
    /// in EC2. `keeps_volume` says where a machine that ends by itself goes: to `Stopped`, or to
    /// `Terminated` when nothing of it is kept.
    pub fn next(self, event: InstanceEvent, keeps_volume: bool) -> Result<Self, IllegalTransition> {
        use InstanceEvent as E;
        use InstanceState as S;
        match (self, event) {
            (S::Pending, E::Booted) => Ok(S::Running),
            // A start of a stopped instance that fails goes back to where it came from.
            (S::Pending, E::LaunchFailed | E::MachineEnded) | (S::Running, E::MachineEnded) => {
                Ok(if keeps_volume { S::Stopped } else { S::Terminated })
            }
            (S::Running | S::Stopping, E::StopRequested) => Ok(S::Stopping),
            (S::Stopping, E::MachineEnded) => Ok(if keeps_volume { S::Stopped } else { S::Terminated }),
            (S::Stopped, E::StopRequested) => Ok(S::Stopped),
            (S::Stopped, E::StartRequested) => Ok(S::Pending),
            (S::Pending | S::Running, E::StartRequested) => Ok(self),
            (S::Pending | S::Running | S::Stopping | S::ShuttingDown, E::TerminateRequested) => {
                Ok(S::ShuttingDown)
            }
            (S::Stopped | S::Terminated, E::TerminateRequested) => Ok(S::Terminated),
            // A boot that completes after the request to end changes nothing.
            (S::ShuttingDown | S::Stopping, E::Booted) => Ok(self),
            (S::ShuttingDown, E::MachineEnded | E::LaunchFailed) => Ok(S::Terminated),
            (state, event) => Err(IllegalTransition { state, event }),
        }
    }
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            InstanceState::Pending => "pending",
            InstanceState::Running => "running",
            InstanceState::ShuttingDown => "shutting-down",
            InstanceState::Terminated => "terminated",
            InstanceState::Stopping => "stopping",
            InstanceState::Stopped => "stopped",
        })
    }
}

#[cfg(test)]
mod tests {
    use InstanceEvent as E;
    use InstanceState as S;

    use super::*;

    /// The whole table for an instance that keeps its volume; `None` is refused.
    #[rustfmt::skip]
    const TABLE: [(S, [Option<S>; 6]); 6] = [
        //                  Booted                LaunchFailed         StopRequested      StartRequested    TerminateRequested     MachineEnded
        (S::Pending,      [Some(S::Running),      Some(S::Stopped),    None,              Some(S::Pending), Some(S::ShuttingDown), Some(S::Stopped)]),
        (S::Running,      [None,                  None,                Some(S::Stopping), Some(S::Running), Some(S::ShuttingDown), Some(S::Stopped)]),
        (S::ShuttingDown, [Some(S::ShuttingDown), Some(S::Terminated), None,              None,             Some(S::ShuttingDown), Some(S::Terminated)]),
        (S::Terminated,   [None,                  None,                None,              None,             Some(S::Terminated),   None]),
        (S::Stopping,     [Some(S::Stopping),     None,                Some(S::Stopping), None,             Some(S::ShuttingDown), Some(S::Stopped)]),
        (S::Stopped,      [None,                  None,                Some(S::Stopped),  Some(S::Pending), Some(S::Terminated),   None]),
    ];
    const EVENTS: [E; 6] = [
        E::Booted,
        E::LaunchFailed,
        E::StopRequested,
        E::StartRequested,
        E::TerminateRequested,
        E::MachineEnded,
    ];

    #[test]
    fn every_state_and_event_follows_the_table() {
        for (state, row) in TABLE {
            for (event, expected) in EVENTS.into_iter().zip(row) {
                assert_eq!(state.next(event, true).ok(), expected, "{state} + {event:?}");
                let without_volume =
                    expected.map(|s| if s == S::Stopped && state != S::Stopped { S::Terminated } else { s });
                assert_eq!(
                    state.next(event, false).ok(),
                    without_volume,
                    "{state} + {event:?}, nothing kept"
                );
            }
        }
    }

    #[test]
    fn codes_are_those_of_the_api() {
        assert_eq!(S::ALL.map(S::code), [0, 16, 32, 48, 64, 80]);
    }
}
