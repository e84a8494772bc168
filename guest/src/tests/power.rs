//! Tests in which the machine's state changes.

use core::arch::asm;

use super::hotplug;
use crate::memory;
use crate::report::{Outcome, ensure_eq, fail, println};
use crate::virtio::blk::{Blk, S_OK, SECTOR, T_IN, T_OUT};
use crate::{clock, runtime};

const EVENT_POWER_BUTTON: u32 = 1;
/// Milliseconds that the power button has to be pressed in. Long: the guest is also an instance that somebody
/// works with.
const PATIENCE: u64 = 15 * 60_000;

/// Waits for the power button, as the event device's method would. Somebody outside presses it when
/// `waiting` appears. What comes and is to go meanwhile is not held up.
pub fn button() -> Outcome {
    println!("  waiting for the power button");
    let events = clock::poll(PATIENCE, || {
        let events = runtime::power_events();
        if events & hotplug::EVENT_HOTPLUG != 0 {
            hotplug::let_go();
        }
        Some(events & !hotplug::EVENT_HOTPLUG).filter(|events| *events != 0)
    });
    ensure_eq!(events, Some(EVENT_POWER_BUTTON), "pending events");
    ensure_eq!(runtime::power_events(), 0, "events after they were read");
    Ok(())
}

/// Runs `restart` the first time. The last sector of the first disk remembers, so that the second
/// time, after the restart, this returns.
fn once(restart: impl FnOnce()) -> Outcome {
    const MARK: u8 = 0xa7;
    let mut blk = Blk::start(0)?;
    let sector = memory::allocate(SECTOR);
    let last = blk.capacity - 1;
    ensure_eq!(blk.request(T_IN, last, Some(sector))?, S_OK, "reading the last sector");
    if sector.bytes() == [MARK; SECTOR] {
        sector.fill(0);
        ensure_eq!(blk.request(T_OUT, last, Some(sector))?, S_OK, "clearing the mark");
        return Ok(());
    }
    sector.fill(MARK);
    ensure_eq!(blk.request(T_OUT, last, Some(sector))?, S_OK, "writing the mark");
    println!("  restarting");
    restart();
    fail!("still running")
}

/// Restarts the machine by its reset register, and finds all of it again.
pub fn reset() -> Outcome {
    once(|| runtime::reset())
}

/// Leaves the processor no way to go on: the machine restarts.
pub fn triple_fault() -> Outcome {
    // Ring 3 cannot load an IDT, but it can overwrite one.
    unsafe extern "C" {
        static mut idt: [u8; 512];
    }
    once(|| unsafe {
        (&raw mut idt).write_bytes(0, 1);
        asm!("ud2");
    })
}

/// Never ends: for pausing and killing from outside.
pub fn spin() -> Outcome {
    println!("  spinning");
    loop {
        core::hint::spin_loop();
    }
}

/// Resets the machine as soon as it is up, for ever.
pub fn reset_without_end() -> Outcome {
    println!("  resetting without end");
    runtime::reset()
}

/// Prints without pause and never ends.
pub fn chatter() -> Outcome {
    loop {
        println!("  this guest has a lot to say and nobody to hear it");
    }
}
