//! Several vCPUs at once.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::virtio::testing::Loopback;

/// Rounds of the vCPU that starts and resets; the others go on until it has done.
const ROUNDS: u32 = 60;

/// Ends the others also when an assertion fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn resets_race_with_notifications_reads_and_moves_of_a_neighbour() {
    let devices: Vec<Box<dyn crate::virtio::VirtioDevice>> =
        vec![Box::new(Loopback::new("a", &[8, 8])), Box::new(Loopback::new("b", &[8]))];
    let machine = TestMachine::new(devices);
    let (a, b) = (GuestDriver::probe(&machine, 1), GuestDriver::probe(&machine, 2));
    b.start(&machine, 0, 2 * QUEUES);
    let done = AtomicBool::new(false);
    let until_done = |body: &dyn Fn()| {
        while !done.load(Ordering::Relaxed) {
            body();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            until_done(&|| {
                // With kicks coming in all the time the workers never rest.
                let mut rounds = 0..10;
                machine.workers.run_until(|| rounds.next().is_none());
            });
        });
        scope.spawn(|| {
            until_done(&|| {
                a.kick(&machine, 0);
                a.kick(&machine, 1);
                for offset in (0..a.bar_len).step_by(0x100) {
                    machine.mmio_read(a.bar + offset, &mut [0; 4]);
                }
            });
        });
        scope.spawn(|| {
            until_done(&|| {
                for bar in [0xc800_0000u32, b.bar as u32] {
                    // By the enhanced mechanism: address and data ports are for one vCPU at a time.
                    machine.mmio_write(TestMachine::ecam(2, 0x10), &bar.to_le_bytes());
                    machine.mmio_read(0xc800_0014, &mut [0]);
                }
            });
        });
        let _done = Done(&done);
        for _ in 0..ROUNDS {
            let (_, mut queues) = a.start(&machine, 0, QUEUES);
            queues[0].add(&[Buffer::readable(SOURCE, 8), Buffer::writable(TARGET, 8)]);
            a.kick(&machine, 0);
            while queues[0].used_idx() == 0 {
                std::thread::yield_now();
            }
            assert_eq!(queues[0].poll_used(), Some((0, 8)));
            a.set_status(&machine, 0);
        }
    });
    assert_eq!(machine.workers.running(), 1, "the neighbour's");
    let (_, mut queues) = b.start(&machine, 0, 2 * QUEUES);
    echo(&machine, &b, &mut queues[0], "in peace");
}
