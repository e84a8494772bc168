use super::*;

#[test]
fn every_list_compiles_and_gives_each_call_a_reason() {
    for kind in ThreadKind::ALL {
        Filter::new(kind).unwrap();
        for call in kind.calls() {
            assert!(!call.why.is_empty(), "{call:?}");
            assert!(
                kind.calls().filter(|other| other.name == call.name && other.args.is_empty()).count() <= 1
            );
        }
    }
}

/// Where the documentation shows the lists.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/threat-model.md");
const BEGIN: &str = "<!-- system calls: begin -->\n";
const END: &str = "<!-- system calls: end -->\n";

#[test]
fn documentation_shows_the_lists_as_they_are() {
    let text = std::fs::read_to_string(DOCUMENT).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (shown, after) = rest.split_once(END).unwrap();
    let wanted = markdown();
    if std::env::var_os("KILN_UPDATE_DOCS").is_some() {
        std::fs::write(DOCUMENT, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
    } else {
        assert_eq!(shown, wanted, "run this test with KILN_UPDATE_DOCS=1 and review what changed");
    }
}

/// Firecracker's lists have 27 calls for a vCPU thread and 50 for its main thread.
#[test]
fn lists_are_no_longer_than_those_of_firecracker() {
    for kind in ThreadKind::ALL {
        let calls: std::collections::BTreeSet<_> = kind.calls().map(|call| call.name).collect();
        let most = if kind == ThreadKind::Vcpu { 27 } else { 50 };
        assert!(calls.len() <= most, "{}: {}", kind.name(), calls.len());
    }
}

#[test]
fn no_list_can_make_files_sockets_processes_or_programs() {
    use syscalls::Sysno;
    let never = [
        Sysno::open,
        Sysno::openat,
        Sysno::socket,
        Sysno::connect,
        Sysno::clone,
        Sysno::clone3,
        Sysno::execve,
        Sysno::mprotect,
        Sysno::memfd_create,
        Sysno::io_uring_setup,
        Sysno::io_uring_register,
        Sysno::ptrace,
        Sysno::rt_sigaction,
    ];
    for kind in ThreadKind::ALL {
        assert!(kind.calls().all(|call| !never.contains(&call.name)), "{}", kind.name());
        let mut maps = kind.calls().filter(|call| call.name == Sysno::mmap);
        assert!(maps.all(|call| call.args.iter().any(|arg| matches!(arg, Arg::Without(2, "PROT_EXEC", _)))));
    }
}
