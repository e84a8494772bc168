use std::io::Write;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::firmware::e820;

const RAM: u64 = 64 * MIB;
const RSDP: GuestAddress = GuestAddress(layout::ACPI_START);

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap()
}

fn read(mem: &GuestMemoryMmap, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    mem.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Boots `kernel` with `initrds` and `cmdline` into `mem`.
fn boot(
    mem: &GuestMemoryMmap,
    kernel: &[u8],
    initrds: &[&[u8]],
    cmdline: &str,
) -> Result<EntryPoint, BootError> {
    let initrds: Vec<_> = initrds.iter().map(|bytes| Blob::Bytes(bytes)).collect();
    let e820 = e820::map(RAM);
    let image = BootImage {
        kernel: Blob::Bytes(kernel),
        initrds: &initrds,
        cmdline,
        e820: &e820,
        rsdp: RSDP,
        rng_seed: Some([0x5a; 32]),
    };
    load(mem, &image)
}

const PREF_ADDRESS: u64 = 16 * MIB;
const INIT_SIZE: u32 = 8 << 20;
const SETUP_LEN: usize = 5 * 512;
const PAYLOAD_LEN: usize = 64 << 10;

/// A bzImage whose protected-mode part is all 0xcc.
fn bzimage() -> Vec<u8> {
    let mut kernel = vec![0; SETUP_LEN];
    kernel[0x1f1] = 4;
    put(&mut kernel, 0x1f4, &(PAYLOAD_LEN as u32 / 16).to_le_bytes());
    put(&mut kernel, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut kernel, 0x202, b"HdrS");
    put(&mut kernel, 0x206, &0x020fu16.to_le_bytes());
    kernel[0x211] = 1;
    put(&mut kernel, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut kernel, 0x230, &0x20_0000u32.to_le_bytes());
    kernel[0x234] = 1;
    put(&mut kernel, 0x236, &0x7fu16.to_le_bytes());
    put(&mut kernel, 0x238, &2047u32.to_le_bytes());
    put(&mut kernel, 0x258, &PREF_ADDRESS.to_le_bytes());
    put(&mut kernel, 0x260, &INIT_SIZE.to_le_bytes());
    kernel.resize(SETUP_LEN + PAYLOAD_LEN, 0xcc);
    kernel
}

const ELF_ADDRESS: u64 = 0x10_0000;
const ELF_ENTRY: u32 = 0x10_0010;
const NOTE_OFFSET: usize = 0x200;
const NOTE_LEN: usize = 36;
const SEGMENT_OFFSET: usize = 0x1000;
const SEGMENT_MEM_LEN: u64 = 0x9000;

/// An ELF with one segment of a page and a PVH note behind a note of another kind.
fn elf() -> Vec<u8> {
    let mut kernel = vec![0; SEGMENT_OFFSET];
    put(&mut kernel, 0, b"\x7fELF\x02\x01\x01");
    put(&mut kernel, 16, &[2, 0, 62, 0]);
    put(&mut kernel, 32, &64u64.to_le_bytes());
    put(&mut kernel, 54, &[56, 0, 2, 0]);
    let header = |kind: u32, offset: usize, address: u64, file_len: u64, mem_len: u64| {
        let mut header = vec![0; 56];
        put(&mut header, 0, &kind.to_le_bytes());
        put(&mut header, 8, &(offset as u64).to_le_bytes());
        put(&mut header, 24, &address.to_le_bytes());
        put(&mut header, 32, &file_len.to_le_bytes());
        put(&mut header, 40, &mem_len.to_le_bytes());
        header
    };
    put(&mut kernel, 64, &header(1, SEGMENT_OFFSET, ELF_ADDRESS, 0x1000, SEGMENT_MEM_LEN));
    put(&mut kernel, 64 + 56, &header(4, NOTE_OFFSET, 0, NOTE_LEN as u64, NOTE_LEN as u64));
    let mut notes = Vec::new();
    for (name, kind, desc) in [(&b"GNU\0"[..], 3u32, &[][..]), (b"Xen\0", 18, &ELF_ENTRY.to_le_bytes())] {
        for word in [name.len() as u32, desc.len() as u32, kind] {
            notes.extend_from_slice(&word.to_le_bytes());
        }
        notes.extend_from_slice(name);
        notes.extend_from_slice(desc);
    }
    assert_eq!(notes.len(), NOTE_LEN);
    put(&mut kernel, NOTE_OFFSET, &notes);
    kernel.resize(SEGMENT_OFFSET + 0x1000, 0xcc);
    kernel
}

#[test]
fn bzimage_is_placed_where_it_prefers() {
    let mem = memory();
    let entry = boot(&mem, &bzimage(), &[], "quiet").unwrap();
    assert_eq!(entry.rip, PREF_ADDRESS + 0x200);
    assert_eq!(entry.protocol, Protocol::Linux64);
    assert_eq!(entry.kernel, PREF_ADDRESS..PREF_ADDRESS + u64::from(INIT_SIZE));
    assert_eq!(entry.initrd, None);
    assert_eq!(read(&mem, PREF_ADDRESS, PAYLOAD_LEN), vec![0xcc; PAYLOAD_LEN]);
    assert_eq!(read(&mem, PREF_ADDRESS - 1, 1), [0]);
}

#[test]
fn zero_page_tells_the_kernel_all_it_needs() {
    let mem = memory();
    let entry = boot(&mem, &bzimage(), &[&[1, 2, 3]], "console=ttyS0").unwrap();
    let page = read(&mem, layout::ZERO_PAGE, 4096);
    assert_eq!(&page[0x202..0x206], b"HdrS");
    assert_eq!(page[0x210], 0xff);
    assert_eq!(u64_at(&page, 0x70), RSDP.0);
    assert_eq!(u64::from(u32_at(&page, 0x218)), entry.initrd.unwrap().start);
    assert_eq!(u32_at(&page, 0x21c), 3);
    assert_eq!(read(&mem, u64::from(u32_at(&page, 0x228)), 14), b"console=ttyS0\0");
    let map = e820::map(RAM);
    assert_eq!(usize::from(page[0x1e8]), map.len());
    for (n, entry) in map.iter().enumerate() {
        let at = 0x2d0 + n * 20;
        assert_eq!((u64_at(&page, at), u64_at(&page, at + 8)), (entry.address, entry.size));
        assert_eq!(u32_at(&page, at + 16), entry.kind as u32);
    }
    assert!(page[..0x70].iter().chain(&page[0x290..0x2d0]).all(|b| *b == 0));
}

#[test]
fn random_seed_travels_as_setup_data() {
    let mem = memory();
    boot(&mem, &bzimage(), &[], "").unwrap();
    let address = u64_at(&read(&mem, layout::ZERO_PAGE, 4096), 0x250);
    let data = read(&mem, address, 48);
    assert_eq!((u64_at(&data, 0), u32_at(&data, 8), u32_at(&data, 12)), (0, 9, 32));
    assert_eq!(data[16..], [0x5a; 32]);
}

#[test]
fn stale_setup_data_pointer_of_the_file_is_dropped() {
    let mem = memory();
    let mut kernel = bzimage();
    put(&mut kernel, 0x250, &[0xff; 8]);
    let image = BootImage {
        kernel: Blob::Bytes(&kernel),
        initrds: &[],
        cmdline: "",
        e820: &e820::map(RAM),
        rsdp: RSDP,
        rng_seed: None,
    };
    load(&mem, &image).unwrap();
    assert_eq!(u64_at(&read(&mem, layout::ZERO_PAGE, 4096), 0x250), 0);
}

#[test]
fn initrds_are_joined_at_multiples_of_four_and_end_with_ram() {
    let mem = memory();
    let range = boot(&mem, &bzimage(), &[&[1; 5], &[], &[2; 3]], "").unwrap().initrd.unwrap();
    assert_eq!(range.end - range.start, 11);
    assert_eq!(range.start, RAM - 4096);
    assert_eq!(read(&mem, range.start, 11), [1, 1, 1, 1, 1, 0, 0, 0, 2, 2, 2]);
}

#[test]
fn initrd_stays_below_the_limit_of_an_old_kernel() {
    let mut kernel = bzimage();
    put(&mut kernel, 0x22c, &(32 * MIB as u32 - 1).to_le_bytes());
    put(&mut kernel, 0x236, &1u16.to_le_bytes());
    let range = boot(&memory(), &kernel, &[&[1; 4097]], "").unwrap().initrd.unwrap();
    assert_eq!(range.start, 32 * MIB - 8192);
}

#[test]
fn too_little_memory_names_the_size_that_would_do() {
    let mut large = bzimage();
    put(&mut large, 0x260, &(60u32 << 20).to_le_bytes());
    let error = boot(&memory(), &large, &[], "").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel does not fit: the instance needs at least 76 MiB of memory below 3 GiB"
    );
    let initrd = vec![0; 41 << 20];
    let error = boot(&memory(), &bzimage(), &[&initrd], "").unwrap_err();
    assert!(matches!(error, BootError::TooLittleMemory { what: "the initrd", needed_mib: 65 }), "{error:?}");
    let mut elf = elf();
    put(&mut elf, 64 + 40, &(80 * MIB).to_le_bytes());
    let error = boot(&memory(), &elf, &[], "").unwrap_err();
    assert!(matches!(error, BootError::TooLittleMemory { what: "the kernel", needed_mib: 81 }), "{error:?}");
}

#[test]
fn malformed_bzimages_are_refused() {
    let cases: [(&str, usize, &[u8]); 9] = [
        ("boot_flag", 0x1fe, &[0, 0]),
        ("jump", 0x201, &[0x10]),
        ("jump", 0x201, &[0xff]),
        ("protocol", 0x206, &[0x0b, 0x02]),
        ("zImage", 0x211, &[0]),
        ("64-bit entry", 0x236, &[0, 0]),
        ("pref_address", 0x258, &[0xff; 8]),
        ("pref_address", 0x258, &[0, 0, 0, 0xd0, 0, 0, 0, 0]),
        ("load address", 0x258, &[0; 8]),
    ];
    for (word, at, bytes) in cases {
        let mut kernel = bzimage();
        put(&mut kernel, at, bytes);
        let error = boot(&memory(), &kernel, &[], "").unwrap_err();
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}

#[test]
fn every_truncation_of_a_kernel_is_an_error() {
    for kernel in [bzimage(), elf()] {
        let cuts = (0..SETUP_LEN + 512).step_by(64).chain([63, 119, 0x1fff]);
        for cut in cuts {
            let result = boot(&memory(), &kernel[..cut], &[], "");
            assert!(result.is_err(), "{cut} bytes: {result:?}");
        }
    }
}

#[test]
fn files_of_other_kinds_are_named() {
    let mut arm64 = vec![0; 512];
    put(&mut arm64, 0, b"MZ");
    put(&mut arm64, 0x38, b"ARM\x64");
    let mut efi = vec![0; 2048];
    put(&mut efi, 0, b"MZ");
    let mut arm_elf = elf();
    arm_elf[18] = 183;
    let mut elf32 = elf();
    elf32[4] = 1;
    for (file, word) in [
        (vec![], "empty"),
        (arm64, "arm64"),
        (efi, "EFI"),
        (b"\x1f\x8b\x08".to_vec(), "compressed"),
        (b"070701000".to_vec(), "cpio"),
        (vec![b'x'; 4096], "unknown"),
        (arm_elf, "another architecture"),
        (elf32, "another architecture"),
    ] {
        let error = boot(&memory(), &file, &[], "").unwrap_err();
        assert!(matches!(error, BootError::NotAKernel { .. }), "{error:?}");
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}

#[test]
fn command_line_is_bounded_by_kernel_and_layout() {
    let longest = "x".repeat(2047);
    boot(&memory(), &bzimage(), &[], &longest).unwrap();
    boot(&memory(), &elf(), &[], &longest).unwrap();
    let mut short = bzimage();
    put(&mut short, 0x238, &255u32.to_le_bytes());
    for (kernel, max) in [(bzimage(), 2047), (elf(), 2047), (short, 255)] {
        let error = boot(&memory(), &kernel, &[], &"x".repeat(2048)).unwrap_err();
        assert!(matches!(error, BootError::CmdlineTooLong { len: 2048, max: m } if m == max), "{error:?}");
    }
    let error = boot(&memory(), &bzimage(), &[], "a\0b").unwrap_err();
    assert!(matches!(error, BootError::CmdlineZero));
}

#[test]
fn elf_starts_at_its_pvh_note_with_start_info() {
    let mem = memory();
    let entry = boot(&mem, &elf(), &[&[7; 10]], "test=hello").unwrap();
    assert_eq!((entry.rip, entry.protocol), (u64::from(ELF_ENTRY), Protocol::Pvh));
    assert_eq!(entry.kernel, ELF_ADDRESS..ELF_ADDRESS + SEGMENT_MEM_LEN);
    assert_eq!(read(&mem, ELF_ADDRESS, 0x1001)[0xfff..], [0xcc, 0]);

    let info = read(&mem, layout::PVH_START_INFO, 56);
    assert_eq!((u32_at(&info, 0), u32_at(&info, 4), u32_at(&info, 12)), (0x336e_c578, 1, 1));
    let module = read(&mem, u64_at(&info, 16), 32);
    let initrd = entry.initrd.unwrap();
    assert_eq!((u64_at(&module, 0), u64_at(&module, 8)), (initrd.start, 10));
    assert_eq!(read(&mem, u64_at(&info, 24), 11), b"test=hello\0");
    assert_eq!(u64_at(&info, 32), RSDP.0);
    let expected = e820::map(RAM);
    let map = read(&mem, u64_at(&info, 40), expected.len() * 24);
    assert_eq!(u32_at(&info, 48) as usize, expected.len());
    for (entry, found) in expected.iter().zip(map.chunks(24)) {
        assert_eq!((u64_at(found, 0), u64_at(found, 8)), (entry.address, entry.size));
        assert_eq!(u32_at(found, 16), entry.kind as u32);
    }
}

#[test]
fn malformed_elfs_are_refused() {
    let segment = 64;
    let note = 64 + 56;
    let cases: [(&str, usize, &[u8]); 14] = [
        ("e_phentsize", 54, &[57, 0]),
        ("e_phnum", 56, &[0, 0]),
        ("e_phnum", 56, &[65, 0]),
        ("program headers", 32, &[0xff; 8]),
        ("segments", segment + 8, &[0xff; 8]),
        ("segments", segment + 32, &[0xff; 8]),
        ("p_filesz", segment + 40, &[1, 0, 0, 0, 0, 0, 0, 0]),
        ("p_paddr", segment + 24, &[0xff; 8]),
        ("load address", segment + 24, &[0; 8]),
        ("segments", note + 8, &[0xff; 8]),
        ("no PVH entry", NOTE_OFFSET + 16 + 8, &[17]),
        ("no PVH entry", NOTE_OFFSET, &[0xff, 0xff, 0xff, 0xff]),
        ("no PVH entry", NOTE_OFFSET + 16 + 4, &[3]),
        ("PVH entry point", NOTE_OFFSET + 32, &[0, 0, 0xff, 0x7f]),
    ];
    for (word, at, bytes) in cases {
        let mut kernel = elf();
        put(&mut kernel, at, bytes);
        let error = boot(&memory(), &kernel, &[], "").unwrap_err();
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}

#[test]
fn overlapping_segments_cannot_keep_the_host_copying() {
    let mut kernel = elf();
    let segment: [u8; 56] = kernel[64..64 + 56].try_into().unwrap();
    let count = 60;
    let table = kernel.len();
    put(&mut kernel, 32, &(table as u64).to_le_bytes());
    put(&mut kernel, 56, &[count, 0]);
    for _ in 0..count {
        kernel.extend_from_slice(&segment);
        let start = kernel.len() - 56;
        put(&mut kernel, start + 40, &(63 * MIB).to_le_bytes());
    }
    let error = boot(&memory(), &kernel, &[], "").unwrap_err();
    assert!(error.to_string().contains("sum of p_memsz"), "{error}");
}

#[test]
fn files_load_as_bytes_do() {
    let mut kernel = tempfile::tempfile().unwrap();
    kernel.write_all(&bzimage()).unwrap();
    let mut initrd = tempfile::tempfile().unwrap();
    initrd.write_all(&[9; 5000]).unwrap();
    let mem = memory();
    let image = BootImage {
        kernel: Blob::File(&kernel),
        initrds: &[Blob::File(&initrd)],
        cmdline: "",
        e820: &e820::map(RAM),
        rsdp: RSDP,
        rng_seed: None,
    };
    let entry = load(&mem, &image).unwrap();
    assert_eq!(read(&mem, PREF_ADDRESS, PAYLOAD_LEN), vec![0xcc; PAYLOAD_LEN]);
    assert_eq!(read(&mem, entry.initrd.unwrap().start, 5000), vec![9; 5000]);
}

#[test]
fn long_mode_maps_four_gibibytes_to_themselves() {
    let mem = memory();
    let entry = boot(&mem, &bzimage(), &[], "").unwrap();
    let cpu = boot_cpu(&mem, &entry).unwrap();
    let mut sregs = kvm_bindings::kvm_sregs { apic_base: 0xfee0_0900, ..Default::default() };
    cpu.apply(&mut sregs);
    assert_eq!(sregs.apic_base, 0xfee0_0900);
    assert_eq!((cpu.regs().rip, cpu.regs().rsi, cpu.regs().rflags), (entry.rip, layout::ZERO_PAGE, 2));
    assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x8000_0031, 0x20, 0x500));
    assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.cs.db), (0x10, 1, 0));
    assert_eq!((sregs.ss.selector, sregs.ss.type_, sregs.ss.limit), (0x18, 3, u32::MAX));
    assert_eq!((sregs.tr.type_, sregs.tr.s, sregs.tr.limit), (0xb, 0, 0x67));

    let next = |table: u64, index: u64| u64_at(&read(&mem, (table & !0xfff) + index * 8, 8), 0);
    for address in [0, 0x10_0000, PREF_ADDRESS, 0xbfff_ffff, 0xffff_ffff_u64] {
        let pdpt = next(sregs.cr3, address >> 39);
        let directory = next(pdpt, address >> 30 & 0x1ff);
        let page = next(directory, address >> 21 & 0x1ff);
        assert_eq!((pdpt & 0xfff, directory & 0xfff, page & 0xfff), (3, 3, 0x83));
        assert_eq!(page & !0x1f_ffff, address & !0x1f_ffff);
    }
}

#[test]
fn pvh_starts_in_flat_protected_mode_without_paging() {
    let mem = memory();
    let entry = boot(&mem, &elf(), &[], "").unwrap();
    let cpu = boot_cpu(&mem, &entry).unwrap();
    let mut sregs = kvm_bindings::kvm_sregs::default();
    cpu.apply(&mut sregs);
    assert_eq!((cpu.regs().rip, cpu.regs().rbx), (entry.rip, layout::PVH_START_INFO));
    assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (0x11, 0, 0, 0));
    assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.limit), (0, 1, u32::MAX));
    // The descriptors in memory say the same: code, data.
    let gdt = read(&mem, sregs.gdt.base, usize::from(sregs.gdt.limit) + 1);
    assert_eq!(u64_at(&gdt, 0x10), 0x00cf_9b00_0000_ffff);
    assert_eq!(u64_at(&gdt, 0x18), 0x00cf_9300_0000_ffff);
}

#[test]
fn boot_structures_do_not_overlap() {
    let page = 4096;
    let mut areas = [
        (layout::BOOT_GDT, 48),
        (layout::BOOT_IDT, 8),
        (layout::SETUP_DATA, 48),
        (layout::PVH_START_INFO, page),
        (layout::ZERO_PAGE, page),
        (layout::BOOT_PAGE_TABLES, 6 * page),
        (layout::CMDLINE_START, layout::CMDLINE_MAX as u64),
        (layout::EBDA_START, 0),
    ];
    areas.sort_unstable();
    for pair in areas.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
    }
}

#[test]
fn local_interrupts_keep_their_other_bits() {
    let mut lapic = kvm_bindings::kvm_lapic_state::default();
    lapic.regs[0x352] = 1; // masked
    lapic.regs[0x361] = 0x77;
    set_local_interrupts(&mut lapic);
    let lvt = |at: usize| [0, 1, 2, 3].map(|n| lapic.regs[at + n].cast_unsigned());
    assert_eq!(lvt(0x350), [0, 7, 1, 0]);
    assert_eq!(lvt(0x360), [0, 0x74, 0, 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn damaged_kernels_never_panic_and_stay_within_ram(
        is_elf in any::<bool>(),
        changes in prop::collection::vec((0usize..0x300, any::<u8>()), 0..8),
        cut in prop_oneof![Just(usize::MAX), 0usize..0x2000],
    ) {
        let mut kernel = if is_elf { elf() } else { bzimage() };
        let untouched = changes.is_empty() && cut > kernel.len();
        for (at, value) in changes {
            kernel[at] = value;
        }
        kernel.truncate(cut);
        prop_assert!(fuzzing::kernel(&kernel).is_some() || !untouched);
    }
}
