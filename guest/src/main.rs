//! A bare-metal guest that drives the machine's devices itself, also in ways no driver would.
//!
//! ```text
//!  boot.s: PVH entry ─▶ ring 3 ─▶ guest_main ─▶ tests named by `test=a,b,c` on the command line
//!                                     │              each prints `PASS name` or `FAIL name: why`
//!                                     └─▶ `DONE n passed, m failed`, then power off
//! ```
//!
//! Everything runs in ring 3 with paging that maps addresses to themselves, all ports open,
//! interrupts off: devices are polled. The same image runs wherever a PVH kernel does.
//!
//! `unsafe` is everyday work here: there is nothing below that could be safe.

#![no_std]
#![no_main]

mod clock;
mod io;
mod memory;
mod pci;
mod report;
mod runtime;
mod start;
mod tests;
mod virtio;

use report::println;

core::arch::global_asm!(include_str!("boot.s"));

/// Entered from `boot.s`, in ring 3.
#[unsafe(no_mangle)]
extern "C" fn guest_main() -> ! {
    let cmdline = start::cmdline();
    println!("kiln guest: {cmdline}");
    let names = cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix("test="));
    let (mut passed, mut failed) = (0, 0);
    for name in names.unwrap_or("hello").split(',') {
        match tests::run(name) {
            Ok(()) => {
                passed += 1;
                println!("PASS {name}");
            }
            Err(failure) => {
                failed += 1;
                println!("FAIL {name}: {failure}");
            }
        }
    }
    println!("DONE {passed} passed, {failed} failed");
    runtime::power_off()
}
