//! The control queue (virtio 1.2 §5.1.6.5): so far only the number of queue pairs in use.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::chain::{Direction, Malformed, resolve, walk};
use super::counters::Counters;
use super::ring::Ring;

/// Command class: multi-queue.
const VIRTIO_NET_CTRL_MQ: u8 = 4;
/// Command: use this many queue pairs.
const VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET: u8 = 0;
/// Done.
const VIRTIO_NET_OK: u8 = 0;
/// Refused.
const VIRTIO_NET_ERR: u8 = 1;

/// Longest command that is looked at; longer ones are for features that are not offered.
const MAX_COMMAND: usize = 16;
/// Most commands taken in one wake.
const CONTROL_BUDGET: u32 = 64;

/// What the driver asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Use the first so many queue pairs.
    SetPairs(u16),
    /// Something that is not offered, or not even a command.
    Unknown,
}

impl Command {
    /// Reads class, command and data.
    pub fn parse(bytes: &[u8]) -> Self {
        match bytes {
            [VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, low, high] => {
                Command::SetPairs(u16::from_le_bytes([*low, *high]))
            }
            _ => Command::Unknown,
        }
    }
}

/// The control queue.
pub(super) struct Control {
    ring: Ring,
    backlog: bool,
}

impl Control {
    /// Takes over the queue.
    pub fn new(ring: Ring) -> Self {
        Control { ring, backlog: false }
    }

    /// The queue.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Whether the last call of [`Control::pump`] stopped for lack of budget.
    pub fn backlog(&self) -> bool {
        self.backlog
    }

    /// Hands each command to `execute`, which says whether it was carried out.
    pub fn pump(
        &mut self,
        mem: &GuestMemoryMmap,
        counters: &Counters,
        mut execute: impl FnMut(Command) -> bool,
    ) -> Result<(), Malformed> {
        self.backlog = true;
        self.ring.disable_kicks(mem)?;
        for _ in 0..CONTROL_BUDGET {
            let Some(chain) = self.ring.pop(mem)? else {
                if self.ring.enable_kicks(mem)? {
                    self.ring.disable_kicks(mem)?;
                    continue;
                }
                self.backlog = false;
                break;
            };
            let head = chain.head_index();
            let mut copy = [0u8; MAX_COMMAND];
            let mut total = 0usize;
            let mut ack: Option<GuestAddress> = None;
            walk(mem, chain, self.ring.size(), |segment, direction| match direction {
                // Device-readable descriptors come first (virtio 1.2 §2.7.4.2).
                Direction::FromGuest if ack.is_some() => Err(Malformed::Direction),
                Direction::FromGuest => resolve(mem, segment, |slice| {
                    if let Some(room) = copy.get_mut(total..) {
                        slice.copy_to(room);
                    }
                    total = total.saturating_add(slice.len());
                }),
                Direction::ToGuest => {
                    ack.get_or_insert(segment.addr);
                    Ok(())
                }
            })?;
            let command = copy.get(..total).map_or(Command::Unknown, Command::parse);
            let done = execute(command);
            counters.control_commands.add(1);
            let written = match ack {
                Some(addr) => {
                    let status = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
                    mem.write_obj(status, addr).map_err(|_| Malformed::Address)?;
                    1
                }
                None => 0,
            };
            self.ring.push_used(mem, head, written)?;
            self.ring.publish(mem)?;
        }
        self.ring.signal(mem, counters)
    }

    /// Gives up the queue.
    pub fn into_ring(self) -> Ring {
        self.ring
    }
}
