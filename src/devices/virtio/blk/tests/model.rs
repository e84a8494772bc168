//! Random streams of requests against a disk of plain bytes in memory.

use proptest::prelude::*;

use super::driver::{DATA, Driver, SIZE, Used, WRITE, temp_disk};
use super::*;

const SECTORS: u64 = 256;

#[derive(Debug, Clone)]
enum Step {
    Read { sector: u64, count: u32 },
    Write { sector: u64, count: u32, byte: u8 },
    Zero { sector: u64, count: u32, unmap: bool },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let sector = 0..SECTORS + 4;
    let count = 1..24u32;
    prop_oneof![
        4 => (sector.clone(), count.clone()).prop_map(|(sector, count)| Step::Read { sector, count }),
        4 => (sector.clone(), count.clone(), any::<u8>())
            .prop_map(|(sector, count, byte)| Step::Write { sector, count, byte }),
        1 => (sector, count, any::<bool>()).prop_map(|(sector, count, unmap)| Step::Zero { sector, count, unmap }),
        1 => Just(Step::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// One request at a time, so that the order is that of the model.
    #[test]
    fn requests_do_what_the_model_does(steps in prop::collection::vec(step(), 1..40), event_idx: bool) {
        let mut model = vec![0u8; (SECTORS * 512) as usize];
        let mut driver = Driver::with(&temp_disk(SECTORS * 512, false), None, event_idx, !0);
        for step in steps {
            match step {
                Step::Read { sector, count } => {
                    let used = driver.transact(VIRTIO_BLK_T_IN, sector, &split(count), WRITE);
                    match slice(&mut model, sector, count) {
                        Some(expected) => {
                            prop_assert_eq!((used.len, used.status), (count * 512 + 1, OK));
                            prop_assert_eq!(&driver.bytes(DATA, expected.len())[..], &*expected);
                        }
                        None => prop_assert_eq!((used.len, used.status), (0, IOERR)),
                    }
                }
                Step::Write { sector, count, byte } => {
                    driver.fill(DATA, &vec![byte; count as usize * 512]);
                    let used = driver.transact(VIRTIO_BLK_T_OUT, sector, &split(count), 0);
                    check(used, slice(&mut model, sector, count).map(|range| range.fill(byte)))?;
                }
                Step::Zero { sector, count, unmap } => {
                    driver.fill(DATA, &sector.to_le_bytes());
                    driver.fill(DATA + 8, &count.to_le_bytes());
                    driver.fill(DATA + 12, &u32::from(unmap).to_le_bytes());
                    let used = driver.transact(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, 16)], 0);
                    check(used, slice(&mut model, sector, count).map(|range| range.fill(0)))?;
                }
                Step::Flush => check(driver.transact(VIRTIO_BLK_T_FLUSH, 0, &[], 0), Some(()))?,
            }
        }
        prop_assert!(!driver.broken());
    }

    /// Whatever bytes a guest puts into its rings and buffers, the worker survives.
    #[test]
    fn random_descriptors_never_hurt(
        descriptors in prop::collection::vec((0u64..0x40_0000, 0u32..0x2000, 0u16..8, 0u16..SIZE + 8), 1..64),
        headers in prop::collection::vec((0u32..16, 0..SECTORS * 2), 16),
        heads in prop::collection::vec(0..80u16, 1..64),
    ) {
        let mut driver = Driver::new(&temp_disk(SECTORS * 512, false));
        for (i, &(kind, sector)) in headers.iter().enumerate() {
            driver.put_header(i as u16, kind, sector);
        }
        for (i, &(addr, len, flags, next)) in descriptors.iter().enumerate() {
            // Most point at a header, so that something happens at all.
            let (addr, len) = if i % 3 == 0 { (0x1_0000 + 0x400 * (addr % 16), 16) } else { (addr | 0x8_0000, len) };
            driver.put_descriptor(i as u16, addr, len, flags, next % 80);
        }
        for head in heads {
            driver.offer(head);
        }
        driver.notify();
        driver.run();
        driver.drain();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_chain_makes_a_request_within_the_limits_or_none(data in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzzing::request(&data);
    }
}

fn split(count: u32) -> Vec<(u64, u32)> {
    let len = count * 512;
    let first = (len / 3).max(1);
    vec![(DATA, first), (DATA + u64::from(first), len - first)]
}

fn slice(model: &mut [u8], sector: u64, count: u32) -> Option<&mut [u8]> {
    let start = usize::try_from(sector).ok()? * 512;
    model.get_mut(start..start + count as usize * 512)
}

fn check(used: Used, done: Option<()>) -> Result<(), TestCaseError> {
    prop_assert_eq!(used.len, 1);
    prop_assert_eq!(used.status, if done.is_some() { OK } else { IOERR });
    Ok(())
}
