//! What EC2 tells of an instance's life besides its state: why it is in it, and what it is to do next.

use kiln_model::Utc;
use serde::{Deserialize, Serialize};

/// What becomes of an instance whose guest powers off by itself (`InstanceInitiatedShutdownBehavior`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownBehavior {
    /// It is stopped, and can be started again.
    #[default]
    Stop,
    /// It is gone for good.
    Terminate,
}

/// Why an instance is in its state (`StateReason`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateReason {
    /// Such as `Client.UserInitiatedShutdown`.
    pub code: String,
    /// For people; starts with the code, as EC2's do.
    pub message: String,
    /// When, Unix seconds.
    pub since: u64,
}

impl StateReason {
    /// Somebody asked for it.
    pub const USER: &'static str = "Client.UserInitiatedShutdown";
    /// The guest powered off.
    pub const INSTANCE: &'static str = "Client.InstanceInitiatedShutdown";
    /// It could not go on, or the host went down.
    pub const INTERNAL: &'static str = "Server.InternalError";
    /// The host has no room for it.
    pub const CAPACITY: &'static str = "Server.InsufficientInstanceCapacity";

    pub(super) fn user(since: u64) -> Self {
        Self::new(Self::USER, "User initiated shutdown", since)
    }

    pub(super) fn instance(since: u64) -> Self {
        Self::new(Self::INSTANCE, "Instance initiated shutdown", since)
    }

    pub(super) fn internal(what: &str, since: u64) -> Self {
        Self::new(Self::INTERNAL, what, since)
    }

    fn new(code: &str, text: &str, since: u64) -> Self {
        StateReason { code: code.to_owned(), message: format!("{code}: {text}"), since }
    }

    /// EC2's older form, `StateTransitionReason`; empty for what no user did.
    pub fn transition(&self) -> String {
        if self.code != Self::USER {
            return String::new();
        }
        let time = Utc::from_unix(self.since).rfc3339().replace('T', " ").replace('Z', " GMT");
        format!("User initiated ({time})")
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_as_those_of_ec2() {
        let user = StateReason::user(1_700_000_000);
        assert_eq!(user.message, "Client.UserInitiatedShutdown: User initiated shutdown");
        assert_eq!(user.transition(), "User initiated (2023-11-14 22:13:20 GMT)");
        assert_eq!(StateReason::instance(0).transition(), "");
    }
}
