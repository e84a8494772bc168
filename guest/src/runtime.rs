//! What the language and the processor expect to find: memory functions, the panic handler, the
//! exception report, the ways out.

use core::arch::asm;
use core::panic::PanicInfo;

use crate::clock::Deadline;
use crate::io;
use crate::report::println;

/// Power control block: sleep control register and S5 with the enable bit.
const POWER_PORT: u16 = 0x600;
const SLEEP_S5: u8 = 5 << 2 | 1 << 5;
const RESET_PORT: u16 = POWER_PORT + 2;
const EVENT_PORT: u16 = POWER_PORT + 4;
/// QEMU's isa-debug-exit, so that the same image ends there too.
const QEMU_EXIT_PORT: u16 = 0xf4;

/// Turns the machine off.
pub fn power_off() -> ! {
    io::out8(POWER_PORT, SLEEP_S5);
    linger();
    io::out8(QEMU_EXIT_PORT, 0);
    println!("FAIL power-off: still running");
    park()
}

/// Restarts the machine.
pub fn reset() -> ! {
    io::out8(RESET_PORT, 1);
    linger();
    println!("FAIL reset: still running");
    park()
}

/// Pending power events; reading clears them.
pub fn power_events() -> u32 {
    io::in32(EVENT_PORT)
}

/// The machine may need a moment to stop this processor.
fn linger() {
    let moment = Deadline::after_ms(3000);
    while !moment.passed() {
        core::hint::spin_loop();
    }
}

fn park() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    println!("FAIL guest: {info}");
    power_off()
}

/// Entered from `boot.s`, in ring 3 again.
#[unsafe(no_mangle)]
extern "C" fn exception_report(vector: u64, error_code: u64, rip: u64, cr2: u64) -> ! {
    println!("FAIL guest: exception {vector}, error code {error_code:#x}, rip {rip:#x}, cr2 {cr2:#x}");
    power_off()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        return unsafe { memcpy(to, from, len) };
    }
    unsafe {
        let last = len.wrapping_sub(1);
        asm!("std", "rep movsb", "cld", inout("rdi") to.wrapping_add(last) => _,
            inout("rsi") from.wrapping_add(last) => _, inout("rcx") len => _, options(nostack));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") len => _,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for at in 0..len {
        // Volatile, or the compiler makes this loop a call of memcmp.
        let (a, b) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    unsafe { memcmp(a, b, len) }
}

/// Named by the precompiled `core`, never called without unwinding.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
