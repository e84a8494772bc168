//! How far something is on its way to an instance or from it.

use serde::{Deserialize, Serialize};

/// How far the attachment of a volume or of a network interface is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachmentState {
    /// The machine is being given it.
    Attaching,
    /// The instance has it.
    #[default]
    Attached,
    /// The guest has been asked to let go of it.
    Detaching,
}

impl AttachmentState {
    /// Its name in the EC2 API.
    pub fn name(self) -> &'static str {
        match self {
            AttachmentState::Attaching => "attaching",
            AttachmentState::Attached => "attached",
            AttachmentState::Detaching => "detaching",
        }
    }
}
