//! Time by the processor's counter.

use core::arch::x86_64::{__cpuid, _rdtsc};

use crate::start;

/// Frequency when the hypervisor does not tell.
const ASSUMED_KHZ: u64 = 2_000_000;

/// The counter.
pub fn ticks() -> u64 {
    unsafe { _rdtsc() }
}

/// Ticks in a millisecond: `tsc-khz=` on the command line, or the hypervisor's frequency leaf (which
/// a KVM without hardware behind it cannot show in ring 3).
pub fn ticks_per_ms() -> u64 {
    if let Some(khz) = start::option("tsc-khz").and_then(|text| text.parse().ok()) {
        return khz;
    }
    const HYPERVISOR: u32 = 0x4000_0000;
    const FREQUENCIES: u32 = 0x4000_0010;
    let max = __cpuid(HYPERVISOR).eax;
    match __cpuid(FREQUENCIES).eax {
        khz if (FREQUENCIES..FREQUENCIES + 0x100).contains(&max) && khz != 0 => u64::from(khz),
        _ => ASSUMED_KHZ,
    }
}

/// A point in time.
#[derive(Clone, Copy)]
pub struct Deadline(u64);

impl Deadline {
    pub fn after_ms(ms: u64) -> Self {
        Deadline(ticks() + ms * ticks_per_ms())
    }

    pub fn passed(self) -> bool {
        ticks() > self.0
    }
}

/// Polls until `ready` gives something, at most `ms` milliseconds.
pub fn poll<T>(ms: u64, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Deadline::after_ms(ms);
    loop {
        if let Some(value) = ready() {
            return Some(value);
        }
        if deadline.passed() {
            return ready();
        }
        core::hint::spin_loop();
    }
}
