//! Which system calls each thread of a VMM may make.
//!
//! ```text
//!  thread ─ call ─▶ filter ─ on its list, arguments as listed ─▶ kernel
//!                      └─ anything else ─▶ SIGSYS ─▶ one line with the call's name ─▶ the process ends
//! ```
//!
//! The lists are data in [`table`], each call with the reason why it is there; `docs/threat-model.md`
//! shows them and a test holds the two together. A filter is installed once per thread, when all that
//! needs more than the list is done: files, memory, rings and threads exist by then, so no list lets a
//! thread open a file, make a socket, start a thread or map memory that can be executed.

#[expect(unsafe_code, reason = "a signal handler, and a number of the allocator")]
mod report;
pub mod table;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;

use rustix::thread::set_no_new_privs;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

pub use report::{STATUS, one_heap, report_violations};
use table::{Arg, Call};

/// The threads of a VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ThreadKind {
    /// Runs the guest and answers its exits.
    Vcpu,
    /// Serves network, entropy and console queues.
    Devices,
    /// Serves one queue of a disk.
    Disk,
    /// Life-cycle and control socket.
    Control,
}

impl ThreadKind {
    /// All of them.
    pub const ALL: [ThreadKind; 4] =
        [ThreadKind::Vcpu, ThreadKind::Devices, ThreadKind::Disk, ThreadKind::Control];

    /// As in the documentation.
    pub fn name(self) -> &'static str {
        match self {
            ThreadKind::Vcpu => "vCPU",
            ThreadKind::Devices => "event loop",
            ThreadKind::Disk => "disk worker",
            ThreadKind::Control => "control",
        }
    }

    /// What it may call besides what every thread may.
    fn own(self) -> &'static [Call] {
        match self {
            ThreadKind::Vcpu => table::VCPU,
            ThreadKind::Devices => table::DEVICES,
            ThreadKind::Disk => table::DISK,
            ThreadKind::Control => table::CONTROL,
        }
    }

    /// Its whole list.
    pub fn calls(self) -> impl Iterator<Item = &'static Call> {
        table::EVERY.iter().chain(self.own())
    }

    /// The same as this build needs it.
    fn installed(self) -> impl Iterator<Item = &'static Call> {
        let debug = if cfg!(debug_assertions) { table::DEBUG_BUILD } else { &[] };
        self.calls().chain(debug)
    }
}

/// A filter could not be made or installed.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The table does not compile.
    #[error("the system call filter of the {0} threads cannot be compiled")]
    Compile(&'static str, #[source] seccompiler::BackendError),
    /// The kernel refused.
    #[error("the system call filter of the {0} threads cannot be installed (see `kiln doctor`)")]
    Install(&'static str, #[source] io::Error),
}

/// A compiled list, to be installed on any number of threads.
#[derive(Debug, Clone)]
pub struct Filter {
    kind: ThreadKind,
    program: BpfProgram,
}

impl Filter {
    /// Compiles the list of `kind`.
    pub fn new(kind: ThreadKind) -> Result<Self, SeccompError> {
        let failed = |e| SeccompError::Compile(kind.name(), e);
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        let mut always = Vec::new();
        for call in kind.installed() {
            let number = i64::from(call.name.id());
            let alternatives = rules.entry(number).or_default();
            if call.args.is_empty() {
                always.push(number);
            }
            for conditions in alternatives_of(call.args).map_err(failed)? {
                alternatives.push(SeccompRule::new(conditions).map_err(failed)?);
            }
        }
        for number in always {
            // No rule means every argument.
            rules.insert(number, Vec::new());
        }
        let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64);
        let program = filter.and_then(BpfProgram::try_from).map_err(failed)?;
        Ok(Filter { kind, program })
    }

    /// Confines the calling thread to the list, for ever.
    pub fn install(&self) -> Result<(), SeccompError> {
        let failed = |source| SeccompError::Install(self.kind.name(), source);
        set_no_new_privs(true).map_err(|e| failed(e.into()))?;
        report::name_thread(self.kind.name());
        apply_filter(&self.program).map_err(|e| failed(io::Error::other(e)))
    }
}

/// The sets of conditions of which one must hold: an argument with several values makes one each.
fn alternatives_of(args: &[Arg]) -> Result<Vec<Vec<SeccompCondition>>, seccompiler::BackendError> {
    let mut sets = vec![Vec::new()];
    for arg in args {
        let mut next = Vec::new();
        for set in &sets {
            for (op, value) in arg.comparisons() {
                let mut set: Vec<SeccompCondition> = set.clone();
                set.push(SeccompCondition::new(arg.index(), arg.length(), op, value)?);
                next.push(set);
            }
        }
        sets = next;
    }
    sets.retain(|set| !set.is_empty());
    Ok(sets)
}

impl Arg {
    fn index(&self) -> u8 {
        match self {
            Arg::Is(index, _) | Arg::Without(index, ..) | Arg::HasOnly(index, ..) => *index,
        }
    }

    fn length(&self) -> SeccompCmpArgLen {
        // Of flags and request numbers the kernel looks at the lower half.
        match self {
            Arg::Is(..) => SeccompCmpArgLen::Dword,
            Arg::Without(..) | Arg::HasOnly(..) => SeccompCmpArgLen::Qword,
        }
    }

    fn comparisons(&self) -> Vec<(SeccompCmpOp, u64)> {
        match self {
            Arg::Is(_, values) => values.iter().map(|(_, value)| (SeccompCmpOp::Eq, *value)).collect(),
            Arg::Without(_, _, bits) => vec![(SeccompCmpOp::MaskedEq(*bits), 0)],
            Arg::HasOnly(_, _, mask, value) => vec![(SeccompCmpOp::MaskedEq(*mask), *value)],
        }
    }
}

/// The lists as tables for people, as they stand in the documentation.
pub fn markdown() -> String {
    let mut text = String::new();
    let groups = [("every thread", table::EVERY)]
        .into_iter()
        .chain(ThreadKind::ALL.map(|kind| (kind.name(), kind.own())));
    for (who, calls) in groups {
        let _ = write!(text, "\n**{who}**\n\n| call | arguments | why |\n|---|---|---|\n");
        for call in calls {
            let args: Vec<String> = call.args.iter().map(Arg::to_string).collect();
            // A bar would begin the next column.
            let args = args.join("; ").replace('|', "\\|");
            let _ = writeln!(text, "| `{}` | {args} | {} |", call.name.name(), call.why);
        }
    }
    text.push_str("\n| thread | system calls |\n|---|---|\n");
    for kind in ThreadKind::ALL {
        let names: std::collections::BTreeSet<_> = kind.calls().map(|call| call.name).collect();
        let _ = writeln!(text, "| {} | {} |", kind.name(), names.len());
    }
    text
}

#[cfg(test)]
mod tests;
