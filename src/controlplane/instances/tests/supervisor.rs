//! A daemon's instances: every transition, every refusal, and what a later daemon makes of them.

use kiln_model::{Tag, UserData};

use super::*;
use crate::state::{StoreError, transact};

const GIB: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(60);

fn settings() -> Settings {
    Settings {
        stop_grace: PATIENCE * 10,
        reboot_grace: PATIENCE * 10,
        capacity: Capacity { memory: ByteSize::bytes(4 * GIB), vcpus: 8 },
        ..Settings::default()
    }
}

/// A daemon over the fixture's state directory.
pub(super) struct Daemon<'f> {
    f: &'f Fixture,
    pub(super) supervisor: Supervisor,
    live: tokio::sync::broadcast::Receiver<Notice>,
}

impl<'f> Daemon<'f> {
    pub(super) fn with(f: &'f Fixture, settings: Settings) -> Self {
        let plane = plane(&f.temp.path().join("state"), &f.fake, &f.clock);
        let live = plane.parts.notices.subscribe();
        let supervisor = Supervisor::open(plane, settings).unwrap();
        Daemon { f, supervisor, live }
    }

    pub(super) fn new(f: &'f Fixture) -> Self {
        Self::with(f, settings())
    }

    pub(super) fn try_launch(
        &self,
        count: (u32, u32),
        change: impl FnOnce(&mut LaunchRequest),
    ) -> Result<Vec<Instance>, SupervisorError> {
        let mut request = request(&self.f.image());
        change(&mut request);
        self.supervisor.launch(&request, count, &mut |_, _, _| Ok(()))
    }

    /// Waits for a notice.
    #[track_caller]
    pub(super) fn notice(&mut self, what: &str, wanted: impl Fn(&NoticeEvent) -> bool) {
        runtime().block_on(async {
            let wait = async { while !wanted(&self.live.recv().await.unwrap().event) {} };
            tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waiting for {what}"));
        });
    }

    /// Waits until an instance comes into a state.
    #[track_caller]
    pub(super) fn until(&mut self, id: InstanceId, wanted: InstanceState) -> Instance {
        self.notice(&format!("{id} {wanted}"), |event| {
            matches!(event, NoticeEvent::InstanceState { instance, state, .. } if (*instance, *state) == (id, wanted))
        });
        self.supervisor.instance(id).unwrap()
    }

    /// Says something as the machine of an instance; its last word ends the connection.
    pub(super) fn say(&self, id: InstanceId, event: VmmEvent) {
        let last = matches!(event, VmmEvent::Exited(_) | VmmEvent::Lost { .. });
        let sender = self.f.fake.world(|w| w.machines.get(&id).cloned()).unwrap();
        sender.blocking_send(event).unwrap();
        if last {
            self.f.fake.world(|w| (w.machines.remove(&id), w.events = None));
        }
    }

    /// Waits until a machine is there and lets it run.
    pub(super) fn run(&mut self, id: InstanceId) -> Instance {
        self.machine(id);
        self.say(id, running());
        self.until(id, InstanceState::Running)
    }

    fn machine(&self, id: InstanceId) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.f.fake.world(|w| !w.machines.contains_key(&id)) {
            assert!(std::time::Instant::now() < deadline, "{id} gets no machine");
            std::thread::yield_now();
        }
    }

    pub(super) fn launch(&mut self, change: impl FnOnce(&mut LaunchRequest)) -> Instance {
        let id = self.try_launch((1, 1), change).unwrap()[0].id;
        self.run(id)
    }

    /// Waits until a machine was told something.
    fn told(&self, id: InstanceId, wanted: &Command) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.f.fake.world(|w| !w.told.contains(&(id, wanted.clone()))) {
            assert!(std::time::Instant::now() < deadline, "{wanted:?} was not told");
            std::thread::yield_now();
        }
    }

    pub(super) fn stop(&mut self, id: InstanceId) -> Instance {
        self.supervisor.stop(&[id], false).unwrap();
        self.told(id, &Command::PowerButton);
        self.say(id, VmmEvent::Exited(ExitReason::PowerOff));
        self.until(id, InstanceState::Stopped)
    }

    /// The process ends, the machines stay.
    pub(super) fn leave(self) {
        drop(self.supervisor);
        self.f.fake.world(|w| (w.machines.clear(), w.events = None));
    }
}

fn code(instance: &Instance) -> Option<&str> {
    instance.reason.as_ref().map(|reason| reason.code.as_str())
}

/// A process that stands for a VMM and may be killed.
pub(super) struct Process(std::process::Child);

impl Process {
    pub(super) fn new(f: &Fixture) -> Self {
        let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let identity = ProcessIdentity::of(child.id());
        f.fake.world(|w| w.process = identity);
        Process(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn instance_goes_through_its_whole_life() {
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    let launched = d.try_launch((1, 1), |r| r.name = Some("web".into())).unwrap().remove(0);
    assert_eq!((launched.state, launched.launch_index), (InstanceState::Pending, 0));
    let id = launched.id;
    assert_eq!(d.supervisor.health(&launched), Health::Initializing);
    let running = d.run(id);
    assert_eq!(d.supervisor.health(&running), Health::Initializing);
    f.clock.0.fetch_add(60, Ordering::Relaxed);
    assert_eq!(d.supervisor.health(&running), Health::Ok);
    assert!(f.fake.world(|w| w.specs[0].ending.is_some()), "its machine can leave word");

    let change = d.supervisor.stop(&[id], false).unwrap()[0];
    let (previous, current) = (InstanceState::Running, InstanceState::Stopping);
    assert_eq!(change, Change { id, previous, current });
    assert_eq!(d.supervisor.instance(id).unwrap().state, InstanceState::Stopping);
    let stopped = d.stop(id);
    assert_eq!((code(&stopped), stopped.vmm), (Some(StateReason::USER), None));
    assert_eq!(d.supervisor.health(&stopped), Health::NotApplicable);
    assert!(f.fake.world(|w| w.attached.is_empty()));

    let change = d.supervisor.start(&[id]).unwrap()[0];
    assert_eq!((change.previous, change.current), (InstanceState::Stopped, InstanceState::Pending));
    let again = d.run(id);
    assert_eq!((again.interface, again.uuid, again.starts), (launched.interface, launched.uuid, 2));
    assert_eq!(again.reason, None);

    let change = d.supervisor.terminate(&[id]).unwrap()[0];
    assert_eq!(change.current, InstanceState::ShuttingDown);
    d.told(id, &Command::Kill);
    d.say(id, VmmEvent::Exited(ExitReason::Killed));
    let gone = d.until(id, InstanceState::Terminated);
    assert_eq!((code(&gone), gone.name()), (Some(StateReason::USER), Some("web")));
    assert_eq!(f.store().list("address/").unwrap(), []);
    assert!(f.entries("instances").is_empty() && f.fake.world(|w| w.attached.is_empty()));

    // Shown for an hour.
    f.clock.0.fetch_add(3500, Ordering::Relaxed);
    d.leave();
    assert_eq!(Daemon::new(&f).supervisor.instances().unwrap().len(), 1);
    f.clock.0.fetch_add(200, Ordering::Relaxed);
    assert_eq!(Daemon::new(&f).supervisor.instances().unwrap(), []);
    f.assert_nothing_left_but_daemon("at the end");
}

impl Fixture {
    fn assert_nothing_left_but_daemon(&self, situation: &str) {
        let _ = std::fs::remove_file(self.temp.path().join("state/run/daemon.lock"));
        self.assert_nothing_left(situation);
    }
}

#[test]
fn every_request_in_every_state_follows_the_table() {
    use InstanceState as S;
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Answer {
        Is(S),
        Refused,
    }
    use Answer::{Is, Refused};
    #[rustfmt::skip]
    const TABLE: [(S, [Answer; 6]); 6] = [
        //                  stop             start            terminate            reboot          change_type     user data
        (S::Pending,      [Refused,         Is(S::Pending),  Is(S::ShuttingDown), Refused,         Refused,        Refused]),
        (S::Running,      [Is(S::Stopping), Is(S::Running),  Is(S::ShuttingDown), Is(S::Running),  Refused,        Refused]),
        (S::ShuttingDown, [Refused,         Refused,         Is(S::ShuttingDown), Refused,         Refused,        Refused]),
        (S::Terminated,   [Refused,         Refused,         Is(S::Terminated),   Refused,         Refused,        Refused]),
        (S::Stopping,     [Is(S::Stopping), Refused,         Is(S::ShuttingDown), Refused,         Refused,        Refused]),
        (S::Stopped,      [Is(S::Stopped),  Is(S::Pending),  Is(S::Terminated),   Refused,         Is(S::Stopped), Is(S::Stopped)]),
    ];
    let f = Fixture::new();
    let capacity = Capacity { memory: ByteSize::bytes(99 * GIB), vcpus: 99 };
    let mut d = Daemon::with(&f, Settings { capacity, ..settings() });
    let first = d.launch(|_| ());
    let template = d.stop(first.id);
    for (state, answers) in TABLE {
        for (request, expected) in answers.into_iter().enumerate() {
            // A row in that state, with nothing behind it.
            let begins = (state, request) == (S::Stopped, 1);
            let id = if begins { template.id } else { InstanceId::from_bits(rand::random()) };
            let instance = Instance { id, state, supervised: true, ..template.clone() };
            transact(d.supervisor.plane().parts.store.as_ref(), |tx| tx.put(&instance)).unwrap();
            let current = |changes: Vec<Change>| changes[0].current;
            let s = &d.supervisor;
            let result = match request {
                0 => s.stop(&[id], false).map(current),
                1 => s.start(&[id]).map(current),
                2 => s.terminate(&[id]).map(current),
                3 => s.reboot(&[id]).map(|()| state),
                4 => s.modify(id, &Attribute::InstanceType("t3.small".into())).map(|i| i.state),
                _ => s.modify(id, &Attribute::UserData(None)).map(|i| i.state),
            };
            let answer = match &result {
                Ok(state) => Is(*state),
                Err(SupervisorError::IncorrectState { id: named, state: named_state, .. }) => {
                    assert_eq!((*named, *named_state), (id, state));
                    Refused
                }
                Err(e) => panic!("{state} request {request}: {e}"),
            };
            assert_eq!(answer, expected, "{state}, request {request}");
            if answer == Refused {
                assert_eq!(d.supervisor.instance(id).unwrap(), instance, "a refusal changes nothing");
            }
            if begins {
                d.machine(id);
            }
        }
    }
    let nobody = InstanceId::from_bits(1);
    let s = &d.supervisor;
    for error in [
        s.stop(&[nobody], true).unwrap_err(),
        s.start(&[nobody]).unwrap_err(),
        s.terminate(&[nobody]).unwrap_err(),
        s.reboot(&[nobody]).unwrap_err(),
        s.modify(nobody, &Attribute::Protected(true)).unwrap_err(),
        s.console_output(nobody).unwrap_err(),
    ] {
        assert!(matches!(error, SupervisorError::NotFound(id) if id == nobody), "{error}");
    }
}

#[test]
fn request_for_several_is_carried_out_for_all_or_none() {
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    let launched = d.try_launch((2, 2), |_| ()).unwrap();
    assert_eq!(launched[0].reservation, launched[1].reservation);
    assert_ne!(launched[0].interface.address, launched[1].interface.address);
    assert_ne!(launched[0].uuid, launched[1].uuid);
    assert_eq!(launched.iter().map(|i| i.launch_index).collect::<Vec<_>>(), [0, 1]);
    let ids = [launched[0].id, launched[1].id];
    d.run(ids[0]);
    assert!(d.supervisor.stop(&ids, false).is_err(), "the other is pending");
    assert_eq!(d.supervisor.instance(ids[0]).unwrap().state, InstanceState::Running);
    d.machine(ids[1]);
    d.supervisor.modify(ids[1], &Attribute::Protected(true)).unwrap();
    assert!(matches!(d.supervisor.terminate(&ids), Err(SupervisorError::Protected(id)) if id == ids[1]));
    assert_eq!(d.supervisor.instance(ids[0]).unwrap().state, InstanceState::Running);
    d.supervisor.modify(ids[1], &Attribute::Protected(false)).unwrap();
    assert_eq!(d.supervisor.terminate(&ids).unwrap().len(), 2);
}

#[test]
fn rows_and_what_a_client_adds_are_written_together_or_not_at_all() {
    let f = Fixture::new();
    let d = Daemon::new(&f);
    let request = request(&f.image());
    let refused = d.supervisor.launch(&request, (1, 1), &mut |_, instances, _| {
        assert_eq!(instances.len(), 1);
        Err(StoreError::Contended)
    });
    assert!(refused.is_err());
    assert_eq!(d.supervisor.instances().unwrap(), []);
    assert_eq!(f.store().list("address/").unwrap(), []);
}

#[test]
fn guest_that_powers_off_stops_or_terminates_as_set() {
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    let id = d.launch(|_| ()).id;
    d.say(id, VmmEvent::Exited(ExitReason::PowerOff));
    assert_eq!(code(&d.until(id, InstanceState::Stopped)), Some(StateReason::INSTANCE));
    d.supervisor.modify(id, &Attribute::Shutdown(ShutdownBehavior::Terminate)).unwrap();
    d.supervisor.start(&[id]).unwrap();
    d.run(id);
    d.say(id, VmmEvent::Exited(ExitReason::PowerOff));
    assert_eq!(code(&d.until(id, InstanceState::Terminated)), Some(StateReason::INSTANCE));
}

#[test]
fn machine_that_fails_stops_its_instance_and_one_that_never_ran_is_terminated() {
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    let id = d.launch(|_| ()).id;
    d.say(id, VmmEvent::Lost { detail: "signal 9".into() });
    let stopped = d.until(id, InstanceState::Stopped);
    assert_eq!(stopped.reason.as_ref().unwrap().message, "Server.InternalError: signal 9");
    let id = d.try_launch((1, 1), |_| ()).unwrap()[0].id;
    d.machine(id);
    d.say(id, VmmEvent::Exited(ExitReason::Failed { message: "no kernel".into() }));
    assert_eq!(code(&d.until(id, InstanceState::Terminated)), Some(StateReason::INTERNAL));
    f.fake.world(|w| w.fail_attach = true);
    let id = d.try_launch((1, 1), |_| ()).unwrap()[0].id;
    let failed = d.until(id, InstanceState::Terminated);
    assert!(failed.reason.unwrap().message.ends_with("no tap"));
    let counters = d.supervisor.counters().unwrap();
    assert_eq!((counters.launches, counters.failed_launches, counters.failed_machines), (3, 1, 2));
    // The one that was stopped goes back there when its start fails.
    let id = stopped.id;
    d.supervisor.start(&[id]).unwrap();
    assert_eq!(code(&d.until(id, InstanceState::Stopped)), Some(StateReason::INTERNAL));
    f.fake.world(|w| w.fail_attach = false);
    d.supervisor.start(&[id]).unwrap();
    d.run(id);
}

#[test]
fn guest_that_ignores_its_power_button_is_ended() {
    let f = Fixture::new();
    let mut d = Daemon::with(&f, Settings { stop_grace: Duration::ZERO, ..settings() });
    let id = d.launch(|_| ()).id;
    d.supervisor.stop(&[id], false).unwrap();
    d.told(id, &Command::Kill);
    d.say(id, VmmEvent::Exited(ExitReason::Killed));
    assert_eq!(code(&d.until(id, InstanceState::Stopped)), Some(StateReason::USER));
}

#[test]
fn reboot_is_asked_of_the_guest_and_then_of_the_machine() {
    let f = Fixture::new();
    let mut d = Daemon::with(&f, Settings { reboot_grace: Duration::ZERO, ..settings() });
    let id = d.launch(|_| ()).id;
    d.supervisor.reboot(&[id]).unwrap();
    d.told(id, &Command::Reset);
    d.say(id, VmmEvent::Rebooting);
    d.say(id, running());
    d.until(id, InstanceState::Running);
    assert_eq!(f.fake.world(|w| w.told.iter().filter(|(_, c)| *c == Command::Reboot).count()), 1);
}

#[test]
fn wishes_beyond_what_the_host_has_are_refused() {
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    // Eight vCPUs of two each, four GiB of one each.
    assert!(matches!(
        d.try_launch((5, 5), |_| ()),
        Err(SupervisorError::Capacity { room: 4, wanted: 5, .. })
    ));
    assert_eq!(d.supervisor.instances().unwrap(), []);
    let launched = d.try_launch((1, 5), |_| ()).unwrap();
    assert_eq!(launched.len(), 4, "as many as there is room for");
    for instance in &launched {
        d.run(instance.id);
    }
    assert!(matches!(d.try_launch((1, 1), |_| ()), Err(SupervisorError::Capacity { room: 0, .. })));
    let stopped = d.stop(launched[0].id).id;
    let other = d.launch(|_| ()).id;
    assert!(matches!(d.supervisor.start(&[stopped]), Err(SupervisorError::Capacity { .. })));
    assert_eq!(d.supervisor.instance(stopped).unwrap().state, InstanceState::Stopped);
    d.stop(other);
    d.supervisor.start(&[stopped]).unwrap();
    d.run(stopped);
    assert_eq!(d.supervisor.counters().unwrap().refused_for_capacity, 3);
}

#[test]
fn stopped_instance_changes_its_type_and_user_data() {
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    let id = d.launch(|r| r.tags = vec![Tag::new("a", "b").unwrap()]).id;
    d.stop(id);
    let changed = d.supervisor.modify(id, &Attribute::InstanceType("t3.small".into())).unwrap();
    assert_eq!((changed.vcpus, changed.memory), (2, ByteSize::bytes(2 * GIB)));
    let data = UserData::new(b"#!/bin/sh".to_vec()).unwrap();
    d.supervisor.modify(id, &Attribute::UserData(Some(data))).unwrap();
    d.supervisor.start(&[id]).unwrap();
    d.run(id);
    let spec = f.fake.world(|w| w.specs.last().cloned()).unwrap();
    assert_eq!(spec.memory.size_mib, 2048);
    assert_eq!(spec.metadata.leaves["user-data"].as_bytes(), b"#!/bin/sh");
    assert_eq!(spec.metadata.leaves["meta-data/instance-type"].as_bytes(), b"t3.small");
    d.stop(id);
    let error = d.supervisor.modify(id, &Attribute::InstanceType("t3.huge".into())).unwrap_err();
    assert!(error.to_string().contains("there is no instance type"), "{error}");
    d.supervisor.modify(id, &Attribute::SourceDestCheck(false)).unwrap();
    assert!(d.supervisor.modify(id, &Attribute::Groups(vec!["none".into()])).is_err());
}

#[test]
fn console_output_is_the_end_of_the_log() {
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    let id = d.launch(|_| ()).id;
    assert_eq!(d.supervisor.console_output(id).unwrap().bytes, b"");
    let log = f.plane.instance_dir(id).console_log();
    std::fs::write(&log, [vec![b'a'; 100], vec![b'b'; 64 << 10]].concat()).unwrap();
    let output = d.supervisor.console_output(id).unwrap();
    assert_eq!((output.bytes, output.instance), (vec![b'b'; 64 << 10], id));
}

#[test]
fn state_directory_has_one_daemon_and_other_commands_leave_its_instances_alone() {
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    let other = plane(&f.temp.path().join("state"), &f.fake, &f.clock);
    assert!(matches!(Supervisor::open(other, settings()), Err(SupervisorError::AnotherDaemon)));
    let _process = Process::new(&f);
    let id = d.launch(|_| ()).id;
    d.leave();
    // Any kiln command sweeps first.
    f.plane.sweep();
    assert_eq!(f.plane.find(&id.to_string()).unwrap().state, InstanceState::Running);
    assert!(f.volume(&f.plane.find(&id.to_string()).unwrap()).exists());
}

#[test]
fn machines_that_run_are_adopted_with_their_orders_and_metadata() {
    let f = Fixture::new();
    let _process = Process::new(&f);
    let mut d = Daemon::new(&f);
    let [running_id, stopping_id] = [d.launch(|_| ()).id, d.launch(|_| ()).id];
    let pending_id = d.try_launch((1, 1), |_| ()).unwrap()[0].id;
    d.machine(pending_id);
    d.supervisor.stop(&[stopping_id], false).unwrap();
    d.leave();
    f.fake.world(|w| (w.told.clear(), w.metadata.clear()));
    let mut d = Daemon::new(&f);
    for _ in 0..3 {
        d.notice("an adoption", |event| matches!(event, NoticeEvent::InstanceAdopted { .. }));
    }
    assert_eq!(f.fake.world(|w| (w.adopted, w.specs.len(), w.ended)), (3, 3, 0), "nothing is made twice");
    assert_eq!(
        d.supervisor.instance(pending_id).unwrap().state,
        InstanceState::Running,
        "it answers, so it runs"
    );
    d.told(stopping_id, &Command::PowerButton);
    d.say(stopping_id, VmmEvent::Exited(ExitReason::PowerOff));
    d.until(stopping_id, InstanceState::Stopped);
    // The keeper goes on after the generation that the machine has.
    let tag = TagChange { set: vec![Tag::new("colour", "red").unwrap()], remove: Vec::new() };
    d.supervisor.plane().change_tags(running_id, &tag).unwrap();
    let applied = d.supervisor.plane().metadata_applied(running_id, PATIENCE);
    assert!(runtime().block_on(applied).unwrap());
    assert!(f.fake.world(|w| w.metadata.iter().all(|m| m.generation > 7 << 32)));
    d.say(running_id, VmmEvent::Exited(ExitReason::PowerOff));
    assert_eq!(code(&d.until(running_id, InstanceState::Stopped)), Some(StateReason::INSTANCE));
}

#[test]
fn machine_that_ended_meanwhile_is_told_by_what_it_left() {
    let ended = |left: Option<&str>, shutdown| {
        let f = Fixture::new();
        let mut d = Daemon::new(&f);
        let id = d.launch(|r| r.shutdown = shutdown).id;
        d.leave();
        if let Some(left) = left {
            std::fs::write(f.plane.instance_dir(id).ending(), left).unwrap();
        }
        let instance = Daemon::new(&f).supervisor.instance(id).unwrap();
        (instance.state, instance.reason.unwrap().message)
    };
    use ShutdownBehavior::{Stop, Terminate};
    let by_itself = "Client.InstanceInitiatedShutdown: Instance initiated shutdown".to_owned();
    let power_off = Some(r#"{"reason":"power_off"}"#);
    assert_eq!(ended(power_off, Stop), (InstanceState::Stopped, by_itself.clone()));
    assert_eq!(ended(power_off, Terminate), (InstanceState::Terminated, by_itself));
    let failed = Some(r#"{"reason":"failed","message":"triple fault"}"#);
    assert_eq!(ended(failed, Stop), (InstanceState::Stopped, "Server.InternalError: triple fault".into()));
    for unclear in [None, Some(""), Some("{}")] {
        let (state, message) = ended(unclear, Terminate);
        assert_eq!(state, InstanceState::Stopped, "a crash is no wish of the guest");
        assert!(message.contains("without a word"), "{message}");
    }
}

#[test]
fn machine_on_its_way_out_cannot_be_adopted_and_has_left_word() {
    let f = Fixture::new();
    let _process = Process::new(&f);
    let mut d = Daemon::new(&f);
    let id = d.launch(|_| ()).id;
    d.leave();
    std::fs::write(f.plane.instance_dir(id).ending(), r#"{"reason":"power_off"}"#).unwrap();
    f.fake.world(|w| w.leaving = true);
    let instance = Daemon::new(&f).supervisor.instance(id).unwrap();
    assert_eq!((instance.state, code(&instance)), (InstanceState::Stopped, Some(StateReason::INSTANCE)));
}

#[test]
fn launch_that_was_cut_off_is_done_again() {
    let f = Fixture::new();
    let d = Daemon::new(&f);
    let id = d.try_launch((1, 1), |_| ()).unwrap()[0].id;
    d.machine(id);
    d.leave();
    // As a process leaves it that is killed before it has noted its VMM.
    f.plane.parts.update(id, |row| row.vmm = None).unwrap();
    let mut d = Daemon::new(&f);
    d.run(id);
    assert_eq!(f.fake.world(|w| (w.specs.len(), w.attached.len())), (2, 1));
    // And terminating it before that leaves nothing.
    let id = d.try_launch((1, 1), |_| ()).unwrap()[0].id;
    d.machine(id);
    d.leave();
    f.plane.parts.update(id, |row| (row.vmm, row.state) = (None, InstanceState::ShuttingDown)).unwrap();
    let d = Daemon::new(&f);
    assert_eq!(d.supervisor.instance(id).unwrap().state, InstanceState::Terminated);
}

#[test]
fn after_a_restart_of_the_host_instances_are_stopped_or_started_again() {
    let f = Fixture::new();
    let _process = Process::new(&f);
    let mut d = Daemon::new(&f);
    let [a, b] = [d.launch(|_| ()).id, d.launch(|_| ()).id];
    d.leave();
    let reboot = || {
        let store = f.store();
        let entry = store.read("host/boot").unwrap().unwrap();
        let value = Some(r#"{"id":"another"}"#.to_owned());
        let write = crate::state::Write { key: entry.key, value };
        store.commit(&crate::state::Commit { checks: vec![], writes: vec![write] }).unwrap();
    };
    reboot();
    let mut d = Daemon::with(&f, Settings { restart_after_boot: true, ..settings() });
    d.run(a);
    d.run(b);
    assert_eq!(f.fake.world(|w| w.adopted), 0, "a process of another boot is not ours");
    d.leave();
    reboot();
    let d = Daemon::new(&f);
    for id in [a, b] {
        let instance = d.supervisor.instance(id).unwrap();
        assert_eq!(instance.state, InstanceState::Stopped);
        assert_eq!(instance.reason.unwrap().message, "Server.InternalError: the host was restarted");
    }
}
