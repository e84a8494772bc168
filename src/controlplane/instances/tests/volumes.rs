//! Volumes, snapshots and images of instances, with `qemu-img` as the judge.

use std::path::Path;
use std::process::Command as Program;

use kiln_model::{SnapshotId, VolumeId};

use super::supervisor::Daemon;
use super::*;
use crate::volumes::{BlockDevice, NewVolume, Progress, Snapshot, VolumeError};

const MIB: u64 = 1 << 20;

fn mib(count: u64) -> ByteSize {
    ByteSize::bytes(count * MIB)
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
        let import = ImportRequest { path, format: None, name: Some("base".into()), replace: false };
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
    let data = BlockDevice {
        device: "/dev/sdf".into(),
        size: Some(mib(4)),
        snapshot: None,
        delete_on_termination: true,
    };
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
    let copy =
        d.supervisor.plane().images().copy(image.id, "copy", "a copy", d.supervisor.plane().clock()).unwrap();
    assert_eq!((copy.layers(), copy.description.as_str()), (image.layers(), "a copy"));

    // An image may go; what was launched from it goes on, and starts again.
    for id in [image.id, copy.id] {
        d.supervisor.plane().images().deregister(id).unwrap();
    }
    for snapshot in image.snapshots() {
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
    let instance = d.launch(|r| r.keep_root = true);
    let plane = d.supervisor.plane().clone();
    let volumes = plane.volumes();
    let volume = volumes.create(&NewVolume { size: Some(mib(4)), ..NewVolume::default() }).unwrap();
    let attach = |device: &str| plane.volumes().attach(volume.id, instance.id, device);
    assert!(matches!(attach("/dev/sdf"), Err(VolumeError::Running { .. })));
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
    assert!(matches!(volumes.detach(volume.id), Err(VolumeError::Running { .. })));
    assert!(matches!(volumes.resize(volume.id, mib(8)), Err(VolumeError::Running { .. })));
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
    assert!(matches!(volumes.resize(instance.root.id, ByteSize::bytes(MIB / 2)), Err(VolumeError::Size(_))));
    // A table of one entry grows to one of 100.
    let size = ByteSize::bytes(100 << 30);
    assert_eq!(volumes.resize(instance.root.id, size).unwrap().size, size);
    assert!(matches!(volumes.resize(instance.root.id, mib(2)), Err(VolumeError::TooSmall { .. })));
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
    let wish = |size, snapshot| NewVolume { size, snapshot, tags: Vec::new() };
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
    // Snapshots of snapshots reach an end that is told.
    let mut last = snapshot.id;
    let refused = loop {
        let child = d.restore(last);
        match d.supervisor.create_snapshot(child.id, "", &[]) {
            Ok(_) => last = d.snapshot(child.id).id,
            Err(e) => break e,
        }
        assert!(volumes.list().unwrap().len() < 30);
    };
    assert!(matches!(refused, SupervisorError::Volume(VolumeError::TooDeep(_))), "{refused}");
    let duplicate = |device: &str| BlockDevice {
        device: device.to_owned(),
        size: Some(mib(1)),
        snapshot: None,
        delete_on_termination: true,
    };
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
