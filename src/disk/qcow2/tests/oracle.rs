//! QEMU's view of our images, and ours of QEMU's.

use super::*;

/// The contents according to `qemu-img convert`.
pub(super) fn qemu_reads(path: &std::path::Path) -> Option<Vec<u8>> {
    let raw = NamedTempFile::new().unwrap();
    let output = qemu_img(&["convert", "-O", "raw", path.to_str().unwrap(), raw.path().to_str().unwrap()])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(std::fs::read(raw.path()).unwrap())
}

fn scribble(disk: &dyn Disk, expected: &mut [u8]) {
    for (n, (offset, len)) in
        [(0, 512), (5000, 9000), (131_000, 300), (300_000, 400_000), (700_001, 77)].into_iter().enumerate()
    {
        disk.put(&vec![n as u8 + 0x80; len], offset).unwrap();
        expected[offset as usize..offset as usize + len].fill(n as u8 + 0x80);
    }
    disk.write_zeroes(262_144, 131_072, true).unwrap();
    expected[262_144..393_216].fill(0);
}

#[test]
fn qemu_finds_our_overlay_clean_and_reads_the_same() {
    let (base, mut expected) = raw_base(1 << 20);
    let top = overlay(2 << 20, Some(&base));
    check(top.path(), false);
    expected.resize(2 << 20, 0);
    let disk = open_over(&top, Some(&base));
    scribble(&*disk, &mut expected);
    disk.flush().unwrap();
    drop(disk);
    check(top.path(), false);
    if let Some(bytes) = qemu_reads(top.path()) {
        assert!(bytes == expected);
    }
}

#[test]
fn qemu_names_base_and_format_of_our_overlay() {
    let (base, _) = raw_base(1 << 20);
    let top = overlay(1 << 20, Some(&base));
    let Some(output) = qemu_img(&["info", "--output=json", top.path().to_str().unwrap()]) else { return };
    let info = String::from_utf8(output.stdout).unwrap();
    assert!(info.contains(&format!("\"backing-filename\": \"{}\"", base.path().display())), "{info}");
    assert!(info.contains("\"backing-filename-format\": \"raw\""), "{info}");
}

#[test]
fn qemu_writes_what_we_read_and_we_write_on() {
    // Standard and extended entries, with and without a base, several cluster sizes.
    for options in
        ["cluster_size=64k", "cluster_size=2M", "extended_l2=on,cluster_size=64k", "lazy_refcounts=on"]
    {
        let (base, mut expected) = raw_base(1 << 20);
        let top = NamedTempFile::new().unwrap();
        let (path, base_path) = (top.path().to_str().unwrap(), base.path().to_str().unwrap());
        let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base_path, "-o", options, path];
        let Some(output) = qemu_img(&create) else { return };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

        let disk = open_over(&top, Some(&base));
        assert!(disk.get(1 << 20, 0) == expected);
        scribble(&*disk, &mut expected);
        assert!(disk.get(1 << 20, 0) == expected, "{options}");
        drop(disk);
        check(top.path(), false);
        assert!(qemu_reads(top.path()).unwrap() == expected, "{options}");
        assert!(open_over(&top, Some(&base)).get(1 << 20, 0) == expected, "{options}");
    }
}

#[test]
fn compressed_bases_are_read_and_written_over() {
    for options in ["cluster_size=64k", "cluster_size=512", "extended_l2=on", "compat=0.10"] {
        let (raw, mut expected) = raw_base(3 << 19);
        let base = NamedTempFile::new().unwrap();
        let paths = (raw.path().to_str().unwrap(), base.path().to_str().unwrap());
        let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, paths.0, paths.1];
        let Some(output) = qemu_img(&convert) else { return };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

        let disk = open(vec![layer(&base, Format::Qcow2)], true).unwrap();
        assert!(disk.get(3 << 19, 0) == expected, "{options}");
        assert_eq!(disk.extent(0, 512, false), None);
        drop(disk);

        let top = overlay(2 << 20, Some(&base));
        expected.resize(2 << 20, 0);
        let layers = vec![layer(&top, Format::Qcow2), layer(&base, Format::Qcow2)];
        let disk = open(layers, false).unwrap();
        scribble(&*disk, &mut expected);
        assert!(disk.get(2 << 20, 0) == expected, "{options}");
    }
}

#[test]
fn a_compressed_image_can_be_the_top() {
    let (raw, mut expected) = raw_base(1 << 20);
    let top = NamedTempFile::new().unwrap();
    let paths = (raw.path().to_str().unwrap(), top.path().to_str().unwrap());
    for options in ["cluster_size=64k", "extended_l2=on"] {
        let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, paths.0, paths.1];
        let Some(output) = qemu_img(&convert) else { return };
        assert!(output.status.success());
        let disk = open_over(&top, None);
        scribble(&*disk, &mut expected);
        disk.discard(600_000, 300_000).unwrap();
        disk.write_zeroes(600_000, 300_000, true).unwrap();
        expected[600_000..900_000].fill(0);
        assert!(disk.get(1 << 20, 0) == expected);
        drop(disk);
        // The compressed data that are no longer used are not collected.
        check(top.path(), true);
        assert!(qemu_reads(top.path()).unwrap() == expected);
        expected = std::fs::read(raw.path()).unwrap();
    }
}

#[test]
fn an_old_image_is_read_but_not_written() {
    let top = NamedTempFile::new().unwrap();
    let path = top.path().to_str().unwrap();
    if qemu_img(&["create", "-q", "-f", "qcow2", "-o", "compat=0.10", path, "1M"]).is_none() {
        return;
    }
    let error = open(vec![layer(&top, Format::Qcow2)], false).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("compat=1.1"), "{error}");
    let disk = open(vec![layer(&top, Format::Qcow2)], true).unwrap();
    assert_eq!(disk.get(1 << 20, 0), vec![0; 1 << 20]);
}

#[test]
fn an_image_with_snapshots_is_not_written() {
    let top = overlay(1 << 20, None);
    let path = top.path().to_str().unwrap();
    if qemu_img(&["snapshot", "-c", "one", path]).is_none() {
        return;
    }
    let error = open(vec![layer(&top, Format::Qcow2)], false).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("snapshots"), "{error}");
}

#[test]
fn qemu_refuses_an_image_that_we_have_open() {
    let top = overlay(1 << 20, None);
    let disk = open_over(&top, None);
    let Some(output) = qemu_img(&["info", top.path().to_str().unwrap()]) else { return };
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("lock"));
    drop(disk);
}

#[test]
fn an_image_grows_past_one_refcount_block() {
    // 512 MiB of data in 64 KiB clusters need a fraction of a block; so count by small blocks:
    // 2 GiB are mapped by one block of 64 KiB clusters, which a sparse file reaches quickly.
    let top = NamedTempFile::new().unwrap();
    let path = top.path().to_str().unwrap();
    if qemu_img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", path, "8G"]).is_none() {
        return;
    }
    // Everything up to just under 2 GiB is taken.
    top.as_file().set_len((2 << 30) - (1 << 20)).unwrap();
    let disk = open_over(&top, None);
    for i in 0..64u64 {
        disk.put(&[i as u8 + 1; 65536], i << 16).unwrap();
    }
    drop(disk);
    assert!(top.as_file().metadata().unwrap().len() > 2 << 30);
    check(top.path(), false);
    let disk = open_over(&top, None);
    for i in 0..64u64 {
        assert_eq!(disk.get(1, i << 16), [i as u8 + 1]);
    }
}
