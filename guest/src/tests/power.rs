//! Tests in which the machine's state changes.

use core::arch::asm;

use crate::memory;
use crate::report::{Outcome, ensure_eq, println};
use crate::virtio::blk::{Blk, S_OK, SECTOR, T_IN, T_OUT};
use crate::{clock, runtime};

const EVENT_POWER_BUTTON: u32 = 1;

/// Waits for the power button, as the event device's method would. Somebody outside presses it when
/// `waiting` appears.
pub fn button() -> Outcome {
    println!("  waiting for the power button");
    let events = clock::poll(60_000, || Some(runtime::power_events()).filter(|events| *events != 0));
    ensure_eq!(events, Some(EVENT_POWER_BUTTON), "pending events");
    ensure_eq!(runtime::power_events(), 0, "events after they were read");
    Ok(())
}

/// Restarts the machine once. The last sector of the first disk remembers that it did.
pub fn reset() -> Outcome {
    const MARK: &[u8; SECTOR] = &[0xa7; SECTOR];
    let mut blk = Blk::start(0)?;
    let sector = memory::allocate(SECTOR);
    let last = blk.capacity - 1;
    ensure_eq!(blk.request(T_IN, last, Some(sector))?, S_OK, "reading the last sector");
    if sector.bytes() == MARK {
        sector.fill(0);
        ensure_eq!(blk.request(T_OUT, last, Some(sector))?, S_OK, "clearing the mark");
        return Ok(());
    }
    sector.fill(0xa7);
    ensure_eq!(blk.request(T_OUT, last, Some(sector))?, S_OK, "writing the mark");
    println!("  restarting");
    runtime::reset()
}

/// Leaves the processor no way to go on. The machine must treat it as a reset or report it.
pub fn triple_fault() -> Outcome {
    println!("  faulting");
    // Ring 3 cannot load an IDT, but it can overwrite one.
    unsafe extern "C" {
        static mut idt: [u8; 512];
    }
    unsafe {
        (&raw mut idt).write_bytes(0, 1);
        asm!("ud2");
    }
    Ok(())
}

/// Never ends: for pausing and killing from outside.
pub fn spin() -> Outcome {
    println!("  spinning");
    loop {
        core::hint::spin_loop();
    }
}
