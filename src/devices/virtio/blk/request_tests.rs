use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_T_SECURE_ERASE;

use super::*;

const LIMITS: Limits = Limits { size: 1 << 20, read_only: false };

fn mem() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
}

fn segment(addr: u64, len: u32) -> Segment {
    Segment { addr: GuestAddress(addr), len }
}

fn header(mem: &GuestMemoryMmap, request_type: u32, sector: u64) {
    mem.write_obj(request_type, GuestAddress(0)).unwrap();
    mem.write_obj(sector, GuestAddress(8)).unwrap();
}

fn parse_with(
    mem: &GuestMemoryMmap,
    readable: &[Segment],
    writable: &[Segment],
) -> Result<Request, NoStatus> {
    let mut buffers = Buffers { readable: readable.to_vec(), writable: writable.to_vec() };
    parse(mem, &mut buffers, &LIMITS, Vec::new())
}

#[test]
fn a_read_keeps_its_buffers_and_gives_up_the_last_byte() {
    let mem = mem();
    header(&mem, VIRTIO_BLK_T_IN, 3);
    let request = parse_with(&mem, &[segment(0, 16)], &[segment(0x1000, 512), segment(0x3000, 513)]).unwrap();
    assert_eq!(request.status, GuestAddress(0x3200));
    assert_eq!(request.written, Written { success: 1025, failure: 0 });
    let segments = vec![segment(0x1000, 512), segment(0x3000, 512)];
    assert_eq!(request.action, Ok(Action::Io(Op::Read { offset: 1536, segments })));
}

#[test]
fn empty_descriptors_change_nothing() {
    let mem = mem();
    header(&mem, VIRTIO_BLK_T_OUT, 0);
    let request = parse_with(
        &mem,
        &[segment(0, 0), segment(0, 16), segment(5, 0), segment(0x1000, 512)],
        &[segment(0x2000, 1), segment(0x2000, 0)],
    )
    .unwrap();
    assert_eq!(request.status, GuestAddress(0x2000));
    let segments = vec![segment(5, 0), segment(0x1000, 512)];
    assert_eq!(request.action, Ok(Action::Io(Op::Write { offset: 0, segments })));
}

#[test]
fn a_transfer_of_nothing_is_nothing() {
    let mem = mem();
    for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT] {
        header(&mem, kind, 0);
        let request = parse_with(&mem, &[segment(0, 16)], &[segment(0x2000, 1)]).unwrap();
        assert_eq!(request.action, Ok(Action::Nothing));
        assert_eq!(request.written, Written { success: 1, failure: 1 });
    }
}

#[test]
fn no_writable_byte_is_no_request() {
    let mem = mem();
    assert_eq!(parse_with(&mem, &[segment(0, 16)], &[]), Err(NoStatus));
    assert_eq!(parse_with(&mem, &[segment(0, 16)], &[segment(0, 0)]), Err(NoStatus));
    assert_eq!(parse_with(&mem, &[], &[segment(u64::MAX, 2)]), Err(NoStatus));
}

#[test]
fn a_header_outside_memory_is_refused() {
    let mem = mem();
    for readable in [segment(0x1_0000, 16), segment(0xfff8, 16), segment(u64::MAX - 3, 16), segment(0, 15)] {
        let request = parse_with(&mem, &[readable], &[segment(0x2000, 1)]).unwrap();
        assert_eq!(request.action, Err(Refusal::Invalid));
    }
}

#[test]
fn ranges_are_checked_one_by_one() {
    use Refusal::{Invalid, Unsupported};
    let mem = mem();
    let disk_sectors = LIMITS.size / 512;
    // (type, sector, sectors, flags) → result
    let table = [
        (VIRTIO_BLK_T_DISCARD, 0, 8, 0, None),
        (VIRTIO_BLK_T_DISCARD, 0, 8, 1, Some(Unsupported)),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 1, None),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 2, Some(Unsupported)),
        (VIRTIO_BLK_T_WRITE_ZEROES, disk_sectors, 0, 0, None),
        (VIRTIO_BLK_T_WRITE_ZEROES, disk_sectors, 1, 0, Some(Invalid)),
        (VIRTIO_BLK_T_WRITE_ZEROES, u64::MAX, 1, 0, Some(Invalid)),
        (VIRTIO_BLK_T_WRITE_ZEROES, u64::MAX / 512, u32::MAX, 0, Some(Invalid)),
        (VIRTIO_BLK_T_DISCARD, 0, MAX_DISCARD_SECTORS + 1, 0, Some(Invalid)),
        (VIRTIO_BLK_T_SECURE_ERASE, 0, 8, 0, Some(Unsupported)),
    ];
    for (kind, sector, sectors, flags, refusal) in table {
        header(&mem, kind, 0);
        mem.write_obj(sector, GuestAddress(16)).unwrap();
        mem.write_obj(sectors, GuestAddress(24)).unwrap();
        mem.write_obj(flags, GuestAddress(28)).unwrap();
        let request = parse_with(&mem, &[segment(0, 32)], &[segment(0x2000, 1)]).unwrap();
        assert_eq!(request.action.err(), refusal, "{kind} {sector} {sectors} {flags}");
    }
}

#[test]
fn the_number_of_ranges_is_bounded() {
    let mem = mem();
    header(&mem, VIRTIO_BLK_T_DISCARD, 0);
    let with = |bytes: u32| {
        parse_with(&mem, &[segment(0, 16), segment(0x1000, bytes)], &[segment(0x2000, 1)]).unwrap().action
    };
    assert!(
        matches!(with(16 * MAX_RANGES as u32), Ok(Action::Discard(ranges)) if ranges.as_slice().len() == MAX_RANGES)
    );
    for bytes in [0, 15, 17, 16 * (MAX_RANGES as u32 + 1)] {
        assert_eq!(with(bytes), Err(Refusal::Invalid), "{bytes}");
    }
}
