//! Volumes, snapshots and images of instances, with `qemu-img` as the judge.

use std::path::Path;
use std::process::Command as Program;

use kiln_model::{ImageId, SnapshotId, VolumeId};

use super::supervisor::Daemon;
use super::*;
use crate::images::{CopyWish, Registration};
use crate::state::StoreError;
use crate::volumes::{
    BlockDevice, DeviceWish, NewVolume, Progress, Snapshot, VolumeChange, VolumeError, VolumeKind, VolumeType,
};

const MIB: u64 = 1 << 20;

fn mib(count: u64) -> ByteSize {
    ByteSize::bytes(count * MIB)
}

fn larger(size: ByteSize) -> VolumeChange {
    VolumeChange { size: Some(size), ..VolumeChange::default() }
}

fn have_qemu() -> bool {
    let there = Program::new("qemu-img").arg("--version").output().is_ok();
    if !there {
        println!("SKIPPED: needs qemu-img and qemu-io");
    }
    there
}

fn run(program: &str, args: &[&str], file: &Path) -> String {
    let output = Program::new(program).args(args).arg(file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?} {file:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// What a guest of that time would have written.
fn write(file: &Path, pattern: u8, offset: u64) {
    run("qemu-io", &["-f", "qcow2", "-c", &format!("write -P {pattern} {offset} 64k")], file);
}

fn assert_holds(file: &Path, pattern: u8, offset: u64) {
    let text = run("qemu-io", &["-r", "-f", "qcow2", "-c", &format!("read -P {pattern} {offset} 64k")], file);
    assert!(!text.contains("Pattern verification failed"), "{}: {text}", file.display());
}

/// Names of the files of a chain, as `qemu-img` sees it, which must find it sound.
fn chain(file: &Path) -> Vec<String> {
    run("qemu-img", &["check", "-q", "-f", "qcow2"], file);
    let json = run("qemu-img", &["info", "--backing-chain", "--output=json", "-f", "qcow2"], file);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let name = |image: &serde_json::Value| {
        let path = Path::new(image["filename"].as_str().unwrap()).file_name().unwrap();
        path.to_str().unwrap().to_owned()
    };
    json.as_array().unwrap().iter().map(name).collect()
}

impl Daemon<'_> {
    fn volume_file(&self, id: VolumeId) -> PathBuf {
        self.supervisor.plane().volumes().file(id)
    }

    fn snapshot(&mut self, volume: VolumeId) -> Snapshot {
        let id = self.supervisor.create_snapshot(volume, "test", &[]).unwrap().id;
        self.notice(
            "a snapshot",
            |event| matches!(event, NoticeEvent::Snapshot { snapshot, .. } if *snapshot == id),
        );
        let snapshot = self.supervisor.plane().volumes().snapshot(id).unwrap();
        assert_eq!(snapshot.progress, Progress::Complete);
        snapshot
    }

    fn image_of(&mut self, instance: InstanceId, name: &str) -> crate::images::Image {
        let wish = NewImage { name: name.to_owned(), ..NewImage::default() };
        let id = self.supervisor.create_image(instance, &wish).unwrap().id;
        self.notice("an image", |event| matches!(event, NoticeEvent::Image { image, .. } if *image == id));
        let image = self.supervisor.plane().images().find(name).unwrap();
        assert_eq!((image.progress, image.id), (Progress::Complete, id));
        image
    }

    fn stopped(&mut self, change: impl FnOnce(&mut LaunchRequest)) -> Instance {
        let id = self.launch(change).id;
        self.stop(id)
    }

    fn restore(&self, snapshot: SnapshotId) -> crate::volumes::Volume {
        let wish = NewVolume { snapshot: Some(snapshot), ..NewVolume::default() };
        self.supervisor.plane().volumes().create(&wish).unwrap()
    }
}

impl Fixture {
    fn volume_files(&self) -> BTreeSet<String> {
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        self.entries("volumes").into_iter().map(name).collect()
    }

    fn imported(&self) -> crate::images::Image {
        let path = self.image().into();
        let import = ImportRequest {
            path,
            format: None,
            name: Some("base".into()),
            replace: false,
            drivers: Drivers::default(),
        };
        self.plane.images().import(&import, self.plane.clock(), &Silent).unwrap()
    }
}

#[test]
fn what_is_deleted_in_any_order_breaks_no_child_and_its_room_comes_back() {
    if !have_qemu() {
        return;
    }
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
        let f = Fixture::new();
        let base = f.imported();
        let mut d = Daemon::new(&f);
        let instance = d.stopped(|r| (r.image, r.volume_size) = ("base".into(), Some(mib(8))));
        let root = instance.root.id;
        write(&d.volume_file(root), 1, 0);
        let snapshot = d.snapshot(root);
        write(&d.volume_file(root), 2, 0);
        let child = d.restore(snapshot.id);
        write(&d.volume_file(child.id), 3, 2 * MIB);
        let second = d.snapshot(child.id);
        let grandchild = d.restore(second.id);
        let file = d.volume_file(grandchild.id);
        let sound = |situation: &str| {
            assert_holds(&file, 1, 0);
            assert_holds(&file, 3, 2 * MIB);
            assert_holds(&file, 7, 512 << 10);
            assert_holds(&file, 0, 4 * MIB);
            let names = chain(&file);
            assert_eq!(names.len(), 4, "{situation}: {names:?}");
        };
        sound("before");
        assert_holds(&d.volume_file(root), 2, 0);
        for step in order {
            let volumes = d.supervisor.plane().volumes();
            match step {
                0 => drop(d.supervisor.terminate(&[instance.id]).unwrap()),
                1 => volumes.delete_snapshot(snapshot.id).unwrap(),
                2 => volumes.delete(child.id).unwrap(),
                _ => drop(d.supervisor.plane().images().deregister(base.id).unwrap()),
            }
            sound(&format!("{order:?}, after {step}"));
        }
        let left = ["vol", "snap", "snap"].len();
        assert_eq!((f.volume_files().len(), f.entries("images").len()), (left, 1), "{:?}", f.volume_files());
        let volumes = d.supervisor.plane().volumes();
        volumes.delete_snapshot(second.id).unwrap();
        sound("without its snapshot");
        volumes.delete(grandchild.id).unwrap();
        d.supervisor.plane().images().sweep().unwrap();
        assert!(f.volume_files().is_empty() && f.entries("images").is_empty(), "{:?}", f.volume_files());
    }
}

#[test]
fn image_of_an_instance_launches_others_with_all_its_volumes() {
    if !have_qemu() {
        return;
    }
    let f = Fixture::new();
    f.imported();
    let mut d = Daemon::new(&f);
    let data = DeviceWish { device: "/dev/sdf".into(), size: Some(mib(4)), ..DeviceWish::default() };
    let instance = d.stopped(|r| (r.image, r.volumes) = ("base".into(), vec![data.clone()]));
    let volumes = d.supervisor.plane().volumes().of(instance.id).unwrap();
    assert_eq!((volumes.len(), volumes[0].id), (2, instance.root.id));
    write(&d.volume_file(volumes[0].id), 5, 0);
    write(&d.volume_file(volumes[1].id), 6, MIB);
    let image = d.image_of(instance.id, "golden");
    let taken = NewImage { name: "golden".into(), ..NewImage::default() };
    let refused = d.supervisor.create_image(instance.id, &taken).unwrap_err().to_string();
    assert!(refused.contains("golden exists already"), "{refused}");
    let root = image.root.unwrap();
    assert!(matches!(
        d.supervisor.plane().volumes().delete_snapshot(root),
        Err(VolumeError::SnapshotInUse { image: by, .. }) if by == image.id
    ));
    d.supervisor.terminate(&[instance.id]).unwrap();

    let other = d.stopped(|r| r.image = "golden".into());
    let spec = f.fake.world(|w| w.specs.last().cloned()).unwrap();
    let of = d.supervisor.plane().volumes().of(other.id).unwrap();
    assert_eq!(
        spec.disks.iter().map(|disk| disk.serial.clone()).collect::<Vec<_>>(),
        [of[0].serial(), of[1].serial()]
    );
    assert_eq!(spec.disks.iter().map(|disk| disk.layers.len()).collect::<Vec<_>>(), [3, 2]);
    assert_eq!(spec.metadata.leaves["meta-data/block-device-mapping/ebs1"].as_bytes(), b"sdf");
    assert_holds(&d.volume_file(of[0].id), 5, 0);
    assert_holds(&d.volume_file(of[0].id), 7, 512 << 10);
    assert_holds(&d.volume_file(of[1].id), 6, MIB);
    let wish = CopyWish { name: "copy".into(), description: Some("a copy".into()) };
    let plane = d.supervisor.plane().clone();
    let copy = plane.images().copy(image.id, &wish, plane.clock(), &mut |_, _| Ok(())).unwrap();
    assert_eq!((copy.layers(), copy.description.as_str()), (image.layers(), "a copy"));
    assert!(copy.snapshots().all(|own| image.snapshots().all(|other| own != other)));

    // An image may go; what was launched from it goes on, and starts again.
    for id in [image.id, copy.id] {
        d.supervisor.plane().images().deregister(id).unwrap();
    }
    for snapshot in image.snapshots().chain(copy.snapshots()) {
        d.supervisor.plane().volumes().delete_snapshot(snapshot).unwrap();
    }
    d.supervisor.start(&[other.id]).unwrap();
    d.run(other.id);
    d.stop(other.id);
    assert_holds(&d.volume_file(of[0].id), 5, 0);
    assert!(d.try_launch((1, 1), |r| r.image = "golden".into()).is_err());
    d.supervisor.terminate(&[other.id]).unwrap();
    d.supervisor.plane().images().sweep().unwrap();
    assert_eq!(f.volume_files(), BTreeSet::new());
}

#[test]
fn volumes_are_attached_detached_and_kept_as_said() {
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    let instance = d.launch(|r| r.keep_root = Some(true));
    let plane = d.supervisor.plane().clone();
    let volumes = plane.volumes();
    let volume = volumes.create(&NewVolume { size: Some(mib(4)), ..NewVolume::default() }).unwrap();
    let attach = |device: &str| plane.volumes().attach(volume.id, instance.id, device);
    assert!(matches!(attach("/dev/sdf"), Err(VolumeError::State { .. })));
    d.stop(instance.id);
    for bad in ["", "/dev/", "/dev/../x", "/dev/xvda", "/dev/abcdefghijklmnopq"] {
        assert!(matches!(attach(bad), Err(VolumeError::Device(_))), "{bad}");
    }
    assert_eq!(attach("/dev/sdf").unwrap().attachment.unwrap().instance, instance.id);
    assert!(matches!(attach("/dev/sdg"), Err(VolumeError::InUse { .. })));
    assert!(matches!(volumes.delete(volume.id), Err(VolumeError::InUse { .. })));
    let second = volumes.create(&NewVolume { size: Some(mib(4)), ..NewVolume::default() }).unwrap();
    assert!(matches!(
        volumes.attach(second.id, instance.id, "/dev/sdf"),
        Err(VolumeError::DeviceTaken { .. })
    ));
    volumes.attach(second.id, instance.id, "/dev/sdg").unwrap();
    volumes.set_delete_on_termination(second.id, true).unwrap();
    d.supervisor.start(&[instance.id]).unwrap();
    d.run(instance.id);
    assert_eq!(f.fake.world(|w| w.specs.last().unwrap().disks.len()), 3);
    assert!(matches!(volumes.detach(volume.id), Err(VolumeError::State { .. })));
    assert!(matches!(volumes.modify(volume.id, larger(mib(8))), Err(VolumeError::State { .. })));
    d.stop(instance.id);
    assert!(matches!(volumes.detach(instance.root.id), Err(VolumeError::Root(_))));
    d.supervisor.terminate(&[instance.id]).unwrap();
    let left: BTreeSet<VolumeId> = volumes.list().unwrap().iter().map(|v| v.id).collect();
    assert_eq!(left, [instance.root.id, volume.id].into(), "the second was to go");
    assert!(volumes.list().unwrap().iter().all(|v| v.attachment.is_none()));
    assert_eq!(f.volume_files().len(), 2);
    assert!(matches!(volumes.detach(volume.id), Err(VolumeError::NotAttached(_))));
    left.iter().for_each(|id| volumes.delete(*id).unwrap());
    assert!(matches!(volumes.delete(volume.id), Err(VolumeError::NoVolume(_))));
    assert_eq!(f.volume_files(), BTreeSet::new());
}

#[test]
fn volume_grows_and_keeps_what_is_on_it() {
    if !have_qemu() {
        return;
    }
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    let instance = d.stopped(|_| ());
    let file = d.volume_file(instance.root.id);
    write(&file, 9, 0);
    let plane = d.supervisor.plane().clone();
    let volumes = plane.volumes();
    assert!(matches!(
        volumes.modify(instance.root.id, larger(ByteSize::bytes(MIB / 2))),
        Err(VolumeError::Size(_))
    ));
    // A table of one entry grows to one of 100.
    let size = ByteSize::bytes(100 << 30);
    assert_eq!(volumes.modify(instance.root.id, larger(size)).unwrap().size, size);
    assert!(matches!(volumes.modify(instance.root.id, larger(mib(2))), Err(VolumeError::Shrinking { .. })));
    assert_holds(&file, 9, 0);
    assert_holds(&file, 7, 512 << 10);
    assert_holds(&file, 0, 99 << 30);
    write(&file, 4, 99 << 30);
    assert_eq!(chain(&file).len(), 2);
    assert!(run("qemu-img", &["info"], &file).contains("100 GiB"));
    d.supervisor.start(&[instance.id]).unwrap();
    assert_eq!(d.run(instance.id).root.size, size);
}

#[test]
fn wishes_for_volumes_that_cannot_be_are_refused_and_leave_nothing() {
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    let plane = d.supervisor.plane().clone();
    let volumes = plane.volumes();
    let nothing = SnapshotId::from_bits(1);
    let wish = |size, snapshot| NewVolume { size, snapshot, ..NewVolume::default() };
    assert!(matches!(volumes.create(&wish(None, None)), Err(VolumeError::NoSize)));
    assert!(matches!(volumes.create(&wish(Some(mib(0)), None)), Err(VolumeError::Size(_))));
    assert!(matches!(volumes.create(&wish(Some(mib(65 << 20)), None)), Err(VolumeError::Size(_))));
    assert!(matches!(volumes.create(&wish(None, Some(nothing))), Err(VolumeError::NoSnapshot(_))));
    assert!(d.supervisor.create_snapshot(VolumeId::from_bits(1), "", &[]).is_err());
    assert_eq!(f.volume_files(), BTreeSet::new());
    let volume = volumes.create(&wish(Some(mib(4)), None)).unwrap();
    let snapshot = d.snapshot(volume.id);
    assert!(matches!(
        volumes.create(&wish(Some(mib(2)), Some(snapshot.id))),
        Err(VolumeError::TooSmall { .. })
    ));
    let duplicate =
        |device: &str| DeviceWish { device: device.to_owned(), size: Some(mib(1)), ..DeviceWish::default() };
    let refused = d.try_launch((1, 1), |r| r.volumes = vec![duplicate("/dev/sdf"), duplicate("/dev/sdf")]);
    assert!(refused.is_err());
    assert_eq!(d.supervisor.instances().unwrap(), []);
}

#[test]
fn snapshot_that_was_cut_off_has_failed_and_leaves_no_file() {
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    let plane = d.supervisor.plane().clone();
    let volume = plane.volumes().create(&NewVolume { size: Some(mib(4)), ..NewVolume::default() }).unwrap();
    let snapshot = d.snapshot(volume.id);
    d.leave();
    // As a process leaves it that is killed while it copies.
    let cut_off = Snapshot { progress: Progress::Pending, ..snapshot.clone() };
    crate::state::transact(plane.parts.store.as_ref(), |tx| tx.put(&cut_off)).unwrap();
    let d = Daemon::new(&f);
    let after = d.supervisor.plane().volumes().snapshot(snapshot.id).unwrap();
    assert_eq!(after.progress, Progress::Failed);
    assert_eq!(f.volume_files().len(), 1, "{:?}", f.volume_files());
    let wish = NewVolume { snapshot: Some(snapshot.id), ..NewVolume::default() };
    assert!(matches!(d.supervisor.plane().volumes().create(&wish), Err(VolumeError::SnapshotPending(_))));
    d.supervisor.plane().volumes().delete_snapshot(snapshot.id).unwrap();
}

fn wish(device: &str, size: Option<ByteSize>) -> DeviceWish {
    DeviceWish { device: device.to_owned(), size, ..DeviceWish::default() }
}

#[test]
fn launch_says_what_becomes_of_the_devices_of_its_image() {
    if !have_qemu() {
        return;
    }
    let f = Fixture::new();
    f.imported();
    let mut d = Daemon::new(&f);
    let plane = d.supervisor.plane().clone();
    let data = ["/dev/sdf", "/dev/sdg", "/dev/sdh"].map(|device| wish(device, Some(mib(4))));
    let first = d.stopped(|r| (r.image, r.volumes) = ("base".into(), data.to_vec()));
    let of_first = plane.volumes().of(first.id).unwrap();
    write(&d.volume_file(of_first[1].id), 5, MIB);
    // One that is left out of the image.
    let new = NewImage {
        name: "three".into(),
        devices: vec![DeviceWish { none: true, ..wish("/dev/sdh", None) }, wish("/dev/sdi", Some(mib(2)))],
        ..NewImage::default()
    };
    let image = d.supervisor.create_image(first.id, &new).unwrap();
    d.notice("the image", |event| matches!(event, NoticeEvent::Image { image: id, .. } if *id == image.id));
    let devices: Vec<_> = image.devices.iter().map(|d| (d.device.as_str(), d.snapshot.is_some())).collect();
    assert_eq!(devices, [("/dev/sdf", true), ("/dev/sdg", true), ("/dev/sdi", false)]);

    let kept = DeviceWish { delete_on_termination: Some(false), ..wish("xvdf", Some(mib(8))) };
    let second = d.launch(|r| {
        r.image = "three".into();
        r.volumes =
            vec![kept, DeviceWish { none: true, ..wish("/dev/sdg", None) }, wish("/dev/sdj", Some(mib(1)))];
    });
    let of_second = plane.volumes().of(second.id).unwrap();
    let seen: Vec<_> = of_second
        .iter()
        .map(|volume| {
            let own = volume.attachment.as_ref().unwrap();
            (own.device.as_str(), volume.size.as_bytes() / MIB, own.delete_on_termination)
        })
        .collect();
    assert_eq!(&seen[1..], [("/dev/sdf", 8, false), ("/dev/sdi", 2, true), ("/dev/sdj", 1, true)]);
    let spec = f.fake.world(|w| w.specs.last().cloned()).unwrap();
    assert_eq!(spec.disks.len(), 4);
    assert_eq!(spec.metadata.leaves["meta-data/block-device-mapping/ebs3"].as_bytes(), b"sdj");
    d.stop(second.id);
    assert_holds(&d.volume_file(of_second[1].id), 5, MIB);
    assert!(run("qemu-img", &["info"], &d.volume_file(of_second[1].id)).contains("8 MiB"));
    // What goes and what stays.
    let ends = [("/dev/sdi", false), ("/dev/sdf", false)].map(|(device, goes)| DeviceEnd {
        device: device.into(),
        volume: None,
        goes,
    });
    d.supervisor.modify(second.id, &Attribute::DeleteOnTermination(ends.to_vec())).unwrap();
    let nothing = DeviceEnd { device: "/dev/sdz".into(), volume: None, goes: true };
    let both = vec![DeviceEnd { goes: true, ..ends[0].clone() }, nothing];
    let refused = d.supervisor.modify(second.id, &Attribute::DeleteOnTermination(both)).unwrap_err();
    assert!(matches!(refused, SupervisorError::Volume(VolumeError::NoDevice { .. })), "{refused}");
    d.supervisor.terminate(&[second.id, first.id]).unwrap();
    let left: BTreeSet<_> = plane.volumes().list().unwrap().iter().map(|volume| volume.id).collect();
    assert_eq!(left, [of_second[1].id, of_second[2].id].into());
}

#[test]
fn launch_with_a_volume_that_cannot_be_leaves_nothing() {
    let f = Fixture::new();
    let d = Daemon::new(&f);
    let plane = d.supervisor.plane().clone();
    let of_nothing = DeviceWish { snapshot: Some(SnapshotId::from_bits(1)), ..wish("/dev/sdg", None) };
    for (bad, code) in [
        (wish("/dev/sdf", None), "MissingParameter"),
        (wish("/dev/xvda", Some(mib(1))), "InvalidParameterValue"),
        (wish("/dev/sdf", Some(mib(65 << 20))), "InvalidParameterValue"),
        (of_nothing, "InvalidSnapshot.NotFound"),
    ] {
        let volumes = vec![wish("/dev/sdh", Some(mib(1))), bad];
        match d.try_launch((2, 2), |r| r.volumes = volumes) {
            Err(SupervisorError::Launch(LaunchError::Volume(e))) => assert_eq!(e.code(), code),
            other => panic!("{code}: {other:?}"),
        }
    }
    assert_eq!((d.supervisor.instances().unwrap(), plane.volumes().list().unwrap()), (vec![], vec![]));
    assert_eq!(f.volume_files(), BTreeSet::new());
}

#[test]
fn volume_that_was_only_begun_is_made_by_the_next_daemon() {
    let f = Fixture::new();
    let d = Daemon::new(&f);
    let plane = d.supervisor.plane().clone();
    let volume = plane.volumes().create(&NewVolume { size: Some(mib(4)), ..NewVolume::default() }).unwrap();
    d.leave();
    // As a process leaves it that is killed between the row and the file.
    let begun = crate::volumes::Volume { progress: Progress::Pending, ..volume.clone() };
    crate::state::transact(plane.parts.store.as_ref(), |tx| tx.put(&begun)).unwrap();
    let file = plane.volumes().file(volume.id);
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(
        plane.volumes().attach(volume.id, InstanceId::from_bits(1), "/dev/sdf"),
        Err(VolumeError::Creating(_))
    ));
    assert!(matches!(plane.volumes().modify(volume.id, larger(mib(8))), Err(VolumeError::Creating(_))));
    let d = Daemon::new(&f);
    assert_eq!(d.supervisor.plane().volumes().get(volume.id).unwrap(), volume);
    assert!(file.exists());
}

#[test]
fn volume_that_cannot_be_made_is_not_there_nor_its_token() {
    let f = Fixture::new();
    let d = Daemon::new(&f);
    let plane = d.supervisor.plane().clone();
    let volumes = plane.volumes();
    let wish = NewVolume { size: Some(mib(4)), ..NewVolume::default() };
    let refused = volumes.create_and(&wish, &mut |_, _| Err(StoreError::Missing("x".into())));
    assert!(matches!(refused, Err(VolumeError::Store(StoreError::Missing(_)))));
    assert_eq!(volumes.list().unwrap(), []);
    // Its file has no place.
    let directory = plane.parts.dir.volumes();
    std::fs::rename(&directory, directory.with_extension("away")).unwrap();
    assert!(volumes.create(&wish).is_err());
    assert_eq!(volumes.list().unwrap(), []);
}

#[test]
fn volume_of_another_type_is_remembered_while_its_instance_runs() {
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    let id = d.launch(|_| ()).id;
    let root = d.supervisor.instance(id).unwrap().root.id;
    let change = VolumeChange { volume_type: Some(VolumeType::Gp2), ..VolumeChange::default() };
    let changed = d.supervisor.modify_volume(root, change).unwrap();
    let modification = changed.modification.unwrap();
    assert_eq!(
        (modification.original_kind, changed.kind.volume_type),
        (VolumeKind::default(), VolumeType::Gp2)
    );
    let larger = VolumeChange { size: Some(mib(64)), ..VolumeChange::default() };
    d.stop(id);
    let grown = d.supervisor.modify_volume(root, larger).unwrap();
    assert_eq!((grown.size, d.supervisor.instance(id).unwrap().root.size), (mib(64), mib(64)));
    d.supervisor.start(&[id]).unwrap();
    d.run(id);
}

#[test]
fn copies_of_a_snapshot_outlive_it_and_each_other() {
    if !have_qemu() {
        return;
    }
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    let plane = d.supervisor.plane().clone();
    let volumes = plane.volumes();
    let volume = volumes.create(&NewVolume { size: Some(mib(4)), ..NewVolume::default() }).unwrap();
    write(&d.volume_file(volume.id), 3, MIB);
    let first = d.snapshot(volume.id);
    volumes.delete(volume.id).unwrap();
    let copy = |id| volumes.copy_snapshot(id, "a copy", &mut |_, _| Ok(())).unwrap();
    let second = copy(first.id);
    let third = copy(second.id);
    assert_eq!((&second.layers, f.volume_files().len()), (&first.layers, 1));
    volumes.delete_snapshot(second.id).unwrap();
    volumes.delete_snapshot(first.id).unwrap();
    let restored = d.restore(third.id);
    volumes.delete_snapshot(third.id).unwrap();
    assert_holds(&d.volume_file(restored.id), 3, MIB);
    let again = volumes.copy_snapshot(first.id, "", &mut |_, _| Ok(()));
    assert!(matches!(again, Err(VolumeError::NoSnapshot(_))));
    volumes.delete(restored.id).unwrap();
    assert_eq!(f.volume_files(), BTreeSet::new());
}

#[test]
fn image_is_registered_of_snapshots_which_it_holds() {
    let f = Fixture::new();
    f.imported();
    let mut d = Daemon::new(&f);
    let plane = d.supervisor.plane().clone();
    let instance = d.stopped(|r| r.image = "base".into());
    let root = d.snapshot(instance.root.id);
    let register = |name: &str, root: Option<SnapshotId>, devices: Vec<DeviceWish>| {
        let root = BlockDevice { device: "/dev/sda1".into(), snapshot: root, ..BlockDevice::plain_root() };
        let wish = Registration {
            name: name.into(),
            description: "mine".into(),
            root,
            devices,
            drivers: Drivers { ena: true, sriov: None },
        };
        plane.images().register(&wish, plane.clock(), &mut |_, _| Ok(()))
    };
    let of_root = DeviceWish { snapshot: Some(root.id), ..wish("/dev/sdf", None) };
    let image = register("own", Some(root.id), vec![of_root]).unwrap();
    assert_eq!((image.progress, image.layers()), (Progress::Complete, root.layers.clone()));
    assert_eq!((image.drivers.ena, image.devices[0].size), (true, Some(root.size)));
    for (name, root, device) in [
        ("own", Some(root.id), wish("/dev/sdf", Some(mib(1)))),
        ("other", None, wish("/dev/sdf", Some(mib(1)))),
        ("other", Some(SnapshotId::from_bits(1)), wish("/dev/sdf", Some(mib(1)))),
        ("other", Some(root.id), wish("/dev/sdf", None)),
        ("other", Some(root.id), wish("/dev/sda1", Some(mib(1)))),
    ] {
        assert!(register(name, root, vec![device.clone()]).is_err(), "{name} {root:?} {device:?}");
    }
    assert_eq!(plane.images().list().unwrap().len(), 2);
    assert!(matches!(plane.volumes().delete_snapshot(root.id), Err(VolumeError::SnapshotInUse { .. })));
    let launched = d.launch(|r| r.image = "own".into());
    assert_eq!(launched.root.device, "/dev/sda1");
    let spec = f.fake.world(|w| w.specs.last().cloned()).unwrap();
    assert_eq!(spec.metadata.leaves["meta-data/block-device-mapping/root"].as_bytes(), b"/dev/sda1");
    assert_eq!(spec.disks.len(), 2);
    plane.images().deregister(image.id).unwrap();
    plane.volumes().delete_snapshot(root.id).unwrap();
    d.stop(launched.id);
    d.supervisor.start(&[launched.id]).unwrap();
    d.run(launched.id);
}

#[test]
fn image_of_a_file_is_pending_and_then_there() {
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    let plane = d.supervisor.plane().clone();
    let request = ImportRequest {
        path: f.image().into(),
        format: None,
        name: Some("base".into()),
        replace: false,
        drivers: Drivers::default(),
    };
    let image = d.supervisor.import_image(&request, "a file", &mut |_, _| Ok(())).unwrap();
    assert_eq!(image.progress, Progress::Pending);
    let complete = |event: &NoticeEvent| matches!(event, NoticeEvent::Image { image: id, progress: Progress::Complete } if *id == image.id);
    d.notice("the image", complete);
    let there = plane.images().find("base").unwrap();
    assert_eq!((there.id, there.sha256.len(), there.importing.clone()), (image.id, 64, None));
    d.launch(|r| r.image = "base".into());
    let again = d.supervisor.import_image(&request, "", &mut |_, _| Ok(()));
    assert!(matches!(again, Err(SupervisorError::Launch(LaunchError::Image(_)))));

    // As a process leaves them that is killed while it copies: one goes on, one cannot.
    d.leave();
    let begin = |name: &str| {
        let request = ImportRequest { name: Some(name.to_owned()), ..request.clone() };
        plane.images().begin_import(&request, "", plane.clock(), &mut |_, _| Ok(())).unwrap()
    };
    let (lives, changes) = (begin("lives"), begin("changes"));
    assert!(matches!(plane.images().open(&lives), Err(crate::images::ImageError::NotReady(_))));
    crate::state::transact(plane.parts.store.as_ref(), |tx| {
        let mut row = tx.get::<crate::images::Image>(&changes.id)?.unwrap();
        let other = f.temp.path().join("other.raw");
        std::fs::copy(f.image(), &other).unwrap();
        let request = ImportRequest { path: other.clone(), name: Some("third".into()), ..request.clone() };
        let third = plane.images().begin_import(&request, "", plane.clock(), &mut |_, _| Ok(())).unwrap();
        plane.images().deregister(third.id).unwrap();
        std::fs::write(&other, [1; 1024]).unwrap();
        row.importing = third.importing;
        tx.put(&row)
    })
    .unwrap();
    let d = Daemon::new(&f);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let ended = |id: ImageId| loop {
        let image = d.supervisor.plane().images().find(&id.to_string()).unwrap();
        if image.progress != Progress::Pending {
            return image;
        }
        assert!(std::time::Instant::now() < deadline, "{id} stays pending");
        std::thread::yield_now();
    };
    assert_eq!(ended(lives.id).progress, Progress::Complete);
    let failed = ended(changes.id);
    assert!(failed.failure.as_ref().is_some_and(|why| why.contains("changed")), "{failed:?}");
    assert!(d.try_launch((1, 1), |r| r.image = "changes".into()).is_err());
    assert_eq!(f.entries("images").len(), 1);
}

#[test]
fn snapshots_of_snapshots_go_on_and_hold_what_all_of_them_held() {
    if !have_qemu() {
        return;
    }
    let f = Fixture::new();
    f.imported();
    let mut d = Daemon::new(&f);
    let plane = d.supervisor.plane().clone();
    let volumes = plane.volumes();
    let instance = d.stopped(|r| (r.image, r.volume_size) = ("base".into(), Some(mib(8))));
    let mut volume = volumes.get(instance.root.id).unwrap();
    let mut longest = 0;
    for generation in 1..=40u8 {
        let file = d.volume_file(volume.id);
        write(&file, generation, u64::from(generation) * 3 * 65536);
        // Over what an earlier one wrote.
        write(&file, generation, 0);
        let snapshot = d.snapshot(volume.id);
        longest = longest.max(snapshot.layers.len());
        // A second one lies over what the first lies over.
        let again = d.snapshot(volume.id);
        assert_eq!(snapshot.layers[1..], again.layers[1..], "{generation}");
        let child = d.restore(snapshot.id);
        let same =
            |file: &Path, other: &Path| run("qemu-img", &["compare", "-q", file.to_str().unwrap()], other);
        same(&file, &d.volume_file(child.id));
        volumes.delete_snapshot(snapshot.id).unwrap();
        same(&d.volume_file(d.restore(again.id).id), &d.volume_file(child.id));
        assert_eq!(chain(&d.volume_file(child.id)).len(), child.below.len() + 1);
        volumes.delete_snapshot(again.id).unwrap();
        volume = child;
    }
    assert_eq!(longest, crate::volumes::MAX_BELOW);
    for other in volumes.list().unwrap().iter().filter(|v| v.id != volume.id && v.attachment.is_none()) {
        volumes.delete(other.id).unwrap();
    }
    d.supervisor.terminate(&[instance.id]).unwrap();
    let file = d.volume_file(volume.id);
    for generation in 1..=40u8 {
        assert_holds(&file, generation, u64::from(generation) * 3 * 65536);
    }
    assert_holds(&file, 40, 0);
    assert_eq!(f.volume_files().len(), volume.below.len(), "{:?}", f.volume_files());
    volumes.delete(volume.id).unwrap();
    assert_eq!(f.volume_files(), BTreeSet::new());
}

#[test]
fn merging_that_was_cut_off_leaves_nothing_and_can_be_done_again() {
    let f = Fixture::new();
    let mut d = Daemon::new(&f);
    let plane = d.supervisor.plane().clone();
    let volumes = plane.volumes();
    let mut volume = volumes.create(&NewVolume { size: Some(mib(4)), ..NewVolume::default() }).unwrap();
    while volume.below.len() < crate::volumes::MAX_BELOW {
        let snapshot = d.snapshot(volume.id);
        volume = d.restore(snapshot.id);
    }
    let whole = d.snapshot(volume.id);
    assert_eq!(whole.layers.len(), 2);
    let files = f.volume_files();
    volumes.delete_snapshot(whole.id).unwrap();
    d.leave();
    // As a process leaves it that is killed while it merges.
    let cut_off = Snapshot { progress: Progress::Pending, ..whole.clone() };
    crate::state::transact(plane.parts.store.as_ref(), |tx| tx.put(&cut_off)).unwrap();
    let part = plane.parts.dir.volumes().join(format!("{}-below.part", whole.id));
    std::fs::write(&part, "half").unwrap();
    let mut d = Daemon::new(&f);
    assert_eq!(volumes.snapshot(whole.id).unwrap().progress, Progress::Failed);
    volumes.delete_snapshot(whole.id).unwrap();
    assert!(!part.exists());
    let again = d.snapshot(volume.id);
    assert_eq!((again.layers.len(), f.volume_files().len()), (2, files.len()));
}
