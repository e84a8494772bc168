//! Snapshots that are written block by block: over restarts, over time, against what is said of them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_model::SnapshotId;
use sha2::{Digest as _, Sha256};

use super::supervisor::Daemon;
use super::*;
use crate::volumes::{BLOCK, LinearChecksum, NewUpload, NewVolume, Progress, Snapshot, VolumeError, Volumes};

const GIB: u64 = 1 << 30;

fn upload(parent: Option<SnapshotId>) -> NewUpload {
    let (size, description) = (ByteSize::bytes(GIB), "an upload".to_owned());
    NewUpload { size, parent, description, timeout: Duration::from_secs(600) }
}

fn start(volumes: &Volumes<'_>, parent: Option<SnapshotId>) -> SnapshotId {
    volumes.start_upload(&upload(parent), &mut |_, _| Ok(())).unwrap().id
}

fn bytes(byte: u8) -> Vec<u8> {
    vec![byte; usize::try_from(BLOCK).unwrap()]
}

fn put(volumes: &Volumes<'_>, id: SnapshotId, blocks: &[(u64, u8)]) {
    for (index, byte) in blocks {
        volumes.put_block(id, *index, &mut bytes(*byte)).unwrap();
    }
}

fn uploaded(volumes: &Volumes<'_>, parent: Option<SnapshotId>, blocks: &[(u64, u8)]) -> Snapshot {
    let id = start(volumes, parent);
    put(volumes, id, blocks);
    volumes.complete_upload(id, blocks.len() as u64, None).unwrap()
}

fn listed(volumes: &Volumes<'_>, id: SnapshotId) -> Vec<u64> {
    volumes.list_blocks(id, 0, 1000).unwrap().blocks
}

fn changed(volumes: &Volumes<'_>, first: SnapshotId, second: SnapshotId) -> Vec<(u64, bool)> {
    let page = volumes.changed_blocks((first, second), 0, 1000).unwrap();
    assert_eq!((page.next, page.snapshot.id), (None, second));
    page.blocks.into_iter().map(|block| (block.index, block.in_first)).collect()
}

#[test]
fn upload_is_there_with_its_blocks_and_volumes_are_made_of_it() {
    let f = Fixture::new();
    let volumes = f.plane.volumes();
    let id = start(&volumes, None);
    let begun = volumes.snapshot(id).unwrap();
    assert_eq!((begun.progress, begun.volume, begun.created), (Progress::Pending, None, 1_700_000_000));
    // Twice, in any order, and one of zeroes.
    put(&volumes, id, &[(2047, 4), (3, 1), (0, 0), (3, 2)]);
    for (index, length) in [(2048, BLOCK), (u64::MAX, BLOCK), (1, BLOCK - 1), (1, 0)] {
        let mut block = vec![1; usize::try_from(length).unwrap()];
        let refused = volumes.put_block(id, index, &mut block);
        assert!(matches!(refused, Err(VolumeError::NoBlock { .. })), "{refused:?}");
    }
    // Until it is complete nobody uses it.
    let wish = NewVolume { snapshot: Some(id), ..NewVolume::default() };
    assert!(matches!(volumes.create(&wish), Err(VolumeError::SnapshotPending(_))));
    assert!(matches!(
        volumes.copy_snapshot(id, "", &mut |_, _| Ok(())),
        Err(VolumeError::SnapshotPending(_))
    ));
    assert!(matches!(volumes.list_blocks(id, 0, 1), Err(VolumeError::SnapshotPending(_))));
    assert!(matches!(volumes.read_block(id, 3), Err(VolumeError::SnapshotPending(_))));
    let over = volumes.start_upload(&upload(Some(id)), &mut |_, _| Ok(()));
    assert!(matches!(over, Err(VolumeError::SnapshotPending(_))));

    // What is said of it has to fit.
    let digests: Vec<[u8; 32]> = [0, 2, 4].map(|byte| Sha256::digest(bytes(byte)).into()).into();
    let linear = LinearChecksum(Sha256::digest(digests.concat()).into());
    let text: String = digests.iter().map(|digest| STANDARD.encode(digest)).collect();
    let complete = |count, checksum| volumes.complete_upload(id, count, checksum);
    for count in [0, 2, 4] {
        let refused = complete(count, Some(linear));
        assert!(matches!(refused, Err(VolumeError::BlockCount { found: 3, .. })), "{refused:?}");
    }
    assert!(matches!(complete(3, Some(LinearChecksum([0; 32]))), Err(VolumeError::Checksum)));
    assert_eq!(volumes.snapshot(id).unwrap(), begun, "what is refused changes nothing");
    let done = complete(3, Some(linear)).unwrap();
    assert_eq!(done, Snapshot { progress: Progress::Complete, ..begun });
    assert_eq!(complete(3, None).unwrap(), done, "a repeated request");
    assert!(matches!(volumes.put_block(id, 1, &mut bytes(1)), Err(VolumeError::NotUploading(_))));
    let other = start(&volumes, None);
    put(&volumes, other, &[(0, 0), (3, 2), (9, 4)]);
    let text = LinearChecksum(Sha256::digest(text).into());
    volumes.complete_upload(other, 3, Some(text)).unwrap();

    assert_eq!(listed(&volumes, id), [3, 2047]);
    for (index, byte) in [(0, 0), (1, 0), (3, 2), (2047, 4)] {
        assert!(volumes.read_block(id, index).unwrap() == bytes(byte), "{index}");
    }
    assert!(matches!(volumes.read_block(id, 2048), Err(VolumeError::NoBlock { .. })));
    let volume = volumes.create(&wish).unwrap();
    assert_eq!((volume.size, &volume.below), (ByteSize::bytes(GIB), &done.layers));
    // Deleted with it, its layer stays for the volume.
    volumes.delete_snapshot(id).unwrap();
    assert!(volumes.snapshot_file(&Snapshot { layers: volume.below, ..done }).exists());
}

#[test]
fn blocks_of_a_parent_hold_where_nothing_is_written_and_changes_are_those_that_differ() {
    let f = Fixture::new();
    let volumes = f.plane.volumes();
    let parent = uploaded(&volumes, None, &[(1, 1), (2, 2), (3, 3), (4, 4)]).id;
    // Written with what is there, with something else, with nothing; and one that the parent does not have.
    let child = uploaded(&volumes, Some(parent), &[(1, 1), (2, 9), (3, 0), (7, 7)]).id;
    assert_eq!(listed(&volumes, child), [1, 2, 4, 7]);
    assert_eq!(changed(&volumes, parent, child), [(2, true), (3, true), (7, false)]);
    assert_eq!(changed(&volumes, child, parent), [(2, true), (3, false), (7, true)]);
    assert_eq!(changed(&volumes, child, child), []);
    let copy = volumes.copy_snapshot(child, "", &mut |_, _| Ok(())).unwrap().id;
    assert_eq!(changed(&volumes, copy, child), []);
    let page = volumes.changed_blocks((parent, child), 3, 1).unwrap();
    assert_eq!((page.blocks.len(), page.blocks[0].index, page.next), (1, 3, Some(4)));
    let page = volumes.list_blocks(child, 2, 2).unwrap();
    assert_eq!((page.blocks, page.next), (vec![2, 4], Some(5)));
    let page = volumes.list_blocks(child, 5, 2).unwrap();
    assert_eq!((page.blocks, page.next), (vec![7], None));
    assert!(volumes.list_blocks(child, u64::MAX, 2).unwrap().blocks.is_empty());
    // Without its parent too.
    volumes.delete_snapshot(parent).unwrap();
    assert!(volumes.read_block(child, 4).unwrap() == bytes(4));

    let stranger = uploaded(&volumes, None, &[]).id;
    let refused = volumes.changed_blocks((stranger, child), 0, 1);
    assert!(matches!(refused, Err(VolumeError::Unrelated { .. })), "{refused:?}");
    let small = NewUpload { size: ByteSize::bytes(GIB / 2), ..upload(Some(child)) };
    let refused = volumes.start_upload(&small, &mut |_, _| Ok(()));
    assert!(matches!(refused, Err(VolumeError::TooSmall { .. })), "{refused:?}");
}

#[test]
fn there_is_no_end_to_uploads_over_uploads() {
    let f = Fixture::new();
    let volumes = f.plane.volumes();
    let mut last = uploaded(&volumes, None, &[(0, 1), (40, 1)]);
    for index in 1..=32 {
        let id = start(&volumes, Some(last.id));
        // What it needs of its parent stays.
        volumes.delete_snapshot(last.id).unwrap();
        put(&volumes, id, &[(index, 2)]);
        last = volumes.complete_upload(id, 1, None).unwrap();
        assert!(last.layers.len() <= 15);
        volumes.create(&NewVolume { snapshot: Some(id), ..NewVolume::default() }).unwrap();
    }
    assert_eq!(listed(&volumes, last.id), (0..=32).chain([40]).collect::<Vec<_>>());
    assert!(volumes.read_block(last.id, 40).unwrap() == bytes(1));

    // Over one with as many layers as there can be, changes are found, though they share none.
    let mut deep = last.id;
    while volumes.snapshot(deep).unwrap().layers.len() < 15 {
        deep = uploaded(&volumes, Some(deep), &[]).id;
    }
    let over = uploaded(&volumes, Some(deep), &[(1, 7)]);
    assert_eq!((over.layers.len(), over.upload.map(|upload| upload.merges)), (2, Some(Vec::new())));
    assert_eq!(changed(&volumes, deep, over.id), [(1, true)]);
    for volume in volumes.list().unwrap() {
        volumes.delete(volume.id).unwrap();
    }
    for snapshot in volumes.snapshots().unwrap() {
        volumes.delete_snapshot(snapshot.id).unwrap();
    }
    assert_eq!(f.entries("volumes").len(), 0);
}

#[test]
fn upload_goes_on_in_the_next_process() {
    let f = Fixture::new();
    let d = Daemon::new(&f);
    let volumes = d.supervisor.plane().volumes();
    let (id, untouched) = (start(&volumes, None), start(&volumes, None));
    put(&volumes, id, &[(1, 1), (2, 2)]);
    // As a process leaves it that is killed: its layer is as it was after the last block.
    let file = volumes.snapshot_file(&volumes.snapshot(id).unwrap());
    let left = std::fs::read(&file).unwrap();
    d.leave();
    std::fs::write(&file, left).unwrap();
    let d = Daemon::new(&f);
    let volumes = d.supervisor.plane().volumes();
    put(&volumes, id, &[(2, 3), (5, 5)]);
    volumes.complete_upload(id, 3, None).unwrap();
    for (index, byte) in [(0, 0), (1, 1), (2, 3), (5, 5)] {
        assert!(volumes.read_block(id, index).unwrap() == bytes(byte), "{index}");
    }
    volumes.complete_upload(untouched, 0, None).unwrap();
    assert!(listed(&volumes, untouched).is_empty());
}

#[test]
fn upload_that_rests_too_long_has_failed_and_leaves_no_file() {
    let f = Fixture::new();
    let at = |seconds: u64| {
        f.clock.0.store(1_700_000_000 + seconds, Ordering::Relaxed);
        f.plane.volumes()
    };
    let (id, untouched) = (start(&at(0), None), start(&at(0), None));
    put(&at(500), id, &[(1, 1)]);
    at(601).expire_uploads().unwrap();
    assert_eq!(at(601).snapshot(untouched).unwrap().progress, Progress::Failed);
    // What is written sets it back.
    put(&at(1100), id, &[(2, 2)]);
    put(&at(1700), id, &[(3, 3)]);
    assert_eq!(f.entries("volumes").len(), 1);
    let refused = at(2301).put_block(id, 4, &mut bytes(4));
    assert!(matches!(refused, Err(VolumeError::UploadTimeout(_))), "{refused:?}");
    assert_eq!(at(2301).snapshot(id).unwrap().progress, Progress::Failed);
    assert_eq!(f.entries("volumes").len(), 0);
    for refused in [at(0).put_block(id, 4, &mut bytes(4)), at(0).complete_upload(id, 3, None).map(|_| ())] {
        assert!(matches!(refused, Err(VolumeError::NotUploading(_))), "{refused:?}");
    }
    at(0).delete_snapshot(id).unwrap();
}

#[test]
fn upload_is_deleted_while_it_is_written() {
    let f = Fixture::new();
    let volumes = f.plane.volumes();
    let id = start(&volumes, None);
    put(&volumes, id, &[(1, 1)]);
    volumes.delete_snapshot(id).unwrap();
    assert_eq!(f.entries("volumes").len(), 0);
    assert!(matches!(volumes.put_block(id, 2, &mut bytes(2)), Err(VolumeError::NoSnapshot(_))));
    // And by another process, which this one notices.
    let id = start(&volumes, None);
    put(&volumes, id, &[(1, 1)]);
    let other = plane(&f.temp.path().join("state"), &f.fake, &f.clock);
    other.volumes().delete_snapshot(id).unwrap();
    assert!(matches!(volumes.put_block(id, 2, &mut bytes(2)), Err(VolumeError::NoSnapshot(_))));
    volumes.expire_uploads().unwrap();
    assert_eq!(f.entries("volumes").len(), 0);
}

#[test]
fn many_write_at_once_and_more_uploads_than_layers_are_open() {
    let f = Fixture::new();
    let volumes = f.plane.volumes();
    let ids: Vec<_> = (0..100).map(|_| start(&volumes, None)).collect();
    let refused = volumes.start_upload(&upload(None), &mut |_, _| Ok(()));
    assert!(matches!(refused, Err(VolumeError::TooManyUploads)), "{refused:?}");
    let first = ids[0];
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let (volumes, ids) = (&volumes, &ids);
            scope.spawn(move || {
                for index in 0..24 {
                    // All write the same ones, each something else.
                    put(volumes, first, &[(index, writer + 1)]);
                }
                for id in ids.iter().skip(usize::from(writer) + 1).step_by(4) {
                    put(volumes, *id, &[(u64::from(writer), 7)]);
                }
            });
        }
    });
    volumes.complete_upload(first, 24, None).unwrap();
    for index in 0..24 {
        let block = volumes.read_block(first, index).unwrap();
        assert!((1..=4).contains(&block[0]) && block == bytes(block[0]), "{index} is of two writers");
    }
    for id in &ids[1..] {
        volumes.complete_upload(*id, 1, None).unwrap();
    }
}
