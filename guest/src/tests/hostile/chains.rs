//! Descriptor chains that lead nowhere, everywhere or in circles.

use super::{Answer, answer, case};
use crate::memory::{self, Buffer};
use crate::report::{Failure, Outcome, ensure, ensure_eq, println};
use crate::virtio::blk::{Blk, HEADER, S_OK, SECTOR, STATUS_UNTOUCHED, T_IN, T_OUT, fill_header};
use crate::virtio::net::{HEADER as NET_HEADER, Net};
use crate::virtio::{F_INDIRECT, F_INDIRECT_DESC, F_NEXT, F_WRITE, Part, Transport, write_desc};

/// The pieces of a good read request.
struct Pieces {
    header: Buffer,
    data: Buffer,
    status: Buffer,
}

impl Pieces {
    fn new() -> Self {
        let pieces = Pieces {
            header: memory::allocate(HEADER),
            data: memory::allocate(SECTOR),
            status: memory::allocate(1),
        };
        fill_header(pieces.header, T_IN, 0);
        pieces.status.fill(STATUS_UNTOUCHED);
        pieces
    }

    fn parts(&self) -> [Part; 3] {
        [Part::out(self.header), Part::to_fill(self.data), Part::to_fill(self.status)]
    }
}

fn part(address: u64, len: u32, flags: u16) -> Part {
    Part { address, len, flags }
}

/// Offers `head` and waits for the answer.
fn go(blk: &mut Blk, head: u16) -> Outcome<Answer> {
    blk.queue.offer(head);
    blk.queue.publish();
    blk.queue.kick();
    answer(&blk.transport, &mut blk.queue)
}

/// Submits `parts` as they are.
fn submit(blk: &mut Blk, parts: &[Part]) -> Outcome<Answer> {
    let head = blk.queue.chain(parts);
    go(blk, head)
}

/// Addresses that are no memory, and lengths that leave it.
const NOWHERE: [(&str, u64, u32); 7] = [
    ("past RAM", 0x0000_7fff_0000_0000, 512),
    ("in the hole", 0xc000_0000, 512),
    ("over the local APIC", 0xfee0_0000, 512),
    ("across the end of RAM", 0xbfff_fe00, 0x1000),
    ("around the end of all", u64::MAX - 15, 512),
    ("at the end of all", u64::MAX, 1),
    ("of 4 GiB", 0, u32::MAX),
];

/// Chains of the block device.
pub fn blk_chains() -> Outcome {
    case("descriptor that follows itself", |blk| {
        let pieces = Pieces::new();
        blk.queue.set_desc(0, Part { flags: F_NEXT, ..Part::out(pieces.header) }, 0);
        go(blk, 0)
    })?;
    case("circle of writable descriptors", |blk| {
        let [header, data, _] = Pieces::new().parts();
        blk.queue.set_desc(0, Part { flags: F_NEXT, ..header }, 1);
        blk.queue.set_desc(1, Part { flags: F_NEXT | F_WRITE, ..data }, 2);
        blk.queue.set_desc(2, Part { flags: F_NEXT | F_WRITE, ..data }, 1);
        go(blk, 0)
    })?;
    case("next past the table", |blk| {
        let [header, data, _] = Pieces::new().parts();
        blk.queue.set_desc(0, Part { flags: F_NEXT, ..header }, 1);
        blk.queue.set_desc(1, Part { flags: F_NEXT | F_WRITE, ..data }, 0xffff);
        go(blk, 0)
    })?;
    for (what, address, len) in NOWHERE {
        case(format_args!("data {what}"), |blk| {
            let [header, _, status] = Pieces::new().parts();
            submit(blk, &[header, part(address, len, F_WRITE), status])
        })?;
        case(format_args!("header {what}"), |blk| {
            let [_, data, status] = Pieces::new().parts();
            submit(blk, &[part(address, len, 0), data, status])
        })?;
        case(format_args!("status {what}"), |blk| {
            let [header, data, _] = Pieces::new().parts();
            submit(blk, &[header, data, part(address, len, F_WRITE)])
        })?;
    }
    case("longest chain", |blk| {
        let [header, data, _] = Pieces::new().parts();
        let last = blk.queue.size - 1;
        blk.queue.set_desc(0, Part { flags: F_NEXT, ..header }, 1);
        for n in 1..last {
            blk.queue.set_desc(n, Part { flags: F_NEXT | F_WRITE, ..data }, n + 1);
        }
        blk.queue.set_desc(last, part(memory::allocate(1).address, 1, F_WRITE), 0);
        go(blk, 0)
    })
}

/// Requests that are no requests.
pub fn blk_requests() -> Outcome {
    let one =
        |what: &str, make: fn(&Pieces) -> [Part; 1]| case(what, |blk| submit(blk, &make(&Pieces::new())));
    one("header alone", |p| [Part::out(p.header)])?;
    one("status alone", |p| [Part::to_fill(p.status)])?;
    one("nothing", |p| [part(p.header.address, 0, 0)])?;
    one("header that the device may write", |p| [Part::to_fill(p.header)])?;
    let two =
        |what: &str, make: fn(&Pieces) -> [Part; 2]| case(what, |blk| submit(blk, &make(&Pieces::new())));
    two("short header", |p| [Part::out(p.header.part(0, 15)), Part::to_fill(p.status)])?;
    two("no status", |p| [Part::out(p.header), Part::out(p.data)])?;
    two("status of no bytes", |p| [Part::out(p.header), part(p.status.address, 0, F_WRITE)])?;
    two("status first", |p| [Part::to_fill(p.status), Part::out(p.header)])?;
    let three =
        |what: &str, make: fn(&Pieces) -> [Part; 3]| case(what, |blk| submit(blk, &make(&Pieces::new())));
    three("read into what the device may not write", |p| {
        [Part::out(p.header), Part::out(p.data), Part::to_fill(p.status)]
    })?;
    three("write from what the device may write", |p| {
        fill_header(p.header, T_OUT, 0);
        p.parts()
    })?;
    three("data of no bytes", |p| {
        [Part::out(p.header), part(p.data.address, 0, F_WRITE), Part::to_fill(p.status)]
    })?;
    three("data over the rings", |p| {
        // The header says read, and the data land on the header itself.
        [Part::out(p.header), part(p.header.address, 512, F_WRITE), Part::to_fill(p.status)]
    })?;
    three("header in two", |p| {
        [Part::out(p.header.part(0, 3)), Part::out(p.header.part(3, 13)), Part::to_fill(p.status)]
    })
}

/// Indirect tables.
pub fn blk_indirect() -> Outcome {
    if Blk::start(0)?.features & F_INDIRECT_DESC == 0 {
        println!("  not offered");
        return Ok(());
    }
    let with_table = |what: &str, len: u32, flags: u16, fill: fn(Buffer, &Pieces)| {
        case(what, |blk| {
            let table = memory::allocate(0x1000);
            fill(table, &Pieces::new());
            submit(blk, &[part(table.address, len, flags)])
        })
    };
    /// A good request in the table.
    fn good(table: Buffer, pieces: &Pieces) {
        for (n, part) in (0_u16..).zip(pieces.parts()) {
            let flags = part.flags | if n < 2 { F_NEXT } else { 0 };
            write_desc(table.address + 16 * u64::from(n), Part { flags, ..part }, n + 1);
        }
    }
    with_table("table of no bytes", 0, F_INDIRECT, good)?;
    with_table("table of half an entry", 8, F_INDIRECT, good)?;
    with_table("table that is no multiple", 47, F_INDIRECT, good)?;
    with_table("table cut short", 32, F_INDIRECT, good)?;
    with_table("table of 4 GiB", 0xffff_fff0, F_INDIRECT, good)?;
    with_table("table that the device may write", 48, F_INDIRECT | F_WRITE, good)?;
    with_table("table within a table", 48, F_INDIRECT, |table, pieces| {
        good(table, pieces);
        write_desc(table.address, part(table.address, 48, F_INDIRECT), 0);
    })?;
    with_table("circle within a table", 48, F_INDIRECT, |table, pieces| {
        let [header, data, _] = pieces.parts();
        write_desc(table.address, Part { flags: F_NEXT, ..header }, 1);
        write_desc(table.address + 16, Part { flags: F_NEXT | F_WRITE, ..data }, 1);
    })?;
    with_table("next past the table", 48, F_INDIRECT, |table, pieces| {
        let [header, ..] = pieces.parts();
        write_desc(table.address, Part { flags: F_NEXT, ..header }, 3);
    })?;
    case("table and more behind it", |blk| {
        let (table, pieces) = (memory::allocate(48), Pieces::new());
        good(table, &pieces);
        blk.queue.set_desc(0, part(table.address, 48, F_INDIRECT | F_NEXT), 1);
        blk.queue.set_desc(1, Part::to_fill(pieces.status), 0);
        go(blk, 0)
    })?;
    for (what, address, _) in NOWHERE.into_iter().filter(|(what, ..)| *what != "of 4 GiB") {
        case(format_args!("table {what}"), |blk| submit(blk, &[part(address, 48, F_INDIRECT)]))?;
    }
    // Without the feature the flag means nothing good either.
    memory::release_all();
    let mut blk = Blk::start_with(0, 0, 16)?;
    let (table, pieces) = (memory::allocate(48), Pieces::new());
    good(table, &pieces);
    let answer = submit(&mut blk, &[part(table.address, 48, F_INDIRECT)])?;
    println!("  table without the feature: {answer:?}");
    super::aftermath("table without the feature")
}

/// Frames of the network device, sent and to be received.
pub fn net_frames() -> Outcome {
    let frame_case = |what: &str, parts: fn(Buffer) -> [Part; 2]| -> Outcome {
        memory::release_all();
        let mut net = Net::start(0)?;
        let buffer = memory::allocate(0x2_0000);
        buffer.fill(0xff);
        net.tx.submit(&parts(buffer));
        report(what, &net.transport, answer(&net.transport, &mut net.tx))?;
        working(what)
    };
    frame_case("nothing but half a header", |b| [Part::out(b.part(0, 6)), part(b.address, 0, 0)])?;
    frame_case("nothing at all", |b| [part(b.address, 0, 0), part(b.address, 0, 0)])?;
    frame_case("header of all ones", |b| [Part::out(b.part(0, NET_HEADER)), Part::out(b.part(64, 60))])?;
    frame_case("header split in odd pieces", |b| [Part::out(b.part(0, 5)), Part::out(b.part(5, 100))])?;
    frame_case("frame of one byte", |b| {
        b.fill(0);
        [Part::out(b.part(0, NET_HEADER)), Part::out(b.part(64, 1))]
    })?;
    frame_case("frame of 128 KiB", |b| {
        b.fill(0);
        [Part::out(b.part(0, NET_HEADER)), Part::out(b.part(64, 0x1_ffc0))]
    })?;
    frame_case("frame that the device may write", |b| {
        [Part::out(b.part(0, NET_HEADER)), Part::to_fill(b.part(64, 60))]
    })?;
    frame_case("frame past RAM", |b| [Part::out(b.part(0, NET_HEADER)), part(0x7fff_0000_0000, 60, 0)])?;
    frame_case("frame around the end of all", |b| {
        [Part::out(b.part(0, NET_HEADER)), part(u64::MAX - 15, 60, 0)]
    })?;
    offload_requests()?;
    // Buffers to receive into that are no use: answered only when a frame comes, so only looked at.
    for (what, address, len, flags) in [
        ("buffer of one byte", 0x200_0000, 1, F_WRITE),
        ("buffer of no bytes", 0x200_0000, 0, F_WRITE),
        ("buffer past RAM", 0x7fff_0000_0000, 2048, F_WRITE),
        ("buffer around the end of all", u64::MAX - 15, 2048, F_WRITE),
        ("buffer that the device may not write", 0x200_0000, 2048, 0),
    ] {
        memory::release_all();
        let mut net = Net::start(0)?;
        for _ in 0..net.rx.size {
            let head = net.rx.chain(&[part(address, len, flags)]);
            net.rx.offer(head);
        }
        net.rx.publish();
        net.rx.kick();
        let request = super::super::packet::Frame::arp_request(net.mac, [0; 4], [169, 254, 169, 254]);
        let sent = net.send(request.bytes());
        println!("  {what}: sent {}, status {:#x}", sent.is_ok(), net.transport.status());
        working(what)?;
    }
    Ok(())
}

/// Headers that ask for segmentation and checksums of nonsense.
fn offload_requests() -> Outcome {
    for flags in [0, 1, 0xff] {
        for gso in [0, 1, 3, 4, 5, 0x80, 0xff] {
            for (header_len, gso_size, start, offset) in [
                (0_u16, 0_u16, 0_u16, 0_u16),
                (0xffff, 1, 0xffff, 0xffff),
                (14, 0xffff, 58, 2),
                (1, 0, 10, 0xffff),
            ] {
                memory::release_all();
                let mut net = Net::start(0)?;
                let frame = memory::allocate(200);
                frame.write(0, &[flags, gso]);
                for (at, value) in [(2, header_len), (4, gso_size), (6, start), (8, offset), (10, 0xffff)] {
                    frame.write(at, &value.to_le_bytes());
                }
                net.tx.submit(&[Part::out(frame)]);
                answer(&net.transport, &mut net.tx)
                    .map_err(|f| Failure::new(format_args!("flags {flags:#x} gso {gso:#x}: {f}")))?;
            }
        }
    }
    working("offloads")
}

fn report(what: &str, transport: &Transport, answer: Outcome<Answer>) -> Outcome {
    let answer = answer.map_err(|failure| Failure::new(format_args!("{what}: {failure}")))?;
    println!("  {what}: {answer:?}, status {:#x}", transport.status());
    Ok(())
}

/// The network device takes a frame after a reset, and the disk is as before.
fn working(what: &str) -> Outcome {
    memory::release_all();
    let mut net = Net::start(0).map_err(|f| Failure::new(format_args!("{what}: afterwards: {f}")))?;
    let request = super::super::packet::Frame::arp_request(net.mac, [0; 4], [169, 254, 169, 254]);
    net.send(request.bytes()).map_err(|f| Failure::new(format_args!("{what}: afterwards: {f}")))?;
    ensure!(!net.transport.needs_reset(), "{what}: broken afterwards");
    if let Ok(mut blk) = Blk::start(0) {
        let status = blk.request(T_IN, 0, Some(memory::allocate(SECTOR)))?;
        ensure_eq!(status, S_OK, "{what}: status of the disk");
    }
    Ok(())
}
