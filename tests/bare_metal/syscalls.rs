//! Every rule of the system call lists is there because something needs it.
//!
//! Runs guests that do a bit of everything under strace and looks which rules were of use. Those that were
//! not are listed here, each with the reason why these guests do not get there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use kiln_sandbox::seccomp::ThreadKind;
use kiln_sandbox::seccomp::table::{Arg, Call};
use kiln_vmspec::{Command, Reply};

use crate::support::skip;
use crate::support::vm::{Disk, Setup, disk};

/// Rules that need more than these guests: where they are of use, or when.
const ELSEWHERE: &[(&str, &str)] = &[
    // Any thread.
    ("clock_gettime", "hosts whose clock is no TSC: the lab's"),
    ("sched_yield", "a channel whose other end was interrupted half-way; a host without memory"),
    ("brk", "a heap that grows after the start"),
    ("mmap MAP_PRIVATE|MAP_ANONYMOUS", "large blocks: a big kernel, a burst of console output"),
    ("munmap", "the same"),
    ("mremap", "the same"),
    ("write", "the log, and events to other threads"),
    ("read", "event descriptors"),
    ("exit_group", "the end comes on one thread"),
    // vCPUs.
    ("ioctl KVM_KVMCLOCK_CTRL", "a paused guest, on the thread that was held"),
    ("ioctl KVM_IRQFD", "interrupts, which these guests poll for instead"),
    ("ioctl KVM_SET_GSI_ROUTING", "interrupts, which these guests poll for instead"),
    ("ioctl KVM_GET_REGS", "a guest that the host cannot run"),
    ("ioctl KVM_GET_SREGS", "a guest that the host cannot run"),
    ("ioctl KVM_TRANSLATE", "a guest that the host cannot run"),
    ("ioctl TUNSETOFFLOAD", "a tap: the lab's networks"),
    ("ioctl TUNSETQUEUE", "a tap with several queues: the lab's networks"),
    ("readv", "a tap: the lab's networks"),
    ("writev", "a tap: the lab's networks"),
    ("close", "a device that its driver stops"),
    // Disks.
    ("preadv", "compressed and partly written clusters; a host without io_uring"),
    ("pwritev", "file systems that take no write without waiting"),
    ("fallocate", "a file system that the ring cannot do it on"),
    ("fdatasync", "tables of an image"),
    ("pread64", "tables of an image"),
    ("pwrite64", "tables of an image"),
    // Control.
    ("accept4", "a second client: `kiln console`"),
    ("ioctl FIONBIO", "a second client: `kiln console`"),
    ("setsockopt SOL_SOCKET", "a client that has not read everything"),
    ("lseek", "a given kernel in ELF format"),
];

#[test]
fn every_rule_of_the_lists_is_needed() {
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        return skip("needs strace");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut seen = Seen::default();
    for overlay in [false, true] {
        let trace = dir.path().join(format!("trace-{overlay}"));
        if !run(&trace, overlay) {
            return;
        }
        seen.read(&fs::read_to_string(&trace).unwrap());
    }
    let mut idle = BTreeSet::new();
    for kind in ThreadKind::ALL {
        for call in kind.calls() {
            for rule in rules(call) {
                if !seen.by(kind, call, &rule) {
                    idle.insert((rule.name.clone(), kind.name()));
                }
            }
        }
    }
    for (name, kind) in &idle {
        println!("not seen: {name} ({kind})");
    }
    let explained: BTreeSet<_> = ELSEWHERE.iter().map(|(name, _)| *name).collect();
    let unexplained: Vec<_> = idle.iter().filter(|(name, _)| !explained.contains(name.as_str())).collect();
    assert!(unexplained.is_empty(), "rules that nothing needs: {unexplained:?}");
    let all: BTreeSet<_> = ThreadKind::ALL
        .into_iter()
        .flat_map(ThreadKind::calls)
        .flat_map(rules)
        .map(|rule| rule.name)
        .collect();
    let stale: Vec<_> = explained.iter().filter(|name| !all.contains(**name)).collect();
    assert!(stale.is_empty(), "explained here and on no list: {stale:?}");
}

/// A guest's whole life with everything that these tests have. `false` where there is no KVM.
fn run(trace: &Path, overlay: bool) -> bool {
    let setup = Setup {
        vcpus: 2,
        disks: vec![if overlay { Disk::overlaid(disk(8)) } else { Disk::raw(disk(8)) }],
        trace: Some(trace.to_owned()),
        spare_disks: 1,
        ..Setup::with_devices()
    };
    let tests = "hello,rng,blk-rw,blk-errors,blk-depth,blk-reset,net-arp,net-imds,msix-odd,reset,disk-hotplug,power-button";
    let Some(mut guest) = setup.boot(tests) else { return false };
    guest.wait_for("waiting for a disk");
    assert_eq!(guest.attach("vol9", Disk::overlaid(disk(8))), Reply::Ok);
    guest.wait_for("waiting for growth");
    assert_eq!(guest.control(Command::ResizeDisk { serial: "vol9".into(), size: 1 << 30 }), Reply::Ok);
    guest.wait_for("waiting for the end of it");
    assert_eq!(guest.control(Command::DetachDisk { serial: "vol9".into(), force: false }), Reply::Ok);
    guest.wait_for("waiting for the power button");
    assert_eq!(guest.control(Command::Pause), Reply::Ok);
    assert!(matches!(guest.control(Command::Stats), Reply::Stats(_)));
    assert_eq!(guest.control(Command::Resume), Reply::Ok);
    assert_eq!(guest.control(Command::PowerButton), Reply::Ok);
    guest.finish().assert_passed(tests);
    true
}

/// One alternative of a list's entry.
struct Rule {
    name: String,
    /// Argument and value that it is about.
    value: Option<(usize, u64)>,
}

fn rules(call: &Call) -> Vec<Rule> {
    let name = call.name.name();
    let values = call.args.iter().find_map(|arg| match arg {
        Arg::Is(index, values) => Some((usize::from(*index), *values)),
        _ => None,
    });
    match values {
        Some((index, values)) => values
            .iter()
            .map(|(label, value)| Rule { name: format!("{name} {label}"), value: Some((index, *value)) })
            .collect(),
        None => {
            let label = call.args.iter().find_map(|arg| match arg {
                Arg::HasOnly(_, label, ..) => Some(format!("{name} {label}")),
                _ => None,
            });
            vec![Rule { name: label.unwrap_or_else(|| name.to_owned()), value: None }]
        }
    }
}

/// Calls by thread, with their arguments as far as they are numbers.
#[derive(Default)]
struct Seen(BTreeMap<ThreadKind, BTreeSet<Observed>>);

/// A call and its arguments.
type Observed = (String, Vec<Option<u64>>);

impl Seen {
    /// Takes in the output of strace: what each thread did once it was confined.
    fn read(&mut self, trace: &str) {
        let mut confined = BTreeSet::new();
        for line in trace.lines() {
            // `4711<vcpu0> ioctl(15, 0xae80, 0) = 0`
            let Some((thread, rest)) = line.split_once("> ") else { continue };
            let Some((_, name)) = thread.split_once('<') else { continue };
            let Some((call, args)) = rest.trim_start().split_once('(') else { continue };
            if call == "seccomp" {
                confined.insert(thread.to_owned());
            } else if confined.contains(thread)
                && let Some(kind) = kind_of(name)
            {
                let args = args.split([',', ')']).map(|arg| number(arg.trim())).collect();
                self.0.entry(kind).or_default().insert((call.to_owned(), args));
            }
        }
    }

    fn by(&self, kind: ThreadKind, call: &Call, rule: &Rule) -> bool {
        let calls = self.0.get(&kind).into_iter().flatten();
        calls.filter(|(name, _)| name == call.name.name()).any(|(_, args)| {
            let arg = |index: usize| args.get(index).copied().flatten();
            let fits = call.args.iter().all(|condition| match condition {
                Arg::Is(..) => true,
                Arg::Without(index, _, bits) => arg(usize::from(*index)).is_some_and(|v| v & bits == 0),
                Arg::HasOnly(index, _, mask, value) => {
                    arg(usize::from(*index)).is_some_and(|v| v & mask == *value)
                }
            });
            fits && rule.value.is_none_or(|(index, value)| arg(index) == Some(value))
        })
    }
}

fn kind_of(thread: &str) -> Option<ThreadKind> {
    [
        ("vcpu", ThreadKind::Vcpu),
        ("devices", ThreadKind::Devices),
        ("disk", ThreadKind::Disk),
        ("kiln-vmm", ThreadKind::Control),
    ]
    .into_iter()
    .find_map(|(prefix, kind)| thread.starts_with(prefix).then_some(kind))
}

fn number(text: &str) -> Option<u64> {
    // Some flags come out as `|0x1000`.
    let text = text.trim_start_matches('|');
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
