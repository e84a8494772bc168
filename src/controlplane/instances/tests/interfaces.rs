//! Interfaces of instances that run, with a machine that takes and gives as it is told to.

use kiln_model::AttachmentState::{self, Attached, Attaching, Detaching};

use super::disks::listen;
use super::supervisor::{Daemon, Process};
use super::*;
use crate::network::{Membership, NetworkError, Placement};
use crate::state::transact;

const PATIENCE: Duration = Duration::from_secs(60);

/// What a machine does with a command about interfaces. It lets go of one when the test says so, or by force.
pub(super) fn obey(world: &mut World, command: Command, fds: usize) -> Reply {
    let error = |message: &str| Reply::Error { message: message.to_owned() };
    match command {
        Command::ListNics => Reply::Nics { nics: world.nics.clone(), spare: world.spare_nics },
        Command::AttachNic(_) if world.refuse_nics => error("not this one"),
        Command::AttachNic(spec) => {
            assert_eq!((spec.tap_queues.len(), fds), (2, 2));
            if world.nics.iter().any(|nic| nic.mac == spec.mac) {
                return error("there already");
            }
            world.nics.push(AttachedNic { mac: spec.mac, leaving: false });
            world.spare_nics -= 1;
            Reply::Ok
        }
        Command::DetachNic { mac, force } => {
            let Some(at) = world.nics.iter().position(|nic| nic.mac == mac) else {
                return error("no such interface");
            };
            if force {
                world.nics.remove(at);
            } else {
                world.nics[at].leaving = true;
            }
            Reply::Ok
        }
        _ => error("nothing about interfaces"),
    }
}

/// A daemon with an instance that runs, and its machine listening where a real one would.
struct Bench<'f> {
    f: &'f Fixture,
    d: Daemon<'f>,
    id: InstanceId,
    _process: Process,
}

impl<'f> Bench<'f> {
    fn new(f: &'f Fixture) -> Self {
        let process = Process::new(f);
        f.fake.world(|w| w.spare_nics = 2);
        let mut d = Daemon::new(f);
        let id = d.launch(|_| ()).id;
        listen(f, id);
        Bench { f, d, id, _process: process }
    }

    fn interface(&self) -> Membership {
        let networks = self.f.plane.networks();
        networks.create_interface(&Placement::default(), &mut |_, _| Ok(())).unwrap()
    }

    fn row(&self, id: InterfaceId) -> Membership {
        let all = self.f.plane.networks().memberships().unwrap();
        all.into_iter().find(|member| member.interface.id == id).unwrap()
    }

    /// How far it is on its way to an instance, if it is of one.
    fn state(&self, own: &Membership) -> Option<AttachmentState> {
        let row = self.row(own.interface.id);
        row.instance.map(|_| row.state)
    }

    /// Devices of the instance's interfaces in the order of its row.
    fn devices(&self) -> Vec<u32> {
        let row = self.f.plane.find(&self.id.to_string()).unwrap();
        row.interfaces().map(|own| self.row(own.id).device).collect()
    }

    fn attach(&self, own: &Membership, device: u32) -> Result<Membership, NetworkError> {
        self.f.plane.attach_interface(self.id, own.interface.id, device)
    }

    fn detach(&self, own: &Membership, force: bool) -> Result<Membership, NetworkError> {
        self.f.plane.detach_interface(own.interface.id, force)
    }

    fn connected(&self, own: &Membership) -> bool {
        self.f.fake.world(|w| w.attached.contains(&own.interface.id))
    }

    fn lets_go(&self, own: &Membership) {
        let mac = own.interface.mac;
        self.f.fake.world(|w| {
            w.nics.retain(|nic| nic.mac != mac);
            w.spare_nics += 1;
        });
        self.d.say(self.id, VmmEvent::NicDetached { mac });
    }

    fn until(&self, own: &Membership, wanted: Option<AttachmentState>) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.state(own) != wanted {
            assert!(std::time::Instant::now() < deadline, "{:?} instead of {wanted:?}", self.state(own));
            std::thread::yield_now();
        }
    }

    /// Waits until the guest reads of an interface, or does so no more.
    fn until_read(&self, own: &Membership, wanted: bool) {
        let leaf = format!("meta-data/network/interfaces/macs/{}/device-number", own.interface.mac);
        let reads = || self.f.fake.world(|w| w.metadata.last().is_some_and(|m| m.leaves.contains_key(&leaf)));
        let deadline = std::time::Instant::now() + PATIENCE;
        while reads() != wanted {
            assert!(std::time::Instant::now() < deadline, "metadata of {own:?}");
            std::thread::yield_now();
        }
    }

    /// Writes how far an attachment is, as a process leaves it that is killed there.
    fn leave_at(&self, own: &Membership, device: u32, state: AttachmentState) {
        transact(self.f.plane.parts.store.as_ref(), |tx| {
            let mut member = tx.get::<Membership>(&own.interface.id)?.unwrap();
            (member.instance, member.device, member.state) = (Some(self.id), device, state);
            tx.put(&member)?;
            let mut row = tx.get::<Instance>(&self.id)?.unwrap();
            row.more_interfaces.push(member.interface);
            tx.put(&row)
        })
        .unwrap();
    }
}

fn macs(f: &Fixture) -> Vec<MacAddr> {
    f.fake.world(|w| w.nics.iter().map(|nic| nic.mac).collect())
}

#[test]
fn interface_is_connected_given_to_a_running_machine_and_asked_back() {
    let f = Fixture::new();
    let bench = Bench::new(&f);
    assert_eq!(f.fake.world(|w| w.specs[0].spare_nics), 3);
    let [one, two, three] = [(); 3].map(|()| bench.interface());
    let primary = f.plane.find(&bench.id.to_string()).unwrap().interface.id;
    assert!(matches!(bench.attach(&one, 0), Err(NetworkError::Device(0))));
    assert!(matches!(bench.attach(&one, 8), Err(NetworkError::Device(8))));
    assert_eq!(bench.attach(&two, 2).unwrap().state, Attached);
    assert!(matches!(bench.attach(&one, 2), Err(NetworkError::DeviceTaken { device: 2, .. })));
    assert_eq!((bench.state(&one), bench.connected(&one)), (None, false), "a refusal changes nothing");
    assert!(matches!(bench.attach(&two, 1), Err(NetworkError::InterfaceAttached { .. })));
    bench.attach(&one, 1).unwrap();
    assert_eq!((bench.devices(), macs(&f)), (vec![0, 1, 2], vec![two.interface.mac, one.interface.mac]));
    assert!(bench.connected(&one) && bench.connected(&two));
    bench.until_read(&one, true);
    let refused = bench.attach(&three, 3).unwrap_err();
    assert_eq!((refused.code(), bench.state(&three)), ("AttachmentLimitExceeded", None));

    assert_eq!(bench.detach(&one, false).unwrap().state, Detaching);
    assert!(f.fake.world(|w| w.nics[1].leaving) && bench.connected(&one), "until the guest has let go");
    assert!(f.plane.networks().delete_interface(one.interface.id).is_err());
    bench.detach(&one, false).unwrap();
    bench.lets_go(&one);
    bench.until(&one, None);
    assert_eq!((bench.connected(&one), bench.devices()), (false, vec![0, 2]));
    bench.until_read(&one, false);
    assert_eq!(bench.detach(&two, true).unwrap().instance, None);
    assert_eq!((bench.connected(&two), macs(&f).len()), (false, 0));
    assert!(matches!(bench.detach(&two, true), Err(NetworkError::InterfaceNotAttached(_))));
    let refused = f.plane.detach_interface(primary, true).unwrap_err();
    assert_eq!(refused.code(), "OperationNotPermitted");
    bench.attach(&three, 7).unwrap();
    assert_eq!(bench.devices(), [0, 7]);
}

#[test]
fn word_of_an_earlier_end_does_not_take_what_has_come_back() {
    let f = Fixture::new();
    let mut bench = Bench::new(&f);
    let [own, other] = [(); 2].map(|()| bench.interface());
    bench.attach(&own, 1).unwrap();
    bench.detach(&own, true).unwrap();
    f.fake.world(|w| w.spare_nics = 2);
    bench.attach(&own, 1).unwrap();
    bench.detach(&own, false).unwrap();
    bench.attach(&other, 2).unwrap();
    // Late: the guest has not let go of the second one.
    bench.d.say(bench.id, VmmEvent::NicDetached { mac: own.interface.mac });
    bench.detach(&other, false).unwrap();
    bench.lets_go(&other);
    bench.until(&other, None);
    assert_eq!((bench.state(&own), bench.connected(&own)), (Some(Detaching), true));
    bench.d.stop(bench.id);
    assert_eq!((bench.state(&own), bench.connected(&own)), (None, false));
}

#[test]
fn interface_that_the_host_or_the_machine_refuses_is_free_again() {
    let f = Fixture::new();
    let mut bench = Bench::new(&f);
    let own = bench.interface();
    let faults: [fn(&mut World, bool); 2] = [|w, on| w.fail_attach = on, |w, on| w.refuse_nics = on];
    for fault in faults {
        f.fake.world(|w| fault(w, true));
        assert_eq!(bench.attach(&own, 1).unwrap_err().code(), "InternalError");
        assert_eq!((bench.state(&own), bench.connected(&own)), (None, false));
        assert_eq!(bench.devices(), [0]);
        f.fake.world(|w| fault(w, false));
    }
    // Neither running nor stopped, then stopped.
    bench.d.supervisor.stop(&[bench.id], false).unwrap();
    let refused = bench.attach(&own, 1).unwrap_err();
    assert!(matches!(refused, NetworkError::State { state: InstanceState::Stopping, .. }), "{refused}");
    bench.d.say(bench.id, VmmEvent::Exited(ExitReason::PowerOff));
    bench.d.until(bench.id, InstanceState::Stopped);
    bench.attach(&own, 1).unwrap();
    assert_eq!((bench.state(&own), bench.connected(&own)), (Some(Attached), false));
    bench.detach(&own, false).unwrap();
    assert_eq!(bench.state(&own), None);
}

#[test]
fn what_a_daemon_had_begun_the_next_one_concludes() {
    let f = Fixture::new();
    let bench = Bench::new(&f);
    let [new, given, asked, gone] = [(); 4].map(|()| bench.interface());
    let there = |own: &Membership| AttachedNic { mac: own.interface.mac, leaving: false };
    f.fake.world(|w| {
        w.nics = vec![there(&given), there(&asked)];
        w.attached.extend([&given, &asked, &gone].map(|own| own.interface.id));
    });
    bench.leave_at(&new, 1, Attaching);
    bench.leave_at(&given, 2, Attaching);
    bench.leave_at(&asked, 3, Detaching);
    bench.leave_at(&gone, 4, Detaching);
    let Bench { d, id, _process, .. } = bench;
    d.leave();
    let mut d = Daemon::new(&f);
    d.notice("an adoption", |event| matches!(event, NoticeEvent::InstanceAdopted { .. }));
    let bench = Bench { f: &f, d, id, _process };
    assert_eq!(macs(&f), [&given, &asked, &new].map(|own| own.interface.mac));
    assert!(f.fake.world(|w| w.nics[1].leaving));
    let seen = [&new, &given, &asked, &gone].map(|own| (bench.state(own), bench.connected(own)));
    assert_eq!(
        seen,
        [(Some(Attached), true), (Some(Attached), true), (Some(Detaching), true), (None, false)]
    );
    bench.lets_go(&asked);
    bench.until(&asked, None);
    assert_eq!(bench.devices(), [0, 1, 2]);
}

#[test]
fn end_of_the_machine_settles_what_was_under_way_and_a_start_has_what_is_attached() {
    let f = Fixture::new();
    let mut bench = Bench::new(&f);
    let [kept, coming, leaving] = [(); 3].map(|()| bench.interface());
    bench.attach(&kept, 5).unwrap();
    bench.leave_at(&coming, 6, Attaching);
    bench.leave_at(&leaving, 7, Detaching);
    bench.d.stop(bench.id);
    assert_eq!(
        [&kept, &coming, &leaving].map(|own| bench.state(own)),
        [Some(Attached), Some(Attached), None]
    );
    assert!(f.fake.world(|w| w.attached.is_empty()), "nothing is left on the host");
    bench.d.supervisor.start(&[bench.id]).unwrap();
    bench.d.run(bench.id);
    let spec = f.fake.world(|w| w.specs.last().cloned()).unwrap();
    let macs: Vec<_> = spec.nics.iter().skip(1).map(|nic| nic.mac).collect();
    assert_eq!(macs, [kept.interface.mac, coming.interface.mac]);
    for (own, number) in [(&kept, "5"), (&coming, "6")] {
        let leaf = format!("meta-data/network/interfaces/macs/{}/device-number", own.interface.mac);
        assert_eq!(spec.metadata.leaves[&leaf].as_bytes(), number.as_bytes());
    }
}

#[test]
fn end_of_the_instance_frees_what_stays_and_what_was_to_go() {
    let f = Fixture::new();
    let mut bench = Bench::new(&f);
    let [stays, goes, leaving] = [(); 3].map(|()| bench.interface());
    bench.attach(&stays, 1).unwrap();
    bench.attach(&goes, 2).unwrap();
    f.plane.networks().set_stays(goes.interface.id, false).unwrap();
    bench.leave_at(&leaving, 3, Detaching);
    f.plane.networks().set_stays(leaving.interface.id, false).unwrap();
    bench.d.supervisor.terminate(&[bench.id]).unwrap();
    bench.d.say(bench.id, VmmEvent::Exited(ExitReason::Killed));
    bench.d.until(bench.id, InstanceState::Terminated);
    let left: BTreeSet<_> =
        f.plane.networks().memberships().unwrap().into_iter().map(|own| own.interface.id).collect();
    assert_eq!(left, [stays.interface.id, leaving.interface.id].into());
    assert_eq!([&stays, &leaving].map(|own| bench.state(own)), [None, None]);
    assert!(f.fake.world(|w| w.attached.is_empty()));
}
