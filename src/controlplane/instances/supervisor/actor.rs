//! One instance on its way: a thread that runs its plan, watches its machine and obeys orders.
//!
//! ```text
//!   Launch ─ plan ─┬─ failed: undone ─▶ terminated, or stopped as before
//!                  ▼
//!   Adopt ──────▶ watch ── Stop: power button … grace over: kill ──┐
//!                  │  └─── Kill, Reboot … grace over: reset        ├─▶ ended ─ undo ─▶ stopped, terminated
//!                  └─ Leave: the machine goes on                   ┘
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kiln_model::{InstanceEvent, InstanceId, InstanceState};
use kiln_vmspec::{Command, Reply};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::{NoticeEvent, Shared, count};
use crate::instances::keeper::Held;
use crate::instances::lifecycle::chain;
use crate::instances::{
    Ending, Instance, LaunchError, RunningInstance, ShutdownBehavior, StateReason, disks, interfaces, launch,
};
use crate::state::dir::Lock;
use crate::vmm_process::{StartedVmm, VmmEvent};

/// A VMM that was told to end may take this long.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// Pause before what could not be undone is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What an actor is to do with its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Press the power button; kill it when it does not end in time.
    Stop,
    /// End it at once.
    Kill,
    /// Let it start again.
    Reboot,
    /// Let it run and forget it: this process is about to end.
    Leave,
}

/// What an actor begins with. The lock says that this process runs the instance.
pub(super) enum Job {
    /// The row is `pending`: make its machine.
    Launch(Lock),
    /// It has a machine.
    Adopt(StartedVmm, Lock),
}

/// A handle on a running actor.
pub(super) struct Actor {
    number: u64,
    orders: UnboundedSender<Order>,
    thread: JoinHandle<()>,
}

/// Why watching ended.
enum Watched {
    Ended,
    Left,
}

impl Actor {
    /// Starts an actor. Should the host refuse a thread, the row stays and the next daemon goes on with it.
    pub(super) fn spawn(shared: &Arc<Shared>, id: InstanceId, job: Job) {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (orders, received) = unbounded_channel();
        let body = {
            let shared = Arc::clone(shared);
            move || {
                Life { shared: &shared, id, orders: received }.live(job);
                let mut actors = shared.actors();
                // By now another may look after the same instance.
                if actors.get(&id).is_some_and(|actor| actor.number == number) {
                    actors.remove(&id);
                }
            }
        };
        // Held over the start, so that an actor that ends at once finds itself in the list.
        let mut actors = shared.actors();
        match std::thread::Builder::new().name(id.to_string()).spawn(body) {
            Ok(thread) => {
                actors.insert(id, Actor { number, orders, thread });
            }
            Err(e) => tracing::error!(instance = %id, "no thread for it: {e}"),
        }
    }

    pub(super) fn order(&self, order: Order) {
        // An actor that has ended has nothing left to obey for.
        let _ = self.orders.send(order);
    }

    pub(super) fn join(self) {
        let _ = self.thread.join();
    }
}

struct Life<'a> {
    shared: &'a Arc<Shared>,
    id: InstanceId,
    orders: UnboundedReceiver<Order>,
}

impl Life<'_> {
    fn live(&mut self, job: Job) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => return tracing::error!(instance = %self.id, "it cannot be looked after: {e}"),
        };
        let made = match job {
            Job::Launch(lock) => self.launch(lock),
            Job::Adopt(vmm, lock) => runtime.block_on(self.adopt(vmm, lock)),
        };
        let mut run = match made {
            Ok(run) => run,
            Err(e) => {
                tracing::warn!(instance = %self.id, "it has no machine: {}", chain(&e));
                count(&self.shared.tally.failed_launches);
                return self.settle();
            }
        };
        match runtime.block_on(self.watch(&mut run)) {
            Watched::Left => run.leave(),
            Watched::Ended => self.ended(run),
        }
    }

    fn launch(&self, lock: Lock) -> Result<RunningInstance, LaunchError> {
        let parts = self.shared.parts();
        launch::run(parts, &parts.find(self.id)?, lock)
    }

    /// Takes over a machine, with what its guest has been told so far.
    async fn adopt(&self, vmm: StartedVmm, lock: Lock) -> Result<RunningInstance, LaunchError> {
        let parts = Arc::clone(self.shared.parts());
        // It answers when the machine is assembled, and so as soon as its vCPUs run.
        let generation = match vmm.handle.request(Command::Stats).await {
            Ok(Reply::Stats(stats)) => stats.counters.get("metadata.generation").copied(),
            _ => None,
        };
        let id = self.id;
        let row = parts.update(id, |row| row.owner = crate::host::ProcessIdentity::current())?;
        let Some(generation) = generation else {
            tracing::warn!(instance = %id, "its machine does not answer and is ended");
            vmm.handle.end(Duration::ZERO);
            return Ok(RunningInstance::orphan(&parts, row, vmm, lock));
        };
        let held = Held::adopted(&parts, &row, generation, vmm.handle.as_ref()).await?;
        if let Err(e) = disks::resume(&parts, &row, vmm.handle.as_ref()).await {
            tracing::warn!(instance = %id, "what was begun with its volumes is not done: {}", chain(&e));
        }
        if let Err(e) = interfaces::resume(&parts, &row, vmm.handle.as_ref()).await {
            tracing::warn!(instance = %id, "what was begun with its interfaces is not done: {}", chain(&e));
        }
        let mut run = RunningInstance::new(&parts, row, vmm, held, lock);
        if run.instance().state == InstanceState::Pending {
            run.note_running().await;
            self.shared.tell_state(run.instance());
        }
        count(&self.shared.tally.adopted);
        parts.notices.tell(self.shared.now(), NoticeEvent::InstanceAdopted { instance: id });
        Ok(run)
    }

    async fn watch(&mut self, run: &mut RunningInstance) -> Watched {
        let commands = run.commands();
        if let Some(keeper) = run.keeper() {
            tokio::spawn(keeper.run());
        }
        let settings = &self.shared.settings;
        let never = || Instant::now() + Duration::from_secs(1 << 30);
        let (mut kill_at, mut force_at, mut reset_at) = (never(), never(), never());
        loop {
            let order = tokio::select! {
                event = run.next_event() => {
                    match event {
                        None => return Watched::Ended,
                        Some(VmmEvent::Running { booted }) => {
                            tracing::info!(instance = %self.id, "{}", crate::printable(&booted));
                            self.shared.tell_state(run.instance());
                        }
                        Some(VmmEvent::Rebooting) => reset_at = never(),
                        Some(_) => {}
                    }
                    continue;
                }
                order = self.orders.recv() => order.unwrap_or(Order::Leave),
                () = tokio::time::sleep_until(kill_at) => Order::Kill,
                () = tokio::time::sleep_until(reset_at) => {
                    reset_at = never();
                    tracing::warn!(instance = %self.id, "the guest did not power off for its reboot");
                    let _ = commands.send(Command::Reset);
                    continue;
                }
                () = tokio::time::sleep_until(force_at) => {
                    force_at = never();
                    tracing::warn!(instance = %self.id, "its VMM does not end and is killed");
                    if tokio::task::spawn_blocking(run.kill()).await.is_err() {
                        return Watched::Ended;
                    }
                    continue;
                }
            };
            match order {
                Order::Leave => return Watched::Left,
                Order::Stop => {
                    // A VMM that cannot be told has ended, or ends by force.
                    let _ = commands.send(Command::PowerButton);
                    kill_at = kill_at.min(Instant::now() + settings.stop_grace);
                }
                Order::Kill => {
                    kill_at = never();
                    force_at = force_at.min(Instant::now() + KILL_GRACE);
                    let _ = commands.send(Command::Kill);
                }
                Order::Reboot => {
                    let _ = commands.send(Command::Reboot);
                    reset_at = Instant::now() + settings.reboot_grace;
                }
            }
        }
    }

    /// The machine has ended: what it means, and then away with its traces.
    fn ended(&mut self, run: RunningInstance) {
        let ending = run.ending().cloned().unwrap_or(Ending::Killed);
        note_ending(self.shared, self.id, &ending);
        if let Err(e) = run.finish() {
            tracing::warn!(instance = %self.id, "cleaning up failed: {e}");
        }
        self.settle();
    }

    /// Sees to it that no effect of a machine that is gone stays, and tells the state.
    fn settle(&mut self) {
        loop {
            let Ok(row) = self.shared.parts().find(self.id) else { return };
            if !row.is_active() {
                return self.shared.tell_state(&row);
            }
            match self.shared.clear(self.id) {
                Ok(InstanceState::ShuttingDown) => {}
                Ok(_) => return,
                Err(e) => tracing::warn!(instance = %self.id, "clearing away failed, again in a while: {e}"),
            }
            // Nobody orders anything of what has ended, but that this process leaves.
            match self.orders.try_recv() {
                Ok(Order::Leave) => return,
                _ => std::thread::sleep(RETRY),
            }
        }
    }
}

/// Writes into the row what the end of its machine means: why, and whether it is for good.
pub(super) fn note_ending(shared: &Shared, id: InstanceId, ending: &Ending) {
    if let Ending::Failed(why) = ending {
        tracing::warn!(instance = %id, "its machine failed: {why}");
    }
    let now = shared.now();
    let note = |row: &mut Instance| {
        if !matches!(row.state, InstanceState::Pending | InstanceState::Running) {
            // It was asked for.
            return;
        }
        row.reason = Some(match ending {
            Ending::PoweredOff => StateReason::instance(now),
            Ending::Killed => StateReason::internal("the machine was ended", now),
            Ending::Failed(why) => StateReason::internal(why, now),
        });
        if *ending == Ending::PoweredOff && row.shutdown == ShutdownBehavior::Terminate {
            row.state = row.state.next(InstanceEvent::TerminateRequested, true).unwrap_or(row.state);
        }
    };
    match shared.parts().update(id, note) {
        Ok(row) if matches!(ending, Ending::Failed(_)) && row.state != InstanceState::ShuttingDown => {
            count(&shared.tally.failed_machines);
        }
        Ok(_) => {}
        Err(e) => tracing::warn!(instance = %id, "the end of its machine could not be noted: {e}"),
    }
}
