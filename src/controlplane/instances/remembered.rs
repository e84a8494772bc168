//! What is said of an instance that changes nothing here: it is remembered and shown, as clients expect.

use serde::{Deserialize, Serialize};

/// Settings of an instance that only exist to be read back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    /// Whether it shall be monitored in detail. Nothing is measured for it.
    pub monitoring: bool,
    /// Whether its disks shall be optimised. They are as fast as its type says.
    pub ebs_optimized: bool,
    /// Whether its processor credits are unlimited, if it was said. Nothing is metered.
    pub unlimited_credits: Option<bool>,
    /// Whether it shall not be recovered when its host fails. Nothing is, beyond the host's own restart.
    pub no_recovery: bool,
    /// Whether it shall run in no capacity reservation. There are none.
    pub no_reservation: bool,
}
