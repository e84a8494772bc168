//! Says which system call was refused, and ends the process.

use std::cell::Cell;
use std::io;
use std::ptr;

use syscalls::Sysno;

use crate::last_words::say_and_leave;

/// Exit status of a process that made a forbidden system call: as a shell would show SIGSYS.
pub const STATUS: i32 = 128 + libc::SIGSYS;

thread_local! {
    /// Set once per thread, before its filter; static, so that the handler may read it.
    static THREAD: Cell<&'static str> = const { Cell::new("a thread") };
}

/// Names the calling thread in reports.
pub(super) fn name_thread(name: &'static str) {
    THREAD.with(|slot| slot.set(name));
}

/// From now on a forbidden system call ends the process with [`STATUS`], its name among the
/// [last words](crate::last_words). For the whole process; call before the first filter is installed.
pub fn report_violations() -> io::Result<()> {
    // SAFETY: all zeroes are a valid sigaction: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_violation as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the action is initialised and its handler makes async-signal-safe calls only.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_violation(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // `si_syscall` of `struct siginfo`: after signo, errno, code, padding and the address.
    const SYSCALL_AT: usize = 24;
    // SAFETY: the kernel hands a handler with SA_SIGINFO a complete siginfo of 128 bytes.
    let number = unsafe { info.byte_add(SYSCALL_AT) }.cast::<i32>();
    // SAFETY: the member for SIGSYS has an aligned and initialised int at this offset.
    let number = unsafe { number.read() };
    let name = usize::try_from(number).ok().and_then(Sysno::new).map_or("unknown", |call| call.name());
    let who = THREAD.with(Cell::get);
    say_and_leave(&["the ", who, " thread made the forbidden system call ", name, " and was ended"], STATUS);
}

/// Has all threads share one heap. With heaps of their own, which glibc makes when they wait for each
/// other, it changes protections and reads a file of `/proc`. Call while there is one thread.
pub fn one_heap() {
    // SAFETY: sets a number of the allocator; nothing allocates meanwhile, as there is one thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
