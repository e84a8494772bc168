//! Instances: from a wish to a running machine, and back to nothing.
//!
//! ```text
//!   LaunchRequest ─check▶ ─reserve▶ Instance row ─plan▶ RunningInstance ─finish▶ gone or stopped
//!                                        │                    │
//!                                        └── sweep ◀── killed ┘   (next kiln command)
//! ```
//!
//! Every outside effect of a launch is one [`Effect`](effects::Effect) with an idempotent undo.
//! A failed launch, the end of a run and the sweep after a crash all undo effects through the same
//! code, so what one of them cleans up all do.

mod bounds;
mod disks;
mod effects;
mod facts;
mod interfaces;
mod keeper;
mod launch;
mod lifecycle;
mod machine;
mod manager;
mod modify;
mod password;
mod rates;
mod remembered;
mod request;
mod row;
mod running;
mod smbios;
mod spec;
mod supervisor;

pub use effects::UndoError;
pub use keeper::MetadataKeeper;
pub use launch::{Also, LaunchError};
pub(crate) use lifecycle::chain;
pub use lifecycle::{ShutdownBehavior, StateReason};
pub use manager::{ControlPlane, InstanceError, KeyRing, Parts};
pub use modify::{ModifyError, TagChange};
pub use password::{PasswordReport, find_password};
pub use remembered::Remembered;
pub use request::{HostMemory, LaunchRequest, MAX_VCPUS, MIN_MEMORY_MIB, RequestError};
pub use row::{BaseImage, BootOverride, Instance, MetadataState, NetworkMode, RootVolume};
pub use running::{Ending, RunningInstance};
pub use supervisor::{
    Attribute, Capacity, Change, ConsoleOutput, Counters, DeviceEnd, Health, NewImage, Notice, NoticeEvent,
    Notices, Settings, Supervisor, SupervisorError,
};

#[cfg(test)]
mod tests;
