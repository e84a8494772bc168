//! All kinds of file systems against the tools that make them.

use super::super::testing::*;
use super::*;

/// Bytes that differ everywhere.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let byte = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(byte).collect()
}

/// Makes an image, mounts it, and compares what the reader sees with what was put in.
fn check(make: impl FnOnce(&[Node<'_>]) -> Option<Vec<u8>>, kind: FsKind, big: usize, symlinks: bool) {
    let big = noise(big);
    let blank = if kind == FsKind::Xfs { '-' } else { ' ' };
    let many: Vec<String> = (0..300).map(|i| format!("/dir/entry{blank}number{blank}{i:03}.conf")).collect();
    let mut nodes = vec![
        File("/empty", b""),
        File("/boot/VMLINUZ", b"upper"),
        File("/boot/vmlinuz-6.1.0-18-cloud-amd64", &big),
        File("/a/b/c/d", b"deep"),
        File("/ünïcode-näme.txt", b"u"),
    ];
    nodes.extend(many.iter().map(|path| File(path, path.as_bytes())));
    let long_target = format!("{}boot/VMLINUZ", "./".repeat(60));
    if symlinks {
        nodes.extend([
            Link("/vmlinuz", "boot/VMLINUZ"),
            Link("/a/b/up", "../../boot"),
            Link("/absolute", "/a/b/up/VMLINUZ"),
            Link("/long", &long_target),
            Link("/loop", "loop"),
            Link("/dangling", "nowhere/at/all"),
            Link("/above", "../../../empty"),
        ]);
    }
    let Some(image) = make(&nodes) else { return };
    let fs = mount_bytes(image).unwrap().unwrap();
    assert_eq!(fs.kind(), kind);
    let read = |path: &str| fs.read_file(path, 1 << 30).map_err(|error| error.to_string());
    for node in &nodes {
        if let File(path, contents) = node {
            assert_eq!(read(path).as_deref(), Ok(*contents), "{path}");
        }
    }
    if symlinks {
        for path in ["/vmlinuz", "/a/b/up/VMLINUZ", "/absolute", "/long"] {
            assert_eq!(read(path).as_deref(), Ok(b"upper".as_slice()), "{path}");
        }
        assert_eq!(read("/above").as_deref(), Ok(b"".as_slice()));
        assert!(matches!(fs.open("/loop"), Err(FsError::SymlinkLoop)));
        assert!(matches!(fs.open("/dangling"), Err(FsError::NotFound)));
    }
    let mut names = fs.list_dir("/dir").unwrap();
    names.sort();
    let expected: Vec<_> = many.iter().map(|path| &path["/dir/".len()..]).collect();
    assert_eq!(names, expected);
    assert!(matches!(fs.open("/nothing"), Err(FsError::NotFound)));
    assert!(matches!(fs.open("/empty/x"), Err(FsError::NotFound)));
    assert!(matches!(fs.open("/boot"), Err(FsError::WrongKind("file"))));
    assert!(matches!(fs.list_dir("/empty"), Err(FsError::WrongKind("directory"))));
    assert_eq!(fs.stat("/").unwrap(), NodeKind::Directory);
    let size = big.len() as u64;
    let limited = fs.read_file("/boot/vmlinuz-6.1.0-18-cloud-amd64", size - 1);
    assert!(matches!(limited, Err(FsError::TooLarge { .. })));
    let file = fs.open("/boot/vmlinuz-6.1.0-18-cloud-amd64").unwrap();
    for (at, len) in [(0, 1), (size - 1, 1), (4095, 2), (1, 10_000), (size / 2, 70_000)] {
        let mut piece = vec![0; len];
        file.read_exact_at(&mut piece, at).unwrap();
        assert_eq!(piece, &big[at as usize..][..len], "{len} bytes at {at}");
    }
    assert!(file.read_exact_at(&mut [0; 2], size - 1).is_err());
}

#[test]
fn ext4_reads_back() {
    check(|nodes| ext(16, &["-t", "ext4"], nodes), FsKind::Ext4, 3_000_001, true);
}

#[test]
fn ext4_with_small_blocks_reads_back() {
    let options = ["-t", "ext4", "-b", "1024", "-g", "1024", "-O", "^64bit,^flex_bg"];
    check(|nodes| ext(16, &options, nodes), FsKind::Ext4, 3_000_001, true);
}

#[test]
fn ext4_with_inline_data_reads_back() {
    let options = ["-t", "ext4", "-O", "inline_data", "-I", "512"];
    check(|nodes| ext(16, &options, nodes), FsKind::Ext4, 3_000_001, true);
}

#[test]
fn ext4_with_meta_groups_reads_back() {
    let options = ["-t", "ext4", "-b", "1024", "-g", "256", "-O", "meta_bg,^resize_inode"];
    check(|nodes| ext(32, &options, nodes), FsKind::Ext4, 3_000_001, true);
}

/// Blocks of a file, as `debugfs` tells them.
fn debugfs(image: &str, commands: &str) -> Option<String> {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("commands");
    std::fs::write(&script, commands).unwrap();
    let output =
        std::process::Command::new("/usr/sbin/debugfs").args(["-w", "-f", script.to_str()?, image]).output();
    match output {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) => {
            println!("SKIPPED: debugfs: {error}");
            None
        }
    }
}

#[test]
fn ext_journal_is_read_as_if_replayed() {
    let new = |name: &str| format!("{name:-<4096}").into_bytes();
    for (kind, options) in [("ext3", "-c"), ("ext4", "-c -v 3"), ("ext4", "-c -v 2")] {
        let names = ["/a", "/b", "/c"];
        let old = vec![b'o'; 4096];
        let nodes = names.map(|name| File(name, &old));
        let Some(image) = ext(16, &["-t", kind, "-b", "4096"], &nodes) else {
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let image_path = path.to_str().unwrap();
        std::fs::write(&path, image).unwrap();
        let block = |name: &str| {
            let shown = debugfs(image_path, &format!("blocks {name}\n"))?;
            let last = shown.lines().rfind(|line| !line.starts_with("debugfs"))?;
            last.trim().parse::<u64>().ok()
        };
        let (Some(a), Some(b), Some(c)) = (block("/a"), block("/b"), block("/c")) else {
            return;
        };
        let mut commands = format!("jo {options}\n");
        for (number, name) in [(a, "a1"), (b, "b1"), (c, "c1"), (a, "a2")] {
            let file = directory.path().join(name);
            std::fs::write(&file, new(name)).unwrap();
            commands += &format!("jw -b {number} {}\n", file.display());
        }
        // A revocation forgets what came before it.
        commands += &format!("jw -r {b}\njc\n");
        debugfs(image_path, &commands);
        let fs = mount_bytes(std::fs::read(&path).unwrap()).unwrap().unwrap();
        let read = |name: &str| fs.read_file(name, 4096).unwrap();
        assert_eq!(read("/a"), new("a2"), "{kind} {options}");
        assert_eq!(read("/b"), old, "{kind} {options}");
        assert_eq!(read("/c"), new("c1"), "{kind} {options}");
    }
}

#[test]
fn ext3_reads_back() {
    check(|nodes| ext(16, &["-t", "ext3"], nodes), FsKind::Ext3, 3_000_001, true);
}

#[test]
fn ext2_reads_back() {
    let options = ["-t", "ext2", "-b", "1024"];
    check(|nodes| ext(16, &options, nodes), FsKind::Ext2, 3_000_001, true);
}

#[test]
fn fat12_reads_back() {
    check(|nodes| fat(1440, &["-F", "12"], nodes), FsKind::Fat12, 300_001, false);
}

#[test]
fn fat16_reads_back() {
    check(|nodes| fat(16 << 10, &["-F", "16"], nodes), FsKind::Fat16, 3_000_001, false);
}

#[test]
fn fat32_reads_back() {
    check(|nodes| fat(64 << 10, &["-F", "32", "-s", "1"], nodes), FsKind::Fat32, 3_000_001, false);
}

#[test]
fn xfs_reads_back() {
    check(|nodes| xfs(&[], nodes), FsKind::Xfs, 3_000_001, true);
}

#[test]
fn xfs_with_small_blocks_reads_back() {
    let options = ["-b", "size=1024", "-n", "size=4096", "-i", "nrext64=1"];
    check(|nodes| xfs(&options, nodes), FsKind::Xfs, 3_000_001, true);
}

#[test]
fn xfs_of_version_4_reads_back() {
    let options = ["-m", "crc=0,finobt=0,inobtcount=0,bigtime=0,reflink=0,rmapbt=0", "-n", "ftype=0"];
    check(|nodes| xfs(&options, nodes), FsKind::Xfs, 3_000_001, true);
}

#[test]
fn btrfs_reads_back() {
    check(|nodes| btrfs(&[], nodes), FsKind::Btrfs, 3_000_001, true);
}

#[test]
fn btrfs_with_small_nodes_reads_back() {
    check(|nodes| btrfs(&SMALL_BTRFS, nodes), FsKind::Btrfs, 3_000_001, true);
}

/// Data and trees in the same chunks.
const SMALL_BTRFS: [&str; 5] = ["-M", "-n", "4096", "-s", "4096"];

#[test]
fn btrfs_has_label_and_uuid() {
    let Some(image) = btrfs(&["-L", "arch os", "-U", UUID], &[]) else { return };
    let fs = mount_bytes(image).unwrap().unwrap();
    assert_eq!((fs.label().as_deref(), fs.uuid().as_deref()), (Some("arch os"), Some(UUID)));
}

/// Compressed extents, which `mkfs.btrfs` does not make: the one of a file is replaced by what another tool packed.
#[test]
fn btrfs_reads_compressed_extents() {
    const LEN: usize = 100_000;
    const ROOM: usize = LEN.next_multiple_of(4096);
    let text: Vec<u8> = (0..LEN).map(|at| b"abcdefgh"[at / 7 % 8] ^ (at / 4096) as u8).collect();
    let Some(image) = btrfs(&SMALL_BTRFS, &[File("/file", &text)]) else { return };
    let find = |what: &[u8]| image.windows(what.len()).position(|window| window == what).unwrap();
    // Its length in memory, as it is, not encoded, regular.
    let mut item = (ROOM as u64).to_le_bytes().to_vec();
    item.extend([0, 0, 0, 0, 1]);
    let (item, data) = (find(&item) - 8, find(&text[..4096]));
    let zlib = miniz_oxide::deflate::compress_to_vec_zlib(&text, 6);
    let directory = tempfile::tempdir().unwrap();
    let [plain, packed] = ["plain", "packed"].map(|name| directory.path().join(name));
    std::fs::write(&plain, &text).unwrap();
    let zstd = tool("zstd", &["-q", "-o", packed.to_str().unwrap(), plain.to_str().unwrap()]);
    let zstd = zstd.map(|()| std::fs::read(packed).unwrap());
    for (kind, packed) in [(1, Some(zlib)), (3, zstd)] {
        let Some(packed) = packed else { continue };
        let with = |skip: usize, packed: &[u8]| {
            let mut image = image.clone();
            image[data..][..ROOM].fill(0);
            image[data..][..packed.len()].copy_from_slice(packed);
            image[item + 16] = kind;
            let mut set = |at: usize, value: usize| {
                image[item + at..][..8].copy_from_slice(&(value as u64).to_le_bytes());
            };
            set(29, packed.len().next_multiple_of(4096));
            set(37, skip);
            set(45, ROOM - skip);
            mount_bytes(image).unwrap().unwrap()
        };
        assert_eq!(with(0, &packed).read_file("/file", 1 << 20).unwrap(), text, "compression {kind}");
        // A file may have a part of an extent.
        let part = with(8192, &packed).read_file("/file", 1 << 20).unwrap();
        assert_eq!(part[..LEN - 8192], text[8192..], "compression {kind}");
        assert!(part[LEN - 8192..].iter().all(|byte| *byte == 0));
        let mut piece = [0; 3000];
        with(0, &packed).open("/file").unwrap().read_exact_at(&mut piece, 65_000).unwrap();
        assert_eq!(piece, text[65_000..68_000]);
        let mut damaged = packed.clone();
        damaged[2..40].fill(0xff);
        let error = with(0, &damaged).read_file("/file", 1 << 20).unwrap_err();
        assert!(matches!(error, FsError::Damaged(_)), "{error}");
    }
}

#[test]
fn xfs_has_label_and_uuid() {
    let options = ["-L", "boot", "-m", &format!("uuid={UUID}")];
    let Some(image) = xfs(&options, &[]) else { return };
    let fs = mount_bytes(image).unwrap().unwrap();
    assert_eq!(fs.label().as_deref(), Some("boot"));
    assert_eq!(fs.uuid().as_deref(), Some(UUID));
}

#[test]
fn fat_names_are_found_in_any_case() {
    let nodes = [File("/EFI/Linux/a long name.efi", b"x"), File("/EFI/BOOT/BOOTX64.EFI", b"y")];
    let Some(image) = fat(1440, &["-n", "ESP", "-i", "CAFE1234"], &nodes) else {
        return;
    };
    let fs = mount_bytes(image).unwrap().unwrap();
    assert_eq!(fs.read_file("/efi/boot/bootx64.efi", 9).unwrap(), b"y");
    assert_eq!(fs.read_file("/EFI/LINUX/A Long Name.EFI", 9).unwrap(), b"x");
    assert_eq!(fs.read_file("/EFI/LINUX/ALONGN~1.EFI", 9).unwrap(), b"x");
    assert_eq!(fs.label().as_deref(), Some("ESP"));
    assert_eq!(fs.uuid().as_deref(), Some("CAFE-1234"));
}

#[test]
fn holes_read_as_zeroes() {
    use std::os::unix::fs::FileExt;
    // 12 + 256 + 65536 blocks of 1 KiB come before the third level of a block map.
    const PLACES: [u64; 4] = [0, 1 << 20, 30 << 20, 67_400_000];
    const LEN: u64 = 67_500_001;
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let file = std::fs::File::create(tree.join("sparse")).unwrap();
    for place in PLACES {
        file.write_all_at(b"data", place).unwrap();
    }
    file.set_len(LEN).unwrap();
    drop(file);
    for kind in ["ext2", "ext4"] {
        let image = directory.path().join(kind);
        let (tree, path) = (tree.to_str().unwrap(), image.to_str().unwrap());
        let arguments = ["-q", "-F", "-t", kind, "-b", "1024", "-d", tree, path, "8m"];
        if tool("mke2fs", &arguments).is_none() {
            return;
        }
        let fs = mount_bytes(std::fs::read(&image).unwrap()).unwrap().unwrap();
        let file = fs.open("/sparse").unwrap();
        assert_eq!(file.len(), LEN);
        for place in PLACES {
            let mut around = [1; 3004];
            let start = place.saturating_sub(1500);
            file.read_exact_at(&mut around, start).unwrap();
            let at = (place - start) as usize;
            assert_eq!(&around[at..at + 4], b"data");
            let rest = around[..at].iter().chain(&around[at + 4..]);
            assert!(rest.copied().all(|byte| byte == 0), "{kind} around {place}");
        }
        let mut end = [1; 10_000];
        file.read_exact_at(&mut end, LEN - 10_000).unwrap();
        assert_eq!(end, [0; 10_000]);
    }
}

#[test]
fn truncated_file_system_says_so() {
    let Some(mut image) = ext(8, &["-t", "ext4"], &[]) else {
        return;
    };
    image.truncate(4 << 20);
    let Err(MountError::Failed { kind, error }) = mount_bytes(image) else {
        panic!("mounted");
    };
    assert_eq!(kind, FsKind::Ext4);
    assert!(error.to_string().contains("is the image truncated?"));
}

#[test]
fn noise_and_zeroes_are_nothing() {
    for bytes in [noise(1 << 20), vec![0; 1 << 20], vec![0; 512], Vec::new()] {
        assert!(mount_bytes(bytes).unwrap().is_none());
    }
}

#[test]
fn unreadable_kinds_are_named() {
    let mut luks = vec![0; 1 << 17];
    luks[..6].copy_from_slice(b"LUKS\xba\xbe");
    let mut squashfs = vec![0; 1 << 17];
    squashfs[..4].copy_from_slice(b"hsqs");
    for (bytes, kind) in [(luks, FsKind::Luks), (squashfs, FsKind::Squashfs)] {
        let found = mount_bytes(bytes).map(|fs| fs.is_some());
        assert!(matches!(found, Err(MountError::NotReadable(found)) if found == kind));
    }
}
