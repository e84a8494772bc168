//! A driver that does what it must not.
//!
//! Every case starts the first block (or network) device afresh, does one bad thing, and then waits
//! for the device to say so: by DEVICE_NEEDS_RESET, or by giving the chain back. One that does
//! neither is wedged. Afterwards the device must work again after a reset, and a bystander must
//! have kept working all along.

pub mod chains;
pub mod hammer;
pub mod registers;
pub mod rings;

use core::fmt::Display;

use crate::memory;
use crate::report::{Failure, Outcome, ensure, ensure_eq, println};
use crate::virtio::blk::{Blk, S_OK, SECTOR, T_IN};
use crate::virtio::{self, Part, Queue, Transport, Used};
use crate::{clock, io};

const PATIENCE_MS: u64 = 3000;

/// How the device answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    NeedsReset,
    Returned(Used),
}

/// Waits until the device has answered what happened on `queue`.
pub fn answer(transport: &Transport, queue: &mut Queue) -> Outcome<Answer> {
    let answer = clock::poll(PATIENCE_MS, || {
        let used = queue.take_used().map(Answer::Returned);
        used.or_else(|| transport.needs_reset().then_some(Answer::NeedsReset))
    });
    answer.ok_or_else(|| Failure::new(format_args!("wedged: neither given back nor NEEDS_RESET")))
}

/// Runs `bad` against a fresh device and prints what came of it.
pub fn case(name: impl Display, bad: impl FnOnce(&mut Blk) -> Outcome<Answer>) -> Outcome {
    memory::release_all();
    let mut blk = Blk::start(0)?;
    let answer = bad(&mut blk);
    let answer = answer.map_err(|failure| Failure::new(format_args!("{name}: {failure}")))?;
    match answer {
        Answer::NeedsReset => println!("  {name}: needs reset"),
        Answer::Returned(used) => println!("  {name}: given back, {} bytes", used.len),
    }
    aftermath(name)
}

/// The bystander works, and so does the device after a reset.
pub fn aftermath(name: impl Display) -> Outcome {
    let sector = memory::allocate(SECTOR);
    bystander().map_err(|failure| Failure::new(format_args!("{name}: bystander: {failure}")))?;
    let again = Blk::start(0).and_then(|mut blk| blk.request(T_IN, 0, Some(sector)));
    let status = again.map_err(|failure| Failure::new(format_args!("{name}: afterwards: {failure}")))?;
    ensure_eq!(status, S_OK, "{name}: status afterwards");
    Ok(())
}

/// Draws from the entropy device, or reads a second disk, whichever there is.
fn bystander() -> Outcome {
    if let Ok(transport) = Transport::find(virtio::RNG, 0) {
        let features = transport.negotiate(0)?;
        let mut queue = transport.enable(0, 4, features)?;
        transport.go()?;
        queue.submit(&[Part::to_fill(memory::allocate(16))]);
        ensure!(queue.wait_used(PATIENCE_MS)?.len > 0, "no entropy");
    } else if Transport::find(virtio::BLK, 1).is_ok() {
        let status = Blk::start(1)?.request(T_IN, 0, Some(memory::allocate(SECTOR)))?;
        ensure_eq!(status, S_OK, "status of the second disk");
    }
    Ok(())
}

/// Reads a register at its width, for telling whether it changed.
pub fn queue_registers(transport: &Transport) -> [u64; 5] {
    use virtio::common;
    [
        u64::from(transport.queue_size()),
        u64::from(io::read16(transport.common + common::QUEUE_ENABLE)),
        transport.address(common::QUEUE_DESC),
        transport.address(common::QUEUE_DRIVER),
        transport.address(common::QUEUE_DEVICE),
    ]
}
