//! Attacker code inside the finished jail, on each kind of thread: every way out is tried, and each is
//! refused or contained.
//!
//! ```text
//!  test ─ spawn, as the control plane does ─▶ this program again: jail::enter, then the thread
//!    │                                        with its filter, then one attempt
//!    └─◀─ exit status and what it printed ────┘
//! ```
//!
//! Each attempt has a process of its own, as a forbidden system call ends it. The hook is this program,
//! not `kiln-vmm`: nothing of it is in what users run.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

#[expect(unsafe_code, reason = "an attacker asks the kernel without a library between")]
mod attempts;
#[expect(unsafe_code, reason = "an attacker asks the kernel without a library between")]
mod bombs;
#[expect(unsafe_code, reason = "descriptors are handed over by number")]
mod prison;

use std::collections::BTreeSet;

use kiln_sandbox::seccomp::{STATUS, ThreadKind};

use attempts::{ATTEMPTS, Attempt};
use prison::{Filter, Outcome, Prison};

/// The body of the attacker's process; see [`prison`].
#[test]
#[ignore = "runs inside the jail"]
fn attacker() {
    prison::attack();
}

fn tried(kind: ThreadKind, attempt: &Attempt, filter: Filter) -> Outcome {
    Prison::new().try_out(kind, attempt.name, filter)
}

#[test]
fn every_way_out_ends_the_process_by_name_on_every_thread() {
    if !prison::possible() {
        return;
    }
    for kind in ThreadKind::ALL {
        for attempt in ATTEMPTS.iter().filter(|attempt| !attempt.allowed_on.contains(&kind)) {
            let outcome = tried(kind, attempt, Filter::Installed);
            let who = format!("{} on the {} thread: {outcome:?}", attempt.name, kind.name());
            assert_eq!(outcome.status, Some(STATUS), "{who}");
            let line = format!("{} thread made the forbidden system call {} ", kind.name(), attempt.call);
            assert!(outcome.errors.contains(&line), "{who}");
            assert_eq!(outcome.left, format!("[the {line}and was ended]"), "{who}");
        }
    }
}

/// The jail has to hold without the filters too: a hole in one border is not a hole in both.
#[test]
fn jail_refuses_without_any_filter() {
    if !prison::possible() {
        return;
    }
    for attempt in ATTEMPTS.iter().filter(|attempt| attempt.jail_refuses) {
        let outcome = tried(ThreadKind::Control, attempt, Filter::None);
        assert!(outcome.printed.contains("REFUSED"), "{}: {outcome:?}", attempt.name);
    }
}

/// What a list does let through must be listed here, with the reason why it leads nowhere.
#[test]
fn exceptions_lead_nowhere() {
    if !prison::possible() {
        return;
    }
    let exceptions: Vec<_> = ATTEMPTS.iter().filter(|attempt| !attempt.allowed_on.is_empty()).collect();
    let names: BTreeSet<_> = exceptions.iter().map(|attempt| attempt.name).collect();
    // A signal cannot name a process outside of the PID namespace. A second machine is what a reset
    // of the guest needs; it has no more than the memory and the processor time of the first.
    assert_eq!(names, BTreeSet::from(["new KVM machine", "signal to another process"]));
    for attempt in exceptions {
        for kind in attempt.allowed_on {
            let outcome = tried(*kind, attempt, Filter::Installed);
            let contained = outcome.printed.contains("REFUSED") || attempt.call == "ioctl";
            assert!(outcome.status == Some(0) && contained, "{}: {outcome:?}", attempt.name);
        }
    }
}
