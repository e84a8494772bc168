use std::process::Command;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::firmware::e820;

fn spec() -> SmbiosSpec {
    SmbiosSpec {
        manufacturer: "Amazon EC2".into(),
        product_name: "t3.micro".into(),
        uuid: "ec2e1916-9099-7caf-fd21-012345abcdef".into(),
        serial: "ec2e1916-9099-7caf-fd21-012345abcdef".into(),
        board_asset_tag: "i-0123456789abcdef0".into(),
        chassis_asset_tag: "Amazon EC2".into(),
        bios_version: "1.0".into(),
        bios_date: "10/16/2017".into(),
    }
}

fn processor() -> ProcessorInfo {
    ProcessorInfo {
        vendor: "AuthenticAMD".into(),
        brand: "AMD EPYC".into(),
        signature: 0x00a1_0f11,
        features: 0x078b_fbff,
        cores: 2,
    }
}

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

fn read(mem: &GuestMemoryMmap, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    mem.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn built(spec: &SmbiosSpec, ram_bytes: u64) -> (Vec<u8>, Vec<u8>) {
    let mem = memory();
    build(&mem, spec, &processor(), &e820::map(ram_bytes)).unwrap();
    let point = read(&mem, layout::SMBIOS_ENTRY, ENTRY_POINT_LEN);
    let len = u16::from_le_bytes([point[0x16], point[0x17]]);
    let tables = read(&mem, layout::SMBIOS_TABLES, usize::from(len));
    (point, tables)
}

/// Walks the structures as a reader does: `(type, formatted area, strings)`.
fn walk(tables: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
    let mut found = Vec::new();
    let mut rest = tables;
    while !rest.is_empty() {
        let len = usize::from(rest[1]);
        let end = len + rest[len..].windows(2).position(|w| w == [0, 0]).expect("end of strings") + 2;
        let strings = rest[len..end]
            .split(|b| *b == 0)
            .filter(|s| !s.is_empty())
            .map(|s| String::from_utf8(s.to_vec()).unwrap())
            .collect();
        found.push((rest[0], rest[..len].to_vec(), strings));
        rest = &rest[end..];
    }
    found
}

#[test]
fn entry_point_has_both_checksums_and_counts() {
    let (point, tables) = built(&spec(), 1 << 30);
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |s, b| s.wrapping_add(*b));
    assert_eq!(&point[..4], b"_SM_");
    assert_eq!(&point[0x10..0x15], b"_DMI_");
    assert_eq!((sum(&point), sum(&point[0x10..])), (0, 0));
    let structures = walk(&tables);
    assert_eq!(u16::from_le_bytes([point[0x1c], point[0x1d]]), structures.len() as u16);
    assert_eq!(structures.last().unwrap().0, 127);
}

#[test]
fn uuid_is_stored_with_its_first_three_fields_swapped() {
    let (_, tables) = built(&spec(), 1 << 30);
    let structures = walk(&tables);
    let system = &structures.iter().find(|s| s.0 == 1).unwrap().1;
    assert_eq!(
        system[8..24],
        [0x16, 0x19, 0x2e, 0xec, 0x99, 0x90, 0xaf, 0x7c, 0xfd, 0x21, 0x01, 0x23, 0x45, 0xab, 0xcd, 0xef]
    );
}

#[test]
fn handles_are_unique_and_the_board_names_its_chassis() {
    let (_, tables) = built(&spec(), 8 << 30);
    let structures = walk(&tables);
    let handle = |s: &(u8, Vec<u8>, Vec<String>)| u16::from_le_bytes([s.1[2], s.1[3]]);
    let mut handles: Vec<_> = structures.iter().map(handle).collect();
    handles.dedup();
    assert_eq!(handles.len(), structures.len());
    let board = structures.iter().find(|s| s.0 == 2).unwrap();
    let chassis = structures.iter().find(|s| s.0 == 3).unwrap();
    assert_eq!(u16::from_le_bytes([board.1[11], board.1[12]]), handle(chassis));
}

#[test]
fn malformed_uuid_is_refused() {
    for uuid in [
        "",
        "ec2",
        "ec2e1916-9099-7caf-fd21-012345abcde",
        "ec2e19169099-7caf-fd21-012345abcdef-",
        "ec2e1916-9099-7caf-fd21-012345abcdef-00",
        "+c2e1916-9099-7caf-fd21-012345abcdef",
        "äc2e191-9099-7caf-fd21-012345abcdef",
    ] {
        let bad = SmbiosSpec { uuid: uuid.into(), ..spec() };
        let result = build(&memory(), &bad, &processor(), &e820::map(1 << 30));
        assert!(matches!(result, Err(FirmwareError::Invalid { .. })), "{uuid}");
    }
}

#[test]
fn memory_sizes_are_told_in_the_field_that_fits() {
    let device = |ram_bytes: u64| {
        let (_, tables) = built(&spec(), ram_bytes);
        let area = walk(&tables).into_iter().find(|s| s.0 == 17).unwrap().1;
        (u16::from_le_bytes([area[12], area[13]]), u32::from_le_bytes(area[28..32].try_into().unwrap()))
    };
    assert_eq!(device(64 << 20), (64, 0));
    assert_eq!(device(31 << 30), (31 << 10, 0));
    assert_eq!(device(32 << 30), (0x7fff, 32 << 10));
    assert_eq!(device(6 << 40), (0x7fff, 6 << 20));
}

#[test]
fn address_ranges_cover_memory_on_both_sides_of_the_hole() {
    let (_, tables) = built(&spec(), 4 << 30);
    let ranges: Vec<_> = walk(&tables)
        .into_iter()
        .filter(|s| s.0 == 19)
        .map(|s| {
            (
                u32::from_le_bytes(s.1[4..8].try_into().unwrap()),
                u32::from_le_bytes(s.1[8..12].try_into().unwrap()),
            )
        })
        .collect();
    assert_eq!(ranges, [(0, (3 << 20) - 1), (4 << 20, (5 << 20) - 1)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_strings_give_a_table_that_can_be_walked(manufacturer in ".*", serial in ".{0,200}", tag in "\\PC*") {
        let spec = SmbiosSpec {
            manufacturer, serial: serial.clone(), product_name: serial, board_asset_tag: tag.clone(),
            chassis_asset_tag: tag, ..spec()
        };
        let (_, tables) = built(&spec, 1 << 30);
        let structures = walk(&tables);
        prop_assert_eq!(structures.last().unwrap().0, 127);
        for string in structures.iter().flat_map(|s| &s.2) {
            prop_assert!(string.len() <= MAX_STRING);
            prop_assert!(string.bytes().all(|b| b == b' ' || b.is_ascii_graphic()));
        }
    }
}

/// Lets `dmidecode` read what the guest would see.
#[test]
fn dmidecode_reads_the_identity_back() {
    if Command::new("dmidecode").arg("--version").output().is_err() {
        println!("SKIPPED: dmidecode is not installed");
        return;
    }
    let (mut point, tables) = built(&spec(), 6 << 30);
    // A dump holds the entry point at 0 and the structures where the entry point says: 32 here.
    point[0x18..0x1c].copy_from_slice(&32u32.to_le_bytes());
    point[0x15] = 0;
    point[0x15] = checksum(&point[0x10..]);
    point[0x04] = 0;
    point[0x04] = checksum(&point);
    point.resize(32, 0);
    point.extend_from_slice(&tables);
    let dir = tempfile::tempdir().unwrap();
    let dump = dir.path().join("dump");
    std::fs::write(&dump, point).unwrap();
    let run = |args: &[&str]| {
        let output = Command::new("dmidecode").arg("--from-dump").arg(&dump).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let keyword = |name| run(&["-s", name]).trim().to_owned();
    assert_eq!(keyword("system-uuid"), spec().uuid);
    assert_eq!(keyword("system-serial-number"), spec().serial);
    assert_eq!(keyword("system-manufacturer"), "Amazon EC2");
    assert_eq!(keyword("system-product-name"), "t3.micro");
    assert_eq!(keyword("baseboard-asset-tag"), "i-0123456789abcdef0");
    assert_eq!(keyword("chassis-asset-tag"), "Amazon EC2");
    assert_eq!(keyword("bios-release-date"), "10/16/2017");
    assert_eq!(keyword("processor-version"), "AMD EPYC");
    let all = run(&[]);
    for bad in ["BROKEN", "OUT OF SPEC", "TRUNCATED", "Wrong", "Invalid"] {
        assert!(!all.contains(bad), "{bad}\n{all}");
    }
    assert!(
        all.contains("SMBIOS 2.7 present") && all.contains("Size: 6 G") && all.contains("virtual machine")
    );
}
