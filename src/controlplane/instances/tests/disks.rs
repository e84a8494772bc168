//! Volumes of instances that run, with a machine that takes and gives as it is told to.

use std::os::unix::net::UnixListener;

use kiln_model::VolumeId;
use kiln_vmspec::frame::Connection;
use kiln_vmspec::{Message, Request};

use super::supervisor::{Daemon, Process};
use super::*;
use crate::state::transact;
use crate::volumes::{AttachmentState, NewVolume, Volume, VolumeChange, VolumeError};

const PATIENCE: Duration = Duration::from_secs(60);

fn mib(count: u64) -> ByteSize {
    ByteSize::bytes(count << 20)
}

fn larger(size: ByteSize) -> VolumeChange {
    VolumeChange { size: Some(size), ..VolumeChange::default() }
}

/// What a machine does with a command about disks. It lets go of a disk when the test says so, or by force.
pub(super) fn obey(world: &mut World, command: Command, fds: usize) -> Reply {
    let error = |message: &str| Reply::Error { message: message.to_owned() };
    match command {
        Command::ListDisks => Reply::Disks { disks: world.disks.clone(), spare: world.spare },
        Command::AttachDisk(_) if world.refuse_disks => error("not this one"),
        Command::AttachDisk(spec) => {
            assert_eq!((spec.layers.len(), spec.queues), (fds, 1));
            if let Some(happens) = world.meanwhile.take() {
                happens();
            }
            if world.disks.iter().any(|disk| disk.serial == spec.serial) {
                return error("there already");
            }
            world.disks.push(AttachedDisk { serial: spec.serial, size: 0, leaving: false });
            world.spare -= 1;
            Reply::Ok
        }
        Command::DetachDisk { serial, force } => {
            let Some(at) = world.disks.iter().position(|disk| disk.serial == serial) else {
                return error("no such disk");
            };
            if force {
                world.disks.remove(at);
                world.spare += 1;
            } else {
                world.disks[at].leaving = true;
            }
            Reply::Ok
        }
        Command::ResizeDisk { serial, size } => {
            match world.disks.iter_mut().find(|disk| disk.serial == serial) {
                Some(disk) => disk.size = size,
                None => return error("no such disk"),
            }
            Reply::Ok
        }
        _ => error("nothing about disks"),
    }
}

/// A daemon with an instance that runs, and its machine listening where a real one would.
struct Bench<'f> {
    f: &'f Fixture,
    d: Daemon<'f>,
    id: InstanceId,
    _process: Process,
}

/// Listens as the machine of `id`.
pub(super) fn listen(f: &Fixture, id: InstanceId) {
    let path = f.plane.instance_dir(id).control_socket();
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let fake = f.fake.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = Connection::new(stream.unwrap());
            let fake = fake.clone();
            std::thread::spawn(move || {
                while let Ok((request, fds)) = connection.receive::<Request>() {
                    let reply = fake.world(|w| super::obey(w, request.command, fds.len()));
                    let _ = connection.send(&Message::Reply { id: request.id, reply }, &[]);
                }
            });
        }
    });
}

impl<'f> Bench<'f> {
    fn new(f: &'f Fixture) -> Self {
        let process = Process::new(f);
        f.fake.world(|w| w.spare = 2);
        let mut d = Daemon::new(f);
        let id = d.launch(|_| ()).id;
        listen(f, id);
        Bench { f, d, id, _process: process }
    }

    fn volume(&self) -> Volume {
        let wish = NewVolume { size: Some(mib(4)), ..NewVolume::default() };
        self.f.plane.volumes().create(&wish).unwrap()
    }

    fn state(&self, id: VolumeId) -> Option<AttachmentState> {
        self.f.plane.volumes().get(id).unwrap().attachment.map(|own| own.state)
    }

    fn attach(&self, volume: &Volume, device: &str) -> Result<Volume, VolumeError> {
        self.f.plane.attach_volume(volume.id, self.id, device)
    }

    /// The guest lets go.
    fn lets_go(&self, volume: &Volume) {
        let serial = volume.serial();
        self.f.fake.world(|w| {
            w.disks.retain(|disk| disk.serial != serial);
            w.spare += 1;
        });
        self.d.say(self.id, VmmEvent::DiskDetached { serial });
    }

    fn until(&self, id: VolumeId, wanted: Option<AttachmentState>) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.state(id) != wanted {
            assert!(std::time::Instant::now() < deadline, "{:?} instead of {wanted:?}", self.state(id));
            std::thread::yield_now();
        }
    }

    /// Writes how far an attachment is, as a process leaves it that is killed there.
    fn leave_at(&self, volume: &Volume, state: AttachmentState) {
        transact(self.f.plane.parts.store.as_ref(), |tx| {
            let mut row = tx.get::<Volume>(&volume.id)?.unwrap();
            let own = crate::volumes::Attachment {
                instance: self.id,
                device: format!("/dev/sd{}", char::from(b'p' + (volume.id.low_bits() % 8) as u8)),
                delete_on_termination: false,
                since: 1,
                state,
            };
            row.attachment = Some(own);
            tx.put(&row)
        })
        .unwrap();
    }
}

fn serials(f: &Fixture) -> Vec<String> {
    f.fake.world(|w| w.disks.iter().map(|disk| disk.serial.clone()).collect())
}

#[test]
fn volume_is_given_to_a_running_machine_and_asked_back() {
    let f = Fixture::new();
    let bench = Bench::new(&f);
    assert_eq!(f.fake.world(|w| w.specs[0].spare_disks), 8);
    let (one, two, three) = (bench.volume(), bench.volume(), bench.volume());
    let attached = bench.attach(&one, "/dev/sdf").unwrap().attachment.unwrap();
    assert_eq!((attached.instance, attached.state), (bench.id, AttachmentState::Attached));
    assert_eq!(serials(&f), [one.serial()]);
    assert!(matches!(bench.attach(&one, "/dev/sdg"), Err(VolumeError::InUse { .. })));
    assert!(matches!(bench.attach(&two, "/dev/sdf"), Err(VolumeError::DeviceTaken { .. })));
    assert!(matches!(bench.attach(&two, "/dev/../x"), Err(VolumeError::Device(_))));
    bench.attach(&two, "/dev/sdg").unwrap();
    let refused = bench.attach(&three, "/dev/sdh").unwrap_err();
    assert_eq!(refused.code(), "AttachmentLimitExceeded", "{refused}");
    assert_eq!((bench.state(three.id), serials(&f).len()), (None, 2));

    let plane = &f.plane;
    let leaving = plane.detach_volume(one.id, false).unwrap().attachment.unwrap();
    assert_eq!(leaving.state, AttachmentState::Detaching);
    assert!(f.fake.world(|w| w.disks[0].leaving));
    assert!(matches!(plane.volumes().delete(one.id), Err(VolumeError::InUse { .. })));
    assert!(matches!(plane.modify_volume(one.id, larger(mib(8))), Err(VolumeError::Between { .. })));
    plane.detach_volume(one.id, false).unwrap();
    bench.lets_go(&one);
    bench.until(one.id, None);
    assert_eq!(plane.detach_volume(two.id, true).unwrap().attachment, None);
    assert_eq!((bench.state(two.id), serials(&f).len()), (None, 0));
    assert!(matches!(plane.detach_volume(two.id, true), Err(VolumeError::NotAttached(_))));
    let root = plane.volumes().of(bench.id).unwrap()[0].id;
    assert!(matches!(plane.detach_volume(root, true), Err(VolumeError::Root(_))));
    bench.attach(&three, "/dev/sdf").unwrap();
}

#[test]
fn volume_that_the_machine_refuses_is_free_again() {
    let f = Fixture::new();
    let bench = Bench::new(&f);
    let volume = bench.volume();
    f.fake.world(|w| w.refuse_disks = true);
    let refused = bench.attach(&volume, "/dev/sdf").unwrap_err();
    assert_eq!((refused.code(), bench.state(volume.id)), ("InternalError", None));
    f.fake.world(|w| w.refuse_disks = false);
    // A file that is not there is no reason to bother the machine.
    std::fs::remove_file(f.plane.volumes().file(volume.id)).unwrap();
    assert!(bench.attach(&volume, "/dev/sdf").is_err());
    assert_eq!((bench.state(volume.id), serials(&f).len()), (None, 0));
    // Neither running nor stopped.
    let other = bench.volume();
    bench.d.supervisor.stop(&[bench.id], false).unwrap();
    let refused = bench.attach(&other, "/dev/sdf").unwrap_err();
    assert!(matches!(refused, VolumeError::State { state: InstanceState::Stopping, .. }), "{refused}");
    assert_eq!(refused.code(), "IncorrectState");
}

#[test]
fn volume_grows_under_a_running_machine() {
    let f = Fixture::new();
    let bench = Bench::new(&f);
    let volume = bench.volume();
    bench.attach(&volume, "/dev/sdf").unwrap();
    let grow = |size| f.plane.modify_volume(volume.id, larger(size));
    assert_eq!(grow(mib(8)).unwrap().size, mib(8));
    assert_eq!(f.fake.world(|w| w.disks[0].size), 8 << 20);
    assert!(matches!(grow(mib(4)), Err(VolumeError::Shrinking { .. })));
    assert!(matches!(grow(ByteSize::bytes(1)), Err(VolumeError::Size(_))));
    f.fake.world(|w| w.disks.clear());
    assert_eq!(grow(mib(16)).unwrap_err().code(), "InternalError");
    assert_eq!(f.plane.volumes().get(volume.id).unwrap().size, mib(8), "nothing has changed");
    let free = bench.volume();
    assert_eq!(f.plane.modify_volume(free.id, larger(mib(5))).unwrap().size, mib(5));
}

#[test]
fn what_a_daemon_had_begun_the_next_one_finishes() {
    let f = Fixture::new();
    let bench = Bench::new(&f);
    let [new, given, asked, gone, unable] = [(); 5].map(|()| bench.volume());
    let there = |volume: &Volume| AttachedDisk { serial: volume.serial(), size: 0, leaving: false };
    f.fake.world(|w| w.disks = vec![there(&given), there(&asked)]);
    for volume in [&new, &given, &unable] {
        bench.leave_at(volume, AttachmentState::Attaching);
    }
    for volume in [&asked, &gone] {
        bench.leave_at(volume, AttachmentState::Detaching);
    }
    std::fs::remove_file(f.plane.volumes().file(unable.id)).unwrap();
    let Bench { d, id, _process, .. } = bench;
    d.leave();
    let mut d = Daemon::new(&f);
    d.notice("an adoption", |event| matches!(event, NoticeEvent::InstanceAdopted { .. }));
    let bench = Bench { f: &f, d, id, _process };
    assert_eq!(serials(&f), [&given, &asked, &new].map(Volume::serial));
    assert_eq!(
        f.fake.world(|w| w.disks.iter().map(|disk| disk.leaving).collect::<Vec<_>>()),
        [false, true, false]
    );
    let state = |volume: &Volume| bench.state(volume.id);
    let (there, leaving) = (Some(AttachmentState::Attached), Some(AttachmentState::Detaching));
    assert_eq!([&new, &given, &asked, &gone, &unable].map(state), [there, there, leaving, None, None]);
    bench.lets_go(&asked);
    bench.until(asked.id, None);
}

#[test]
fn end_of_the_machine_settles_what_was_under_way_and_a_start_has_what_is_attached() {
    let f = Fixture::new();
    let mut bench = Bench::new(&f);
    let [kept, coming, leaving] = [(); 3].map(|()| bench.volume());
    bench.attach(&kept, "/dev/sdf").unwrap();
    bench.leave_at(&coming, AttachmentState::Attaching);
    bench.leave_at(&leaving, AttachmentState::Detaching);
    bench.d.stop(bench.id);
    let state = |bench: &Bench<'_>, volume: &Volume| bench.state(volume.id);
    assert_eq!(state(&bench, &leaving), None);
    for volume in [&kept, &coming] {
        assert_eq!(state(&bench, volume), Some(AttachmentState::Attached));
    }
    bench.d.supervisor.start(&[bench.id]).unwrap();
    bench.d.run(bench.id);
    let spec = f.fake.world(|w| w.specs.last().cloned()).unwrap();
    let serials: BTreeSet<String> = spec.disks.iter().skip(1).map(|disk| disk.serial.clone()).collect();
    assert_eq!(serials, [kept.serial(), coming.serial()].into());
}

#[test]
fn volume_that_was_asked_for_again_meanwhile_is_taken_back_from_the_machine() {
    let f = Fixture::new();
    let bench = Bench::new(&f);
    let volume = bench.volume();
    let (plane, id) = (f.plane.clone(), volume.id);
    f.fake.world(|w| {
        w.meanwhile = Some(Box::new(move || {
            transact(plane.parts.store.as_ref(), |tx| {
                let row = tx.get::<Volume>(&id)?.unwrap();
                tx.put(&Volume { attachment: None, ..row })
            })
            .unwrap();
        }));
    });
    assert!(matches!(bench.attach(&volume, "/dev/sdf"), Err(VolumeError::NotAttached(_))));
    assert_eq!((bench.state(id), serials(&f).len()), (None, 0));
    bench.attach(&volume, "/dev/sdf").unwrap();
}
