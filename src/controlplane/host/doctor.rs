//! Says what the host offers and what to do about each gap.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Command;

use kiln_model::ByteSize;
use kiln_model::size::{GIB, MIB};
use kiln_sandbox::cgroup::Hierarchies;
use kiln_sandbox::jail::{CoreSharing, core_sharing, landlock_state};
use serde::Serialize;

use super::{KvmKind, host_memory, kvm};

/// Outcome of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Works.
    Good,
    /// `kiln run` works, something is worse or missing.
    Limited,
    /// `kiln run` cannot work.
    Bad,
    /// Only information.
    Info,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do, if something is to be done.
    pub remedy: Option<&'static str>,
}

impl Finding {
    fn good(subject: &'static str, detail: impl Into<String>) -> Self {
        Finding { subject, verdict: Verdict::Good, detail: detail.into(), remedy: None }
    }

    fn info(subject: &'static str, detail: impl Into<String>) -> Self {
        Finding { subject, verdict: Verdict::Info, detail: detail.into(), remedy: None }
    }

    fn limited(subject: &'static str, detail: impl Into<String>, remedy: &'static str) -> Self {
        Finding { subject, verdict: Verdict::Limited, detail: detail.into(), remedy: Some(remedy) }
    }

    fn bad(subject: &'static str, detail: impl Into<String>, remedy: &'static str) -> Self {
        Finding { subject, verdict: Verdict::Bad, detail: detail.into(), remedy: Some(remedy) }
    }
}

/// Looks at everything. Starts short child processes (`nft`); changes nothing.
pub fn examine(state_dir: &Path) -> Vec<Finding> {
    let mut findings = vec![user(), kvm_device()];
    findings.extend(nested());
    findings.extend([vmm(), jail(), seccomp(), landlock(), cgroup(), hyperthreads(), merging()]);
    findings.extend([tun(), nftables(), io_uring(), userfaultfd(), hugepages(), memory()]);
    findings.extend(network());
    findings.push(state(state_dir));
    findings
}

/// What instances need of the host's network, tried in a namespace that vanishes.
fn network() -> Vec<Finding> {
    // The device and the user have lines of their own.
    let told = ["tap device", "network privileges"];
    let found = kiln_hostnet::check().into_iter().filter(|found| !told.contains(&found.subject));
    found
        .map(|found| match found.state {
            kiln_hostnet::State::Good => Finding::good(found.subject, "works"),
            kiln_hostnet::State::Doubtful(_) => Finding::limited(
                found.subject,
                "a filter of the host's own drops forwarded packets: instances reach only the host",
                "allow the links kg*: iptables -I FORWARD -i kg+ -j ACCEPT; iptables -I FORWARD -o kg+ -j ACCEPT",
            ),
            kiln_hostnet::State::Bad(detail) => {
                Finding::limited(found.subject, detail, "until then only --no-network works")
            }
        })
        .collect()
}

fn user() -> Finding {
    if rustix::process::geteuid().is_root() {
        Finding::good("user", "root")
    } else {
        Finding::limited(
            "user",
            "not root",
            "run as root: taps and firewall rules need it (--no-network works without)",
        )
    }
}

fn kvm_device() -> Finding {
    let kind = match kvm::probe(Path::new("/dev/kvm"), Path::new("/sys/module")) {
        Ok((_, kind)) => kind,
        Err(e @ kvm::KvmError::Refused(_)) => {
            return Finding::bad("kvm", one_line(&e), "run as root, or join the group that owns /dev/kvm");
        }
        Err(_) => {
            return Finding::bad(
                "kvm",
                "/dev/kvm is missing",
                "modprobe kvm_intel or kvm_amd; enable virtualization in the firmware; or use scripts/lab",
            );
        }
    };
    let version = kvm_ioctls::Kvm::new().map(|kvm| kvm.get_api_version());
    match (version, kind) {
        (Ok(12), KvmKind::Hardware { module }) => {
            Finding::good("kvm", format!("hardware-backed ({module}), API version 12"))
        }
        (Ok(12), KvmKind::Software { modules }) => Finding::bad(
            "kvm",
            format!("software KVM ({}): stock kernels cannot run here", modules.join(", ")),
            "use scripts/lab, which boots a Linux with hardware-like KVM; bare-metal test guests run here with \
             KILN_ALLOW_SOFTWARE_KVM=1",
        ),
        (Ok(version), _) => Finding::bad(
            "kvm",
            format!("API version {version}, not 12"),
            "use a Linux kernel of this century",
        ),
        (Err(e), _) => {
            Finding::bad("kvm", format!("/dev/kvm does not answer: {e}"), "reload the kvm modules")
        }
    }
}

fn nested() -> Option<Finding> {
    let value = ["kvm_intel", "kvm_amd"]
        .iter()
        .find_map(|module| fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).ok())?;
    let on = matches!(value.trim(), "1" | "Y");
    Some(Finding::info("nested", if on { "guests may run KVM themselves" } else { "off" }))
}

fn vmm() -> Finding {
    match crate::vmm_process::find_vmm() {
        Ok(path) => Finding::good("kiln-vmm", path.display().to_string()),
        Err(e) => Finding::bad("kiln-vmm", one_line(&e), "install kiln-vmm next to kiln, or set KILN_VMM"),
    }
}

fn tun() -> Finding {
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::good("tun", "/dev/net/tun opens"),
        Err(e) => Finding::limited(
            "tun",
            format!("/dev/net/tun: {e}"),
            "modprobe tun and run as root; until then only --no-network works",
        ),
    }
}

fn nftables() -> Finding {
    let run = |args: &[&str]| Command::new("nft").args(args).output();
    let version = match run(&["--version"]) {
        Ok(output) if output.status.success() => first_line(&output.stdout),
        _ => {
            return Finding::limited(
                "nftables",
                "the program nft is missing",
                "install the nftables package; until then only --no-network works",
            );
        }
    };
    match run(&["list", "tables"]) {
        Ok(output) if output.status.success() => Finding::good("nftables", version),
        Ok(output) => Finding::limited(
            "nftables",
            format!("{version}; listing tables fails: {}", first_line(&output.stderr)),
            "run as root on a kernel with nf_tables; until then only --no-network works",
        ),
        Err(e) => Finding::limited("nftables", e.to_string(), "install the nftables package"),
    }
}

/// Namespaces and a user id of its own for each VMM. What is missing without root, a VMM says in its log.
fn jail() -> Finding {
    if rustix::process::geteuid().is_root() {
        return Finding::good("jail", "each VMM gets namespaces, an empty root and a user id of its own");
    }
    // Debian's switch, and everybody's: none of them says no where it is absent.
    let switched_off = |path: &str| fs::read_to_string(path).is_ok_and(|value| value.trim() == "0");
    if switched_off("/proc/sys/kernel/unprivileged_userns_clone")
        || switched_off("/proc/sys/user/max_user_namespaces")
    {
        return Finding::limited(
            "jail",
            "no namespaces without root: system call filters and Landlock only",
            "run as root, or allow user namespaces (sysctl user.max_user_namespaces)",
        );
    }
    Finding::limited(
        "jail",
        "namespaces through a user namespace; all VMMs have the user id of their owner",
        "run as root: then each VMM gets a user id, a PID namespace and resource limits of its own",
    )
}

fn seccomp() -> Finding {
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.split_whitespace().any(|action| action == "trap") => {
            Finding::good("seccomp", "a list of system calls per thread, forbidden ones are named")
        }
        _ => Finding::bad(
            "seccomp",
            "this kernel cannot filter system calls",
            "use a kernel with CONFIG_SECCOMP_FILTER, as every distribution has",
        ),
    }
}

fn landlock() -> Finding {
    match landlock_state() {
        Ok(version) => Finding::good("Landlock", version),
        Err(reason) => Finding::limited(
            "Landlock",
            reason,
            "boot with lsm=landlock,… on Linux 5.13 or newer; until then the empty root alone keeps VMMs from files",
        ),
    }
}

fn cgroup() -> Finding {
    let (there, missing) = Hierarchies::host().examine();
    if missing.is_empty() {
        return Finding::good("cgroup", format!("limits on {}", there.join(", ")));
    }
    let missing: Vec<_> = missing.iter().map(|gap| gap.to_string().replace("cgroup ", "")).collect();
    Finding::limited(
        "cgroup",
        format!("missing: {}", missing.join("; ")),
        "run as root where /sys/fs/cgroup is mounted and writable; until then a VMM may take more than its type says",
    )
}

/// Two guests on the two threads of one core see some of each other's timing, and on some processors
/// more.
fn hyperthreads() -> Finding {
    match core_sharing() {
        CoreSharing::None => Finding::good("SMT", "off: no two guests share a core at a time"),
        CoreSharing::Separated => {
            Finding::good("SMT", "on, with core scheduling: no two guests share a core at a time")
        }
        CoreSharing::Shared => Finding::limited(
            "SMT",
            "on, and this kernel has no core scheduling: threads of one core are shared by whoever runs on them",
            "for tenants who do not trust each other use Linux 5.14 or newer with CONFIG_SCHED_CORE, or switch \
             SMT off (echo off > /sys/devices/system/cpu/smt/control)",
        ),
    }
}

/// Pages that are merged between guests tell one what another has in memory.
fn merging() -> Finding {
    match fs::read_to_string("/sys/kernel/mm/ksm/run").as_deref().map(str::trim) {
        Ok("1") => Finding::info("page merging", "on in the kernel; guest memory takes no part in it"),
        _ => Finding::good("page merging", "off"),
    }
}

fn io_uring() -> Finding {
    let remedy = "sysctl kernel.io_uring_disabled=0 on Linux 5.10 or newer; until then disks are slower";
    match fs::read_to_string("/proc/sys/kernel/io_uring_disabled").as_deref().map(str::trim) {
        Ok("0") => Finding::good("io_uring", "enabled"),
        Ok("1") if rustix::process::geteuid().is_root() => Finding::good("io_uring", "enabled for root"),
        Ok(other) => Finding::limited("io_uring", format!("kernel.io_uring_disabled={other}"), remedy),
        // The switch is new in 6.6; before, the symbol table says whether it is built in.
        Err(_) => match fs::read_to_string("/proc/kallsyms") {
            Ok(symbols) if symbols.contains("io_uring_setup") => Finding::good("io_uring", "enabled"),
            _ => Finding::limited("io_uring", "not built into this kernel", remedy),
        },
    }
}

fn userfaultfd() -> Finding {
    let there =
        Path::new("/dev/userfaultfd").exists() || Path::new("/proc/sys/vm/unprivileged_userfaultfd").exists();
    Finding::info("userfaultfd", if there { "available" } else { "not available" })
}

fn hugepages() -> Finding {
    let free = host_memory().free_hugepages;
    let detail = if free == ByteSize::bytes(0) {
        "no free 2 MiB pages (vm.nr_hugepages sets the pool that --hugepages uses)".to_owned()
    } else {
        format!("{free} in free 2 MiB pages")
    };
    Finding::info("hugepages", detail)
}

fn memory() -> Finding {
    let available = host_memory().available;
    if available < ByteSize::bytes(64 * MIB) {
        return Finding::bad(
            "memory",
            format!("{available} available"),
            "free some memory: an instance needs 64 MiB",
        );
    }
    Finding::good("memory", format!("{available} available"))
}

fn state(dir: &Path) -> Finding {
    // The directory may not exist yet; what counts then is where it would be made.
    let existing = dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let Ok(fs) = rustix::fs::statvfs(existing) else {
        return Finding::bad(
            "state",
            format!("{} cannot be examined", existing.display()),
            "choose another --state-dir",
        );
    };
    if rustix::fs::access(existing, rustix::fs::Access::WRITE_OK).is_err() {
        return Finding::bad(
            "state",
            format!("{} cannot be written", existing.display()),
            "run as root, or choose another --state-dir (KILN_STATE_DIR)",
        );
    }
    let free = ByteSize::bytes(fs.f_bavail.saturating_mul(fs.f_frsize));
    let detail = format!("{}: {free} free", dir.display());
    if free < ByteSize::bytes(2 * GIB) {
        return Finding::limited("state", detail, "make room: images and volumes live there");
    }
    Finding::good("state", detail)
}

fn first_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().trim().to_owned()
}

/// An error with its causes.
fn one_line(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_covers_each_subject_once_and_every_gap_has_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let findings = examine(&dir.path().join("not/yet/there"));
        for subject in [
            "kvm", "tun", "nftables", "jail", "seccomp", "Landlock", "cgroup", "SMT", "io_uring", "memory",
            "state",
        ] {
            assert_eq!(findings.iter().filter(|f| f.subject == subject).count(), 1, "{subject}");
        }
        for finding in findings {
            let gap = matches!(finding.verdict, Verdict::Bad | Verdict::Limited);
            assert_eq!(gap, finding.remedy.is_some(), "{finding:?}");
            assert!(!finding.detail.contains('\n'), "{finding:?}");
        }
        assert!(!dir.path().join("not").exists(), "an examination changes nothing");
    }
}
