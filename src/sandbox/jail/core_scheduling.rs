//! No other guest on the second thread of a core, where processors have such threads.
//!
//! Two threads of one core share its caches, buffers and predictors, and with them what a guest of the one
//! can find out about a guest of the other. A process with a *cookie* of its own shares cores only with
//! itself: while it runs on one thread, the kernel leaves the other idle or gives it to the same process.

use rustix::io::Errno;
use rustix::process::getpid;
use rustix::thread::{CoreSchedulingScope, core_scheduling_cookie, create_core_scheduling_cookie};

/// Gives this process, while it has one thread, a cookie that later threads take over. An error where
/// cores are shared and the kernel has no such thing.
pub(super) fn keep_cores_to_itself() -> Result<(), String> {
    match create_core_scheduling_cookie(getpid(), CoreSchedulingScope::ThreadGroup) {
        // No core has a second thread.
        Ok(()) | Err(Errno::NODEV) => Ok(()),
        Err(_) if !threads_are_active() => Ok(()),
        Err(Errno::INVAL) => Err("this kernel is built without it".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// Whether cores have more than one thread in use.
fn threads_are_active() -> bool {
    std::fs::read_to_string("/sys/devices/system/cpu/smt/active").is_ok_and(|active| active.trim() == "1")
}

/// How cores are shared on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CoreSharing {
    /// A core has one thread, or one in use.
    None,
    /// A core has several, which instances never have at the same time.
    Separated,
    /// Whoever runs at the same time may share a core.
    Shared,
}

/// How cores are shared on this host.
pub(super) fn sharing() -> CoreSharing {
    match core_scheduling_cookie(getpid(), CoreSchedulingScope::Thread) {
        _ if !threads_are_active() => CoreSharing::None,
        Ok(_) => CoreSharing::Separated,
        Err(_) => CoreSharing::Shared,
    }
}
