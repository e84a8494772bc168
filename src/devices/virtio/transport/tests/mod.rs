//! The transport as a driver meets it.

mod bars;
mod concurrent;
mod hostile;
mod lifecycle;

use vm_memory::{Bytes, GuestAddress};

use crate::virtio::testing::{Buffer, GuestDriver, GuestQueue, TestMachine};

/// Free guest memory for queues.
const QUEUES: u64 = 0x10_0000;
const SOURCE: u64 = 0x1000;
const TARGET: u64 = 0x2000;

/// Sends `text` through a loopback queue and checks that it comes back.
fn echo(machine: &TestMachine, driver: &GuestDriver, queue: &mut GuestQueue, text: &str) {
    let len = text.len() as u32;
    machine.mem.write_slice(text.as_bytes(), GuestAddress(SOURCE)).unwrap();
    let head = queue.add(&[Buffer::readable(SOURCE, len), Buffer::writable(TARGET, len)]);
    driver.kick(machine, queue.index);
    machine.run();
    assert_eq!(queue.poll_used(), Some((head.into(), len)));
    let mut back = vec![0; text.len()];
    machine.mem.read_slice(&mut back, GuestAddress(TARGET)).unwrap();
    assert_eq!(back, text.as_bytes());
}

fn counter(machine: &TestMachine, name: &str) -> u64 {
    let mut counters = Vec::new();
    machine.devices[0].lock().unwrap().counters(&mut counters);
    counters.into_iter().find(|(counter, _)| *counter == name).unwrap().1
}
