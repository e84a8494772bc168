//! The lists. Data only; see the module above.

use syscalls::Sysno;

/// A system call that a thread may make.
#[derive(Debug)]
pub struct Call {
    /// Which.
    pub name: Sysno,
    /// Conditions that must all hold; none allows any argument.
    pub args: &'static [Arg],
    /// What the thread needs it for.
    pub why: &'static str,
}

/// A condition on one argument, counted from 0.
#[derive(Debug)]
pub enum Arg {
    /// One of these values, each with its name.
    Is(u8, &'static [(&'static str, u64)]),
    /// None of these bits, which have this name.
    Without(u8, &'static str, u64),
    /// Under the mask exactly the value, which has this name.
    HasOnly(u8, &'static str, u64, u64),
}

impl std::fmt::Display for Arg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Arg::Is(_, values) => {
                let names: Vec<String> = values.iter().map(|(name, _)| format!("`{name}`")).collect();
                f.write_str(&names.join(" "))
            }
            Arg::Without(_, name, _) => write!(f, "no `{name}`"),
            Arg::HasOnly(_, name, ..) => write!(f, "`{name}` only"),
        }
    }
}

const fn any(name: Sysno, why: &'static str) -> Call {
    Call { name, args: &[], why }
}

const fn when(name: Sysno, args: &'static [Arg], why: &'static str) -> Call {
    Call { name, args, why }
}

const fn bits(value: i32) -> u64 {
    value.cast_unsigned() as u64
}

/// Request number of an ioctl (`asm-generic/ioctl.h`): direction, size, type, number.
const fn request(direction: u64, kind: u8, number: u64, size: u64) -> u64 {
    direction << 30 | size << 16 | (kind as u64) << 8 | number
}

const NONE: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;
const KVM: u8 = 0xae;
const TUN: u8 = b'T';
/// Of the tun driver, on a tap that is open already: what the guest's driver can take, and a queue on
/// or off.
const TUNSETOFFLOAD: (&str, u64) = ("TUNSETOFFLOAD", request(WRITE, TUN, 208, 4));
const TUNSETQUEUE: (&str, u64) = ("TUNSETQUEUE", request(WRITE, TUN, 217, 4));

/// Anonymous private memory: not a file's, not shared with another process.
const ANONYMOUS: Arg = Arg::HasOnly(
    3,
    "MAP_PRIVATE|MAP_ANONYMOUS",
    bits(libc::MAP_PRIVATE | libc::MAP_SHARED | libc::MAP_ANONYMOUS),
    bits(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
);
const NO_EXEC: Arg = Arg::Without(2, "PROT_EXEC", bits(libc::PROT_EXEC));

/// What the allocator, the standard library and the end of the process need on any thread.
pub const EVERY: &[Call] = &[
    any(Sysno::futex, "locks, channels, parking"),
    any(
        Sysno::sched_yield,
        "a channel whose other end was interrupted half-way; the kernel lacks memory for a request",
    ),
    any(Sysno::read, "reset an event descriptor"),
    any(Sysno::write, "signal an event descriptor; the log"),
    any(Sysno::brk, "the heap, which has one arena"),
    when(Sysno::mmap, &[NO_EXEC, ANONYMOUS], "large blocks of the heap"),
    any(Sysno::munmap, "the same, freed"),
    any(Sysno::mremap, "the same, grown; keeps the protection"),
    any(Sysno::clock_gettime, "time, where the host's clock cannot be read without a call"),
    any(Sysno::exit_group, "the end, also after a violation or a panic"),
];

/// The standard library of a build with debug assertions looks whether a descriptor is open before it
/// closes it. Not in a release.
pub const DEBUG_BUILD: &[Call] =
    &[when(Sysno::fcntl, &[Arg::Is(1, &[("F_GETFD", bits(libc::F_GETFD))])], "whether a descriptor is open")];

/// What a guest's access to a device can set off.
pub const VCPU: &[Call] = &[
    when(
        Sysno::ioctl,
        &[Arg::Is(
            1,
            &[
                ("KVM_RUN", request(NONE, KVM, 0x80, 0)),
                ("KVM_KVMCLOCK_CTRL", request(NONE, KVM, 0xad, 0)),
                ("KVM_SET_GSI_ROUTING", request(WRITE, KVM, 0x6a, 8)),
                ("KVM_IRQFD", request(WRITE, KVM, 0x76, 32)),
                ("KVM_IOEVENTFD", request(WRITE, KVM, 0x79, 64)),
                ("KVM_GET_REGS", request(READ, KVM, 0x81, 144)),
                ("KVM_GET_SREGS", request(READ, KVM, 0x83, 312)),
                ("KVM_TRANSLATE", request(READ | WRITE, KVM, 0x85, 24)),
                TUNSETOFFLOAD,
                TUNSETQUEUE,
            ],
        )],
        "run; connect interrupts and doorbells; say where it failed; what the driver of a network device accepted",
    ),
    any(Sysno::rt_sigreturn, "the kick that gets it out of the guest"),
    when(Sysno::eventfd2, &[], "a network device that is started"),
    when(Sysno::fcntl, &[Arg::Is(1, &[("F_DUPFD_CLOEXEC", bits(libc::F_DUPFD_CLOEXEC))])], "the same"),
    any(Sysno::close, "the same, stopped"),
];

/// Tap queues and the clients of the services on the link.
pub const DEVICES: &[Call] = &[
    any(Sysno::epoll_wait, "wait for work"),
    any(Sysno::epoll_ctl, "what to wait for"),
    any(Sysno::readv, "a frame from the tap"),
    any(Sysno::writev, "a frame to the tap"),
    any(Sysno::getrandom, "entropy for the guest; metadata tokens"),
    any(Sysno::close, "a network device that is stopped"),
    when(Sysno::ioctl, &[Arg::Is(1, &[TUNSETQUEUE])], "the driver uses more or fewer queues"),
];

/// Requests on images.
pub const DISK: &[Call] = &[
    any(Sysno::epoll_wait, "wait for work"),
    any(Sysno::epoll_ctl, "what to wait for"),
    any(Sysno::io_uring_enter, "requests; the ring takes reads, writes, flushes and allocation only"),
    any(Sysno::pread64, "tables of an image"),
    any(Sysno::pwrite64, "tables of an image"),
    any(Sysno::preadv, "requests that the ring cannot take"),
    any(Sysno::pwritev, "requests that the ring cannot take"),
    any(Sysno::pwritev2, "whether the file system takes writes without waiting"),
    any(Sysno::fdatasync, "flush"),
    any(Sysno::fallocate, "discard, zeroes, growth of an image"),
];

/// The life-cycle: builds the machine anew when the guest resets, serves the control socket.
pub const CONTROL: &[Call] = &[
    any(Sysno::epoll_wait, "wait for work"),
    any(Sysno::epoll_ctl, "what to wait for"),
    any(Sysno::accept4, "a client of the control socket"),
    when(
        Sysno::recvmsg,
        &[Arg::Is(2, &[("MSG_CMSG_CLOEXEC", bits(libc::MSG_CMSG_CLOEXEC))])],
        "what a client asks, with the files of a disk or the taps of an interface that comes",
    ),
    any(Sysno::sendto, "what it is told"),
    any(Sysno::shutdown, "the last word to a client"),
    when(
        Sysno::setsockopt,
        &[
            Arg::Is(1, &[("SOL_SOCKET", bits(libc::SOL_SOCKET))]),
            Arg::Is(2, &[("SO_SNDTIMEO", bits(libc::SO_SNDTIMEO))]),
        ],
        "no client holds up the end",
    ),
    any(Sysno::close, "clients and devices that are gone"),
    any(Sysno::pread64, "boot entry, kernel and initial RAM disk"),
    any(Sysno::preadv, "the same from an image"),
    any(Sysno::lseek, "headers of a given ELF kernel"),
    when(
        Sysno::statx,
        &[Arg::HasOnly(2, "AT_EMPTY_PATH", bits(libc::AT_EMPTY_PATH), bits(libc::AT_EMPTY_PATH))],
        "size of a given kernel; of an open file, no path",
    ),
    any(Sysno::getrandom, "generation id and seed of a new machine"),
    any(Sysno::eventfd2, "devices of a new machine"),
    any(Sysno::pwrite64, "tables of an image that is closed at the end"),
    any(Sysno::fdatasync, "the same"),
    when(
        Sysno::fcntl,
        &[Arg::Is(
            1,
            &[("F_OFD_SETLK", bits(libc::F_OFD_SETLK)), ("F_DUPFD_CLOEXEC", bits(libc::F_DUPFD_CLOEXEC))],
        )],
        "images are unlocked at the end; a network device that is resumed",
    ),
    when(
        Sysno::madvise,
        &[Arg::Is(2, &[("MADV_DONTNEED", bits(libc::MADV_DONTNEED))])],
        "guest memory is wiped at a reset",
    ),
    when(
        Sysno::mmap,
        &[
            NO_EXEC,
            Arg::HasOnly(3, "MAP_SHARED", bits(libc::MAP_PRIVATE | libc::MAP_SHARED), bits(libc::MAP_SHARED)),
        ],
        "the run page of a vCPU",
    ),
    any(Sysno::rt_sigprocmask, "the C library holds signals back while it sends one"),
    any(Sysno::getpid, "the same: to whom"),
    any(Sysno::tgkill, "kick a vCPU; another process cannot be named"),
    when(
        Sysno::ioctl,
        &[Arg::Is(
            1,
            &[
                ("FIONBIO", 0x5421),
                ("KVM_CREATE_VM", request(NONE, KVM, 0x01, 0)),
                ("KVM_CHECK_EXTENSION", request(NONE, KVM, 0x03, 0)),
                ("KVM_GET_VCPU_MMAP_SIZE", request(NONE, KVM, 0x04, 0)),
                ("KVM_GET_SUPPORTED_CPUID", request(READ | WRITE, KVM, 0x05, 8)),
                ("KVM_CREATE_VCPU", request(NONE, KVM, 0x41, 0)),
                ("KVM_SET_USER_MEMORY_REGION", request(WRITE, KVM, 0x46, 32)),
                ("KVM_SET_TSS_ADDR", request(NONE, KVM, 0x47, 0)),
                ("KVM_SET_IDENTITY_MAP_ADDR", request(WRITE, KVM, 0x48, 8)),
                ("KVM_CREATE_IRQCHIP", request(NONE, KVM, 0x60, 0)),
                ("KVM_SET_GSI_ROUTING", request(WRITE, KVM, 0x6a, 8)),
                ("KVM_IRQFD", request(WRITE, KVM, 0x76, 32)),
                ("KVM_IOEVENTFD", request(WRITE, KVM, 0x79, 64)),
                ("KVM_SET_REGS", request(WRITE, KVM, 0x82, 144)),
                ("KVM_GET_SREGS", request(READ, KVM, 0x83, 312)),
                ("KVM_SET_SREGS", request(WRITE, KVM, 0x84, 312)),
                ("KVM_SET_MSRS", request(WRITE, KVM, 0x89, 8)),
                ("KVM_SET_FPU", request(WRITE, KVM, 0x8d, 416)),
                ("KVM_GET_LAPIC", request(READ, KVM, 0x8e, 1024)),
                ("KVM_SET_LAPIC", request(WRITE, KVM, 0x8f, 1024)),
                ("KVM_SET_CPUID2", request(WRITE, KVM, 0x90, 8)),
                ("KVM_GET_TSC_KHZ", request(NONE, KVM, 0xa3, 0)),
                TUNSETOFFLOAD,
                TUNSETQUEUE,
            ],
        )],
        "a new machine after a reset; devices that are paused and resumed; an interface that comes",
    ),
];
