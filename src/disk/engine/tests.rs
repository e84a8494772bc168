//! Every engine on every kind of disk does the same.

use proptest::prelude::*;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::faulty::{FaultyDisk, Operation, host_error};
use crate::{Backing, Format, Layer, RawDisk, create_overlay, open};

const SIZE: u64 = 1 << 20;

fn mem() -> GuestMemoryMmap {
    // Two neighbours, so that buffers can span them.
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20), (GuestAddress(1 << 20), 3 << 20)]).unwrap()
}

/// A disk with the files that it lives on.
struct Subject {
    disk: Arc<dyn Disk>,
    top: NamedTempFile,
    _base: Option<NamedTempFile>,
}

fn layer(file: &NamedTempFile, format: Format) -> Layer {
    Layer { file: file.reopen().unwrap(), format }
}

fn raw(size: u64) -> Subject {
    let top = NamedTempFile::new().unwrap();
    top.as_file().set_len(size).unwrap();
    let disk = open(vec![layer(&top, Format::Raw)], false).unwrap();
    Subject { disk, top, _base: None }
}

/// An overlay over zeroes that are really there, half as long.
fn overlay(size: u64) -> Subject {
    let (top, base) = (NamedTempFile::new().unwrap(), NamedTempFile::new().unwrap());
    base.as_file().set_len(size / 2).unwrap();
    let backing = Backing { path: base.path().to_str().unwrap().to_owned(), format: Format::Raw };
    create_overlay(top.reopen().unwrap(), size, Some(&backing)).unwrap();
    let disk = open(vec![layer(&top, Format::Qcow2), layer(&base, Format::Raw)], false).unwrap();
    Subject { disk, top, _base: Some(base) }
}

/// `None` where the kernel has no io_uring.
fn uring(disk: &Arc<dyn Disk>, depth: u16) -> Option<Box<dyn Engine>> {
    match UringEngine::new(Arc::clone(disk), mem(), depth) {
        Ok(engine) => Some(Box::new(engine)),
        Err(error) => {
            println!("SKIPPED: no io_uring: {error}");
            None
        }
    }
}

fn engines(disk: &Arc<dyn Disk>) -> Vec<(Box<dyn Engine>, GuestMemoryMmap)> {
    let (a, b) = (mem(), mem());
    let mut engines: Vec<(Box<dyn Engine>, _)> =
        vec![(Box::new(SyncEngine::new(Arc::clone(disk), a.clone())), a)];
    if let Ok(engine) = UringEngine::new(Arc::clone(disk), b.clone(), 8) {
        engines.push((Box::new(engine), b));
    }
    engines
}

fn segment(addr: u64, len: u32) -> Segment {
    Segment { addr: GuestAddress(addr), len }
}

/// All completions of what is in flight.
fn finish(engine: &mut dyn Engine) -> Vec<Completion> {
    engine.kick();
    let mut all = Vec::new();
    loop {
        while let Some(completion) = engine.poll() {
            all.push(completion);
        }
        if engine.in_flight() == 0 {
            return all;
        }
        engine.wait();
    }
}

fn one(engine: &mut dyn Engine, op: Op) -> Result<(), DiskError> {
    engine.submit(77, op);
    let mut all = finish(engine);
    assert_eq!(all.len(), 1);
    let completion = all.remove(0);
    assert_eq!(completion.tag, 77);
    assert!(completion.segments.is_empty());
    completion.result
}

#[test]
fn what_is_written_is_read_through_any_engine() {
    for subject in [raw(SIZE), overlay(SIZE)] {
        for (mut engine, mem) in engines(&subject.disk) {
            let data: Vec<u8> = (0..300_000).map(|i| (i / 100 % 251) as u8).collect();
            // Across the border of the regions, and across clusters and units.
            let from = (1 << 20) - 150_000;
            mem.write_slice(&data, GuestAddress(from)).unwrap();
            let segments = vec![segment(from, 1000), segment(from + 1000, 299_000)];
            one(&mut *engine, Op::Write { offset: 100_352, segments }).unwrap();
            one(&mut *engine, Op::Flush).unwrap();
            let segments = vec![segment(2 << 20, 200_000), segment((2 << 20) + 200_000, 100_000)];
            one(&mut *engine, Op::Read { offset: 100_352, segments }).unwrap();
            let mut back = vec![0; data.len()];
            mem.read_slice(&mut back, GuestAddress(2 << 20)).unwrap();
            assert!(back == data);
            one(&mut *engine, Op::WriteZeroes { offset: 0, len: SIZE, unmap: true }).unwrap();
            one(&mut *engine, Op::Discard { offset: 4096, len: 8192 }).unwrap();
            one(&mut *engine, Op::Read { offset: 100_352, segments: vec![segment(2 << 20, 300_000)] })
                .unwrap();
            mem.read_slice(&mut back, GuestAddress(2 << 20)).unwrap();
            assert!(back.iter().all(|&b| b == 0));
        }
    }
}

#[test]
fn buffers_and_ranges_that_do_not_exist_are_errors() {
    for subject in [raw(SIZE), overlay(SIZE)] {
        for (mut engine, _) in engines(&subject.disk) {
            for addr in [4 << 20, (4 << 20) - 1, u64::MAX - 10] {
                let segments = || vec![segment(0, 512), segment(addr, 512)];
                let result = one(&mut *engine, Op::Read { offset: 0, segments: segments() });
                assert!(matches!(result, Err(DiskError::BadBuffer)), "{result:?}");
                let result = one(&mut *engine, Op::Write { offset: 0, segments: segments() });
                assert!(matches!(result, Err(DiskError::BadBuffer)), "{result:?}");
            }
            for offset in [SIZE, SIZE - 511, u64::MAX - 100] {
                let segments = || vec![segment(0, 512)];
                let ops = [
                    Op::Read { offset, segments: segments() },
                    Op::Write { offset, segments: segments() },
                    Op::Discard { offset, len: 512 },
                    Op::WriteZeroes { offset, len: 512, unmap: false },
                ];
                for op in ops {
                    let result = one(&mut *engine, op);
                    assert!(matches!(result, Err(DiskError::OutOfRange { .. })), "{result:?}");
                }
            }
            one(&mut *engine, Op::Read { offset: 0, segments: vec![] }).unwrap();
            one(&mut *engine, Op::Write { offset: SIZE, segments: vec![segment(0, 0)] }).unwrap();
            one(&mut *engine, Op::Discard { offset: 0, len: 0 }).unwrap();
        }
    }
}

#[test]
fn a_read_only_disk_refuses_changes_through_any_engine() {
    let subject = raw(SIZE);
    let disk: Arc<dyn Disk> = Arc::new(RawDisk::new(subject.top.reopen().unwrap(), true).unwrap());
    for (mut engine, _) in engines(&disk) {
        let segments = vec![segment(0, 512)];
        assert!(matches!(one(&mut *engine, Op::Write { offset: 0, segments }), Err(DiskError::ReadOnly)));
        assert!(matches!(one(&mut *engine, Op::Discard { offset: 0, len: 512 }), Err(DiskError::ReadOnly)));
        one(&mut *engine, Op::Flush).unwrap();
    }
}

#[test]
fn far_more_requests_than_the_ring_holds_all_complete() {
    for subject in [raw(64 << 20), overlay(64 << 20)] {
        let Some(mut engine) = uring(&subject.disk, 4) else { return };
        for tag in 0..500u64 {
            let offset = tag * 128 * 1024;
            let segments = vec![segment(4096, 4096), segment(65536, 130 * 1024 / 512 * 512)];
            engine.submit(tag, if tag % 2 == 0 { Op::Write { offset, segments } } else { Op::Flush });
        }
        assert_eq!(engine.in_flight(), 500);
        let mut tags: Vec<u64> = finish(&mut *engine)
            .into_iter()
            .map(|completion| {
                completion.result.unwrap();
                completion.tag
            })
            .collect();
        tags.sort_unstable();
        assert!(tags.into_iter().eq(0..500));
    }
}

#[test]
fn a_file_that_shrinks_gives_errors_and_no_hang() {
    let subject = raw(SIZE);
    for (mut engine, _) in engines(&subject.disk) {
        subject.top.as_file().set_len(10_000).unwrap();
        let result = one(&mut *engine, Op::Read { offset: 8192, segments: vec![segment(0, 4096)] });
        assert!(matches!(result, Err(DiskError::Io { .. })), "{result:?}");
        let result = one(&mut *engine, Op::Read { offset: 65536, segments: vec![segment(0, 4096)] });
        assert!(matches!(result, Err(DiskError::Io { .. })), "{result:?}");
        subject.top.as_file().set_len(SIZE).unwrap();
    }
}

#[test]
fn the_end_of_an_overlay_file_reads_as_zeroes() {
    let subject = overlay(SIZE);
    let Some(_) = uring(&subject.disk, 4) else { return };
    for (mut engine, mem) in engines(&subject.disk) {
        one(&mut *engine, Op::Write { offset: 0, segments: vec![segment(0, 4096)] }).unwrap();
        let extent = subject.disk.extent(0, 4096, false).unwrap();
        // As if the last cluster had never been written to its end.
        subject.top.as_file().set_len(extent.offset + 1024).unwrap();
        mem.write_slice(&[0xee; 4096], GuestAddress(8192)).unwrap();
        one(&mut *engine, Op::Read { offset: 0, segments: vec![segment(8192, 4096)] }).unwrap();
        let mut back = [1; 4096];
        mem.read_slice(&mut back, GuestAddress(8192)).unwrap();
        assert_eq!(back, [0; 4096]);
    }
}

#[test]
fn a_prepared_write_does_not_keep_a_blocking_one_waiting_for_ever() {
    let subject = overlay(SIZE);
    let Some(mut engine) = uring(&subject.disk, 8) else { return };
    // Whole units go to the ring; the odd sector, in the same cluster, has to wait for them.
    for tag in 0..20 {
        engine.submit(tag, Op::Write { offset: 4096 * tag, segments: vec![segment(0, 4096)] });
        engine.submit(100, Op::Write { offset: 90_112 + 512, segments: vec![segment(0, 512)] });
        engine.submit(101, Op::WriteZeroes { offset: 0, len: 4096, unmap: true });
    }
    assert!(finish(&mut *engine).into_iter().all(|completion| completion.result.is_ok()));
}

#[test]
fn dropping_an_engine_with_requests_on_their_way_is_safe() {
    let subject = overlay(64 << 20);
    for _ in 0..20 {
        let Some(mut engine) = uring(&subject.disk, 4) else { return };
        for tag in 0..64 {
            let segments = vec![segment(0, 65536), segment(65536, 65536)];
            engine.submit(tag, Op::Write { offset: tag << 17, segments });
        }
        engine.kick();
        drop(engine);
        // What was prepared is free again.
        let mut engine = SyncEngine::new(Arc::clone(&subject.disk), mem());
        one(&mut engine, Op::Write { offset: 512, segments: vec![segment(0, 512)] }).unwrap();
        one(&mut engine, Op::WriteZeroes { offset: 0, len: 64 << 20, unmap: true }).unwrap();
    }
}

#[test]
fn errors_of_the_host_reach_the_request_they_belong_to() {
    let disk = Arc::new(FaultyDisk::new(raw(SIZE).disk));
    disk.fail(|operation| {
        matches!(operation, Operation::Read { offset: 512, .. } | Operation::Flush).then(host_error)
    });
    let subject: Arc<dyn Disk> = disk.clone();
    for (mut engine, _) in engines(&subject) {
        for (tag, offset) in [0, 512, 1024].into_iter().enumerate() {
            engine.submit(tag as u64, Op::Read { offset, segments: vec![segment(0, 512)] });
        }
        engine.submit(3, Op::Flush);
        engine.submit(4, Op::Discard { offset: 0, len: 512 });
        let mut failed: Vec<u64> =
            finish(&mut *engine).into_iter().filter(|c| c.result.is_err()).map(|c| c.tag).collect();
        failed.sort_unstable();
        assert_eq!(failed, [1, 3]);
        assert_eq!(disk.take_log().len(), 5);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u64, u8),
    Read(u64, u64),
    Zero(u64, u64, bool),
    Flush,
}

/// Ranges in sectors of 512 bytes.
fn step() -> impl Strategy<Value = Step> {
    let sector = prop_oneof![0..200u64, (0..25u64).prop_map(|n| n * 8)];
    let count = prop_oneof![1..30u64, (1..8u64).prop_map(|n| n * 8)];
    prop_oneof![
        5 => (sector.clone(), count.clone(), any::<u8>()).prop_map(|(s, n, b)| Step::Write(s, n, b)),
        3 => (sector.clone(), count.clone()).prop_map(|(s, n)| Step::Read(s, n)),
        1 => (sector, count, any::<bool>()).prop_map(|(s, n, u)| Step::Zero(s, n, u)),
        1 => Just(Step::Flush),
    ]
}

/// Carries steps out in batches: a batch ends where two of its steps touch the same sectors.
fn stream(mut engine: Box<dyn Engine>, mem: &GuestMemoryMmap, steps: &[Step]) -> Result<(), TestCaseError> {
    const SLOT: u64 = 65536;
    let mut model = vec![0u8; 256 * 512];
    let mut busy = vec![false; 256];
    let mut expected: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut slot = 0;
    for (index, step) in steps.iter().chain([&Step::Flush]).enumerate() {
        let (sector, count) = match *step {
            Step::Write(s, n, _) | Step::Read(s, n) | Step::Zero(s, n, _) => (s, n),
            Step::Flush => (0, 0),
        };
        let range = sector as usize..(sector + count) as usize;
        if slot == 32 || busy[range.clone()].contains(&true) || index == steps.len() {
            for completion in finish(&mut *engine) {
                completion.result.unwrap();
            }
            for (at, bytes) in expected.drain(..) {
                let mut back = vec![0; bytes.len()];
                mem.read_slice(&mut back, GuestAddress(at)).unwrap();
                prop_assert!(back == bytes);
            }
            busy.fill(false);
            slot = 0;
        }
        busy[range.clone()].fill(true);
        let bytes = range.start * 512..range.end * 512;
        let (addr, offset, len) = (slot * SLOT, sector * 512, count * 512);
        let third = (len / 3) as u32;
        let segments = || vec![segment(addr, third), segment(addr + u64::from(third), len as u32 - third)];
        match *step {
            Step::Write(_, _, byte) => {
                mem.write_slice(&vec![byte; bytes.len()], GuestAddress(addr)).unwrap();
                model[bytes].fill(byte);
                engine.submit(index as u64, Op::Write { offset, segments: segments() });
            }
            Step::Read(..) => {
                expected.push((addr, model[bytes].to_vec()));
                engine.submit(index as u64, Op::Read { offset, segments: segments() });
            }
            Step::Zero(_, _, unmap) => {
                model[bytes].fill(0);
                engine.submit(index as u64, Op::WriteZeroes { offset, len, unmap });
            }
            Step::Flush => engine.submit(index as u64, Op::Flush),
        }
        slot += 1;
    }
    finish(&mut *engine);
    for (at, chunk) in model.chunks(65536).enumerate() {
        let offset = at as u64 * 65536;
        one(&mut *engine, Op::Read { offset, segments: vec![segment(0, chunk.len() as u32)] }).unwrap();
        let mut back = vec![0; chunk.len()];
        mem.read_slice(&mut back, GuestAddress(0)).unwrap();
        prop_assert!(back == chunk);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streams_of_requests_do_what_the_model_does(
        steps in prop::collection::vec(step(), 1..80), qcow2: bool, depth in 1..40u16, sync: bool
    ) {
        let subject = if qcow2 { overlay(256 * 512) } else { raw(256 * 512) };
        let mem = mem();
        let engine: Box<dyn Engine> = match UringEngine::new(Arc::clone(&subject.disk), mem.clone(), depth) {
            Ok(engine) if !sync => Box::new(engine),
            _ => Box::new(SyncEngine::new(Arc::clone(&subject.disk), mem.clone())),
        };
        stream(engine, &mem, &steps)?;
    }
}

/// A queue each for four threads on one overlay, in blocks of a page or a sector.
#[test]
fn four_engines_on_one_overlay() {
    const BLOCKS: u64 = 4 * 300;
    for block in [4096u64, 512] {
        let subject = overlay(BLOCKS * block);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let disk = Arc::clone(&subject.disk);
                scope.spawn(move || {
                    let mem = mem();
                    mem.write_slice(&[thread as u8 + 1; 4096], GuestAddress(0)).unwrap();
                    let mut engine = new_engine(disk, mem, 16).unwrap();
                    for n in 0..BLOCKS / 4 {
                        let at = ((n * 71 % (BLOCKS / 4)) * 4 + thread) * block;
                        let segments = vec![segment(0, block as u32)];
                        engine.submit(n, Op::Write { offset: at, segments });
                        if n % 16 == 15 {
                            engine.submit(n, Op::Flush);
                            for completion in finish(&mut *engine) {
                                completion.result.unwrap();
                            }
                        }
                    }
                    finish(&mut *engine);
                });
            }
        });
        let mut all = vec![0; (BLOCKS * block) as usize];
        subject.disk.read_exact_at(&mut all, 0).unwrap();
        for (n, chunk) in all.chunks(block as usize).enumerate() {
            assert!(chunk.iter().all(|&b| usize::from(b) == n % 4 + 1), "block {n}");
        }
    }
}

#[test]
fn spare_engine_serves_one_disk_after_another_and_lets_go_of_each() {
    let mem = mem();
    let mut engine = new_spare_engine(mem.clone(), 8).unwrap();
    let read = |segments| Op::Read { offset: 0, segments };
    let segment = || vec![Segment { addr: GuestAddress(0), len: 512 }];
    for pattern in [1u8, 2] {
        let subject = overlay(SIZE);
        let disk = Arc::clone(&subject.disk);
        engine.serve(Arc::clone(&disk));
        mem.write_slice(&[pattern; 512], GuestAddress(0)).unwrap();
        engine.submit(1, Op::Write { offset: 0, segments: segment() });
        engine.kick();
        while engine.in_flight() > 0 {
            engine.wait();
            while let Some(done) = engine.poll() {
                done.result.unwrap();
            }
        }
        // Still on its way when the disk goes.
        engine.submit(2, read(segment()));
        engine.kick();
        park(&mut *engine);
        assert_eq!(engine.in_flight(), 0);
        drop(subject.disk);
        assert_eq!(Arc::strong_count(&disk), 1, "the engine has let go of it");
        let mut found = [0; 512];
        disk.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, [pattern; 512]);
    }
    engine.submit(3, read(segment()));
    engine.kick();
    engine.wait();
    assert!(engine.poll().unwrap().result.is_err(), "there is nothing to read");
}
