//! Ways out, one system call each.

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use kiln_sandbox::seccomp::ThreadKind;

/// What a VMM has been handed.
pub struct Tools {
    /// A disk.
    pub file: OwnedFd,
    pub kvm: OwnedFd,
}

/// One way out.
pub struct Attempt {
    pub name: &'static str,
    /// The system call that it takes.
    pub call: &'static str,
    pub run: fn(&Tools) -> io::Result<c_long>,
    /// Whether the jail refuses it even without a filter.
    pub jail_refuses: bool,
    /// Threads whose list has the call.
    pub allowed_on: &'static [ThreadKind],
}

pub fn find(name: &str) -> Option<&'static Attempt> {
    ATTEMPTS.iter().find(|attempt| attempt.name == name)
}

/// Tells the test how it went, with no more than a write.
pub fn report(result: io::Result<c_long>) {
    match result {
        Ok(value) => println!("DONE {value}"),
        Err(e) => println!("REFUSED {e}"),
    }
}

fn answer(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A raw system call.
macro_rules! call {
    ($number:ident $(, $arg:expr)*) => {{
        // SAFETY: every pointer among the arguments is null or that of a live local or literal; the process
        // is made to be ended by this.
        answer(unsafe { libc::syscall(libc::$number $(, $arg)*) })
    }};
}

macro_rules! attempt {
    ($name:literal, $call:literal, $jail:expr, $run:expr) => {
        Attempt { name: $name, call: $call, run: $run, jail_refuses: $jail, allowed_on: &[] }
    };
}

const NULL: usize = 0;
/// Not a process of the jail; on the host there may be one.
const OTHER: i32 = 30_000;

fn open(path: &std::ffi::CStr) -> io::Result<c_long> {
    call!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY)
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<c_long> {
    call!(SYS_socket, family, kind, protocol)
}

/// A page of this process.
fn page() -> usize {
    static PAGE: u8 = 0;
    (&raw const PAGE).addr() & !0xfff
}

pub const ATTEMPTS: &[Attempt] = &[
    attempt!("file of the host", "openat", true, |_| open(c"/etc/passwd")),
    attempt!("new file", "openat", true, |_| call!(
        SYS_openat,
        libc::AT_FDCWD,
        c"/new".as_ptr(),
        libc::O_CREAT | libc::O_WRONLY,
        0o600
    )),
    attempt!("process of the host", "openat", true, |_| open(c"/proc/1/environ")),
    attempt!("second /dev/kvm", "openat", true, |_| open(c"/dev/kvm")),
    attempt!("second tap", "openat", true, |_| open(c"/dev/net/tun")),
    attempt!("old open", "open", true, |_| call!(
        SYS_open,
        c"/".as_ptr(),
        libc::O_RDONLY | libc::O_DIRECTORY
    )),
    attempt!("newer open", "openat2", true, |_| {
        let how = [0u64; 3];
        call!(SYS_openat2, libc::AT_FDCWD, c"/etc/passwd".as_ptr(), how.as_ptr(), size_of_val(&how))
    }),
    attempt!("file by handle", "open_by_handle_at", true, |t| {
        let handle = [8u32, 1, 2, 0];
        call!(SYS_open_by_handle_at, t.file.as_raw_fd(), handle.as_ptr(), 0)
    }),
    attempt!("execute a program", "execve", true, |_| call!(SYS_execve, c"/bin/sh".as_ptr(), NULL, NULL)),
    attempt!("execute a descriptor", "execveat", true, |t| call!(
        SYS_execveat,
        t.file.as_raw_fd(),
        c"".as_ptr(),
        NULL,
        NULL,
        libc::AT_EMPTY_PATH
    )),
    attempt!("program in memory", "memfd_create", false, |_| call!(SYS_memfd_create, c"x".as_ptr(), 0)),
    attempt!("fork", "fork", false, |_| call!(SYS_fork)),
    attempt!("new process", "clone", false, |_| call!(SYS_clone, libc::SIGCHLD, NULL, NULL, NULL, NULL)),
    attempt!("new process, newer way", "clone3", true, |_| call!(SYS_clone3, NULL, 0)),
    attempt!("trace the parent", "ptrace", true, |_| call!(
        SYS_ptrace,
        libc::PTRACE_ATTACH,
        OTHER,
        NULL,
        NULL
    )),
    attempt!("memory of another process", "process_vm_readv", true, |_| call!(
        SYS_process_vm_readv,
        OTHER,
        NULL,
        0,
        NULL,
        0,
        0
    )),
    attempt!("kill a process of the host", "kill", true, |_| call!(SYS_kill, OTHER, libc::SIGKILL)),
    Attempt {
        name: "signal to another process",
        call: "tgkill",
        run: |_| call!(SYS_tgkill, OTHER, OTHER, libc::SIGKILL),
        jail_refuses: true,
        allowed_on: &[ThreadKind::Control],
    },
    attempt!("handle on a process", "pidfd_open", true, |_| call!(SYS_pidfd_open, OTHER, 0)),
    attempt!("mount", "mount", true, |_| call!(
        SYS_mount,
        c"none".as_ptr(),
        c"/".as_ptr(),
        c"proc".as_ptr(),
        0,
        NULL
    )),
    attempt!("mount, newer way", "fsopen", true, |_| call!(SYS_fsopen, c"proc".as_ptr(), 0)),
    attempt!("unmount", "umount2", true, |_| call!(SYS_umount2, c"/".as_ptr(), libc::MNT_DETACH)),
    attempt!("another root", "pivot_root", true, |_| call!(SYS_pivot_root, c"/".as_ptr(), c"/".as_ptr())),
    attempt!("chroot", "chroot", true, |_| call!(SYS_chroot, c"/".as_ptr())),
    attempt!("enter a namespace", "setns", true, |t| call!(SYS_setns, t.file.as_raw_fd(), 0)),
    attempt!("new namespaces", "unshare", true, |_| call!(SYS_unshare, libc::CLONE_NEWNS)),
    attempt!("TCP", "socket", false, |_| socket(libc::AF_INET, libc::SOCK_STREAM, 0)),
    attempt!("raw packets", "socket", true, |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
    attempt!("raw IP", "socket", true, |_| socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
    attempt!("Unix socket", "socket", false, |_| socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)),
    attempt!("netlink", "socket", false, |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
    attempt!("new io_uring", "io_uring_setup", false, |_| {
        let params = [0u8; 120];
        call!(SYS_io_uring_setup, 8, params.as_ptr())
    }),
    attempt!("more rights for a ring", "io_uring_register", true, |t| call!(
        SYS_io_uring_register,
        t.file.as_raw_fd(),
        0,
        NULL,
        0
    )),
    attempt!("page faults of its own", "userfaultfd", false, |_| call!(SYS_userfaultfd, 0)),
    attempt!("keyring", "keyctl", false, |_| call!(SYS_keyctl, 0, -3, 1)),
    attempt!("new key", "add_key", true, |_| call!(SYS_add_key, NULL, NULL, NULL, 0, -3)),
    attempt!("BPF", "bpf", true, |_| {
        let attributes = [0u32; 16];
        call!(SYS_bpf, 0, attributes.as_ptr(), size_of_val(&attributes))
    }),
    attempt!("performance events", "perf_event_open", true, |_| {
        let attributes = [0u32; 16];
        call!(SYS_perf_event_open, attributes.as_ptr(), -1, 0, -1, 0)
    }),
    Attempt {
        name: "new KVM machine",
        call: "ioctl",
        run: |t| call!(SYS_ioctl, t.kvm.as_raw_fd(), 0xae01, 0),
        jail_refuses: false,
        allowed_on: &[ThreadKind::Control],
    },
    attempt!("KVM state of all MSRs", "ioctl", false, |t| call!(
        SYS_ioctl,
        t.kvm.as_raw_fd(),
        0xc004_ae02_u64,
        NULL
    )),
    // TUNSETIFF, TUNSETOWNER, TUNSETPERSIST and TIOCSTI, in any of which a list could be wrong by a bit.
    attempt!("attach to a tap", "ioctl", true, |t| call!(SYS_ioctl, t.file.as_raw_fd(), 0x4004_54ca, NULL)),
    attempt!("own a tap", "ioctl", true, |t| call!(SYS_ioctl, t.file.as_raw_fd(), 0x4004_54cc, 0)),
    attempt!("keep a tap", "ioctl", true, |t| call!(SYS_ioctl, t.file.as_raw_fd(), 0x4004_54cb, 1)),
    // What a tap's descriptor can do to its link: SIOCSIFHWADDR, TUNSETCARRIER, TUNGETDEVNETNS, TUNSETSNDBUF,
    // TUNSETVNETHDRSZ, TUNATTACHFILTER, TUNSETSTEERINGEBPF, TUNSETFILTEREBPF.
    attempt!("change a tap's hardware address", "ioctl", true, |t| call!(
        SYS_ioctl,
        t.file.as_raw_fd(),
        0x8924,
        NULL
    )),
    attempt!("take a tap's carrier", "ioctl", true, |t| call!(
        SYS_ioctl,
        t.file.as_raw_fd(),
        0x4004_54e2,
        NULL
    )),
    attempt!("open a tap's namespace", "ioctl", true, |t| call!(SYS_ioctl, t.file.as_raw_fd(), 0x54e3, 0)),
    attempt!("stop a tap's receiver", "ioctl", true, |t| call!(
        SYS_ioctl,
        t.file.as_raw_fd(),
        0x4004_54d4,
        NULL
    )),
    attempt!("change a tap's header", "ioctl", true, |t| call!(
        SYS_ioctl,
        t.file.as_raw_fd(),
        0x4004_54d8,
        NULL
    )),
    attempt!("filter a tap", "ioctl", true, |t| call!(SYS_ioctl, t.file.as_raw_fd(), 0x4010_54d5, NULL)),
    attempt!("steer a tap by a program", "ioctl", true, |t| call!(
        SYS_ioctl,
        t.file.as_raw_fd(),
        0x8004_54e0u32,
        NULL
    )),
    attempt!("filter a tap by a program", "ioctl", true, |t| call!(
        SYS_ioctl,
        t.file.as_raw_fd(),
        0x8004_54e1u32,
        NULL
    )),
    attempt!("type into a terminal", "ioctl", true, |_| call!(SYS_ioctl, 2, libc::TIOCSTI, c"x".as_ptr())),
    attempt!("executable memory", "mmap", false, |_| call!(
        SYS_mmap,
        NULL,
        4096,
        libc::PROT_READ | libc::PROT_EXEC,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        -1,
        0
    )),
    attempt!("executable file", "mmap", false, |t| call!(
        SYS_mmap,
        NULL,
        4096,
        libc::PROT_READ | libc::PROT_EXEC,
        libc::MAP_PRIVATE,
        t.file.as_raw_fd(),
        0
    )),
    attempt!("memory made executable", "mprotect", false, |_| call!(
        SYS_mprotect,
        page(),
        4096,
        libc::PROT_READ | libc::PROT_EXEC
    )),
    attempt!("own signal handler", "rt_sigaction", false, |_| call!(
        SYS_rt_sigaction,
        libc::SIGSYS,
        NULL,
        NULL,
        8
    )),
    attempt!("another filter", "seccomp", false, |_| call!(SYS_seccomp, 3, 0, NULL)),
    attempt!("process settings", "prctl", false, |_| call!(SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0)),
    attempt!("more memory allowed", "prlimit64", true, |_| {
        let limit = [u64::MAX; 2];
        call!(SYS_prlimit64, 0, libc::RLIMIT_AS, limit.as_ptr(), NULL)
    }),
    attempt!("become root", "setresuid", true, |_| call!(SYS_setresuid, 0, 0, 0)),
    attempt!("take capabilities", "capset", true, |_| {
        let header = [0x2008_0522_u32, 0];
        let all = [u32::MAX; 6];
        call!(SYS_capset, header.as_ptr(), all.as_ptr())
    }),
    attempt!("set the time", "clock_settime", true, |_| {
        let time = [0i64; 2];
        call!(SYS_clock_settime, libc::CLOCK_REALTIME, time.as_ptr())
    }),
    attempt!("set the time, older way", "settimeofday", true, |_| {
        let time = [0i64; 2];
        call!(SYS_settimeofday, time.as_ptr(), NULL)
    }),
    attempt!("name of the host", "sethostname", true, |_| call!(SYS_sethostname, c"x".as_ptr(), 1)),
    attempt!("kernel module", "init_module", true, |_| call!(SYS_init_module, NULL, 0, c"".as_ptr())),
    attempt!("another kernel", "kexec_load", true, |_| call!(SYS_kexec_load, 0, 0, NULL, 0)),
    attempt!("restart the host", "reboot", true, |_| call!(
        SYS_reboot,
        0xfee1_dead_u32,
        0x2812_1969,
        0x0123_4567,
        NULL
    )),
    attempt!("I/O ports", "iopl", true, |_| call!(SYS_iopl, 3)),
    attempt!("priority", "setpriority", true, |_| call!(SYS_setpriority, 0, 0, -20)),
    attempt!("real-time priority", "sched_setscheduler", true, |_| {
        let priority = 50;
        call!(SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &raw const priority)
    }),
    attempt!("shared memory", "shmget", false, |_| call!(SYS_shmget, 1, 4096, 0o1600)),
    attempt!("message queue", "mq_open", true, |_| call!(
        SYS_mq_open,
        c"x".as_ptr(),
        libc::O_CREAT,
        0o600,
        NULL
    )),
];
