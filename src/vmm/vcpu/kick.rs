//! Getting a vCPU thread out of the guest.
//!
//! The handler of the kick signal sets `immediate_exit` in the `kvm_run` page of the thread it
//! interrupts. If the thread is in the guest, the signal itself ends `KVM_RUN`; if it is just about
//! to enter, the flag does.

#![expect(unsafe_code, reason = "a signal handler reaches the kvm_run page of its thread through a pointer")]

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, register_signal_handler};

/// The kick signal.
fn signal() -> i32 {
    libc::SIGRTMIN()
}

thread_local! {
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

/// Installs the handler of the kick signal, once per process, before the first vCPU runs.
pub fn install_handler() -> io::Result<()> {
    register_signal_handler(signal(), on_kick).map_err(|e| io::Error::from_raw_os_error(e.errno()))
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // Only async-signal-safe work: a read of a const-initialised thread local without destructor,
    // and an atomic store.
    let flag = IMMEDIATE_EXIT.with(Cell::get);
    // SAFETY: the pointer is null or was set by `Kickable::new` on this very thread, and is reset
    // to null when the `Kickable` goes, before the page it points into can be unmapped.
    if let Some(flag) = unsafe { flag.as_ref() } {
        flag.store(1, Ordering::SeqCst);
    }
}

/// A vCPU that the calling thread may be kicked out of.
pub struct Kickable {
    // First, so that it is dropped first.
    _registered: Registered,
    vcpu: VcpuFd,
    page: *const kvm_run,
}

/// That this thread has a vCPU to be kicked out of.
struct Registered;

impl Drop for Registered {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.with(|slot| slot.set(ptr::null()));
    }
}

impl Kickable {
    /// Registers the vCPU with this thread; at most one per thread at a time.
    pub fn new(mut vcpu: VcpuFd) -> Self {
        let run = vcpu.get_kvm_run();
        // `kvm_run` is mapped memory shared with the kernel, so it does not move with `vcpu`.
        let flag = ptr::from_mut(&mut run.immediate_exit).cast::<AtomicU8>();
        IMMEDIATE_EXIT.with(|slot| slot.set(flag.cast_const()));
        let page = ptr::from_ref(run);
        Kickable { _registered: Registered, vcpu, page }
    }

    /// Gives the vCPU back, which from now on no kick reaches.
    pub fn release(self) -> VcpuFd {
        let Kickable { _registered: registered, vcpu, .. } = self;
        drop(registered);
        vcpu
    }

    /// Runs the guest until its next exit. For a port access, also tells the width of one element in
    /// bytes: a string instruction brings several.
    pub fn run(&mut self) -> (Result<VcpuExit<'_>, kvm_ioctls::Error>, usize) {
        let page = self.page;
        let exit = self.vcpu.run();
        // SAFETY: the page stays mapped as long as `self.vcpu` lives; no reference is formed.
        let width = unsafe { &raw const (*page).__bindgen_anon_1.io.size };
        // SAFETY: the vCPU is out of the guest, so nobody writes the page; for exits other than port
        // accesses the member holds some other number, and every bit pattern is one.
        let width = unsafe { width.read() };
        (exit, usize::from(width).max(1))
    }

    /// The vCPU.
    pub fn vcpu(&mut self) -> &mut VcpuFd {
        &mut self.vcpu
    }

    /// Forgets earlier kicks. Called before looking at what the kick was for.
    pub fn clear(&mut self) {
        self.vcpu.set_kvm_immediate_exit(0);
    }
}

/// Kicks the vCPU of `thread`. The thread may have ended but must not have been joined.
pub fn kick(thread: &JoinHandle<()>) {
    // A thread that has ended needs no kick, so a failure there means nothing.
    if let Err(e) = thread.kill(signal()) {
        tracing::warn!("a vCPU thread cannot be kicked: {e}");
    }
}
