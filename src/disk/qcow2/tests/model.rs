//! Random changes against bytes in memory, on every kind of image.

use proptest::prelude::*;

use super::*;

const SIZE: u64 = 600 * 1024;

#[derive(Debug, Clone)]
enum Step {
    Write { offset: u64, len: u64, byte: u8 },
    Prepared { unit: u64, units: u64, byte: u8, done: bool },
    InPlace { offset: u64, len: u64, byte: u8 },
    Zero { offset: u64, len: u64, unmap: bool },
    Discard { unit: u64, units: u64 },
    Flush,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let offset =
        prop_oneof![0..SIZE, (0..SIZE / 512).prop_map(|n| n * 512), (0..SIZE / 4096).prop_map(|n| n * 4096)];
    let len = prop_oneof![1..200u64, (1..40u64).prop_map(|n| n * 512), (1..40u64).prop_map(|n| n * 4096)];
    let unit = 0..SIZE / 4096;
    prop_oneof![
        6 => (offset.clone(), len.clone(), any::<u8>()).prop_map(|(offset, len, byte)| Step::Write { offset, len, byte }),
        3 => (unit.clone(), 1..40u64, any::<u8>(), any::<bool>())
            .prop_map(|(unit, units, byte, done)| Step::Prepared { unit, units, byte, done }),
        2 => (offset.clone(), len.clone(), any::<u8>()).prop_map(|(offset, len, byte)| Step::InPlace { offset, len, byte }),
        2 => (offset, len, any::<bool>()).prop_map(|(offset, len, unmap)| Step::Zero { offset, len, unmap }),
        2 => (unit, 1..64u64).prop_map(|(unit, units)| Step::Discard { unit, units }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ]
}

fn run(
    top: &NamedTempFile,
    base: Option<&NamedTempFile>,
    mut model: Vec<u8>,
    steps: Vec<Step>,
) -> Result<(), TestCaseError> {
    use std::os::unix::fs::FileExt;
    let mut disk = open_over(top, base);
    let clamp = |offset: u64, len: u64| (offset, len.min(SIZE - offset));
    for step in steps {
        match step {
            Step::Write { offset, len, byte } => {
                let (offset, len) = clamp(offset, len);
                disk.put(&vec![byte; len as usize], offset).unwrap();
                model[offset as usize..(offset + len) as usize].fill(byte);
            }
            Step::Prepared { unit, units, byte, done } => {
                let (offset, len) = clamp(unit * 4096, units * 4096);
                if let Some(write) = disk.prepare_write(offset, len) {
                    let len = write.extent.len;
                    let bytes = vec![byte; len as usize];
                    // One that fails writes nothing, so that the model stays simple: where the unit
                    // is mapped already, the data would show.
                    if done {
                        top.as_file().write_all_at(&bytes, write.extent.offset).unwrap();
                        model[offset as usize..(offset + len) as usize].fill(byte);
                    }
                    disk.finish_write(write, done);
                }
            }
            Step::InPlace { offset, len, byte } => {
                let (offset, len) = clamp(offset, len);
                if let Some(extent) = disk.extent(offset, len, true) {
                    prop_assert!(extent.len <= len && extent.len > 0);
                    let bytes = vec![byte; extent.len as usize];
                    top.as_file().write_all_at(&bytes, extent.offset).unwrap();
                    model[offset as usize..(offset + extent.len) as usize].fill(byte);
                }
            }
            Step::Zero { offset, len, unmap } => {
                let (offset, len) = clamp(offset, len);
                disk.write_zeroes(offset, len, unmap).unwrap();
                model[offset as usize..(offset + len) as usize].fill(0);
            }
            Step::Discard { unit, units } => {
                let (offset, len) = clamp(unit * 4096, units * 4096);
                disk.discard(offset, len).unwrap();
                let range = offset as usize..(offset + len) as usize;
                // Old contents or zeroes; the model takes over what it is.
                let now = disk.get(len as usize, offset);
                for (now, was) in now.iter().zip(&model[range.clone()]) {
                    prop_assert!(*now == 0 || now == was);
                }
                model[range].copy_from_slice(&now);
            }
            Step::Flush => disk.flush().unwrap(),
            Step::Reopen => {
                drop(disk);
                disk = open_over(top, base);
            }
        }
    }
    prop_assert!(disk.get(SIZE as usize, 0) == model, "before closing");
    drop(disk);
    // A prepared write that failed leaves its cluster behind.
    check(top.path(), true);
    prop_assert!(open_over(top, base).get(SIZE as usize, 0) == model, "after closing");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn our_overlay_over_a_shorter_base(steps in prop::collection::vec(step(), 1..60)) {
        let (base, mut model) = raw_base(SIZE / 2);
        model.resize(SIZE as usize, 0);
        run(&overlay(SIZE, Some(&base)), Some(&base), model, steps)?;
    }

    #[test]
    fn our_image_without_a_base(steps in prop::collection::vec(step(), 1..60)) {
        run(&overlay(SIZE, None), None, vec![0; SIZE as usize], steps)?;
    }

    #[test]
    fn a_standard_overlay(steps in prop::collection::vec(step(), 1..60)) {
        let (base, model) = raw_base(SIZE);
        let top = NamedTempFile::new().unwrap();
        let (path, base_path) = (top.path().to_str().unwrap(), base.path().to_str().unwrap());
        let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base_path, path];
        if qemu_img(&create).is_some() {
            run(&top, Some(&base), model, steps)?;
        }
    }
}
