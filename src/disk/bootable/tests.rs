//! Whole disks, as distributions lay them out.

use super::testing::*;
use super::*;
use crate::partition::PartitionType;
use crate::partition::testing::{Gpt, MemoryDisk};

const KERNEL: &[u8] = b"MZ kernel";
const INITRD: &[u8] = b"initrd";

fn found(nodes: &[Node<'_>]) -> Option<Result<BootEntry, BootError>> {
    Some(find(&root_disk(&ext4(nodes)?), &Limits::default()))
}

fn read(file: &BootFile) -> Vec<u8> {
    file.read(1 << 20).unwrap()
}

const DEBIAN: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod vga
  fi
}
terminal_input console
if [ x$feature_timeout_style = xy ] ; then set timeout_style=menu
  set timeout=0
fi
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple-UUID' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; fi
	insmod part_gpt
	search --no-floppy --fs-uuid --set=root 6b1d2ad5-9c5e-4f5a-b7f3-0a1b2c3d4e5f
	echo	'Loading Linux 6.1.0-18-cloud-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-18-cloud-amd64 root=PARTUUID=00000001-0000-0000-0000-000000000000 ro  console=tty0 console=ttyS0,115200 
	initrd	/boot/initrd.img-6.1.0-18-cloud-amd64
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-UUID' {
	menuentry 'Debian, with Linux 6.1.0-17' $menuentry_id_option 'gnulinux-old' {
		search --no-floppy --fs-uuid --set=root 6b1d2ad5-9c5e-4f5a-b7f3-0a1b2c3d4e5f
		linux	/boot/vmlinuz-6.1.0-17-cloud-amd64 root=/dev/vda1 ro
	}
}
"#;

fn debian(config: &str) -> Option<Result<BootEntry, BootError>> {
    found(&[
        File("/boot/grub/grub.cfg", config.as_bytes()),
        File("/boot/vmlinuz-6.1.0-18-cloud-amd64", KERNEL),
        File("/boot/vmlinuz-6.1.0-17-cloud-amd64", b"old kernel"),
        File("/boot/initrd.img-6.1.0-18-cloud-amd64", INITRD),
        File("/etc/os-release", b"PRETTY_NAME=\"Debian\"\n"),
    ])
}

#[test]
fn debian_grub_cfg_gives_its_first_entry() {
    let Some(entry) = debian(DEBIAN) else { return };
    let entry = entry.unwrap();
    assert_eq!(entry.title, "Debian GNU/Linux");
    assert_eq!(entry.origin, "grub.cfg on partition 1 (ext4)");
    assert_eq!(
        entry.cmdline,
        "root=PARTUUID=00000001-0000-0000-0000-000000000000 ro console=tty0 console=ttyS0,115200"
    );
    assert_eq!(read(&entry.kernel), KERNEL);
    assert_eq!(entry.initrds.iter().map(read).collect::<Vec<_>>(), [INITRD]);
    assert_eq!(entry.kernel.place(), "/boot/vmlinuz-6.1.0-18-cloud-amd64 on partition 1 (ext4)");
}

#[test]
fn default_may_name_an_entry_in_a_submenu() {
    for default in ["1>0", "gnulinux-advanced-UUID>gnulinux-old", "1"] {
        let config = DEBIAN.replace("set default=\"0\"", &format!("set default=\"{default}\""));
        let Some(entry) = debian(&config) else { return };
        let entry = entry.unwrap();
        assert_eq!(entry.cmdline, "root=/dev/vda1 ro", "{default}");
        assert_eq!(read(&entry.kernel), b"old kernel");
    }
}

#[test]
fn alpine_extlinux_conf_gives_its_default() {
    let conf = b"DEFAULT virt\nLABEL virt\n  MENU LABEL Linux virt\n  LINUX vmlinuz-virt\n  INITRD initramfs-virt\n  APPEND root=LABEL=/ modules=ext4 console=ttyS0\n";
    let entry = found(&[
        File("/boot/extlinux.conf", conf),
        File("/boot/vmlinuz-virt", KERNEL),
        File("/boot/initramfs-virt", INITRD),
    ]);
    let Some(entry) = entry else { return };
    let entry = entry.unwrap();
    assert_eq!(entry.title, "Linux virt");
    assert_eq!(entry.origin, "extlinux.conf on partition 1 (ext4)");
    assert_eq!(entry.cmdline, "root=LABEL=/ modules=ext4 console=ttyS0");
    assert_eq!(read(&entry.initrds[0]), INITRD);
}

#[test]
fn kernel_without_configuration_gets_a_command_line() {
    let entry = found(&[
        File("/boot/vmlinuz-6.9.1", b"old"),
        File("/boot/vmlinuz-6.10.0", KERNEL),
        File("/boot/initrd.img-6.9.1", b"old"),
        File("/boot/initrd.img-6.10.0", INITRD),
        File("/etc/os-release", b""),
    ]);
    let Some(entry) = entry else { return };
    let entry = entry.unwrap();
    assert_eq!(read(&entry.kernel), KERNEL);
    assert_eq!(read(&entry.initrds[0]), INITRD);
    assert_eq!(entry.cmdline, "root=PARTUUID=00000001-0000-0000-0000-000000000000 ro console=ttyS0");
}

#[test]
fn links_to_the_newest_kernel_are_followed() {
    let entry = found(&[
        Link("/vmlinuz", "boot/vmlinuz-6.1"),
        Link("/initrd.img", "/boot/initrd.img-6.1"),
        File("/boot/vmlinuz-6.1", KERNEL),
        File("/boot/initrd.img-6.1", INITRD),
    ]);
    let Some(entry) = entry else { return };
    assert_eq!(read(&entry.unwrap().kernel), KERNEL);
}

fn error_of(nodes: &[Node<'_>]) -> Option<String> {
    Some(found(nodes)?.unwrap_err().to_string())
}

#[test]
fn image_without_kernel_says_so() {
    let Some(error) = error_of(&[File("/etc/os-release", b"")]) else {
        return;
    };
    assert_eq!(error, "no boot entry and no /boot/vmlinuz* on partition 1 (ext4); pass --kernel");
}

#[test]
fn entry_with_a_missing_file_names_it() {
    let config = b"menuentry 'A' { linux /boot/gone root=/dev/vda1\n }";
    let Some(error) = error_of(&[File("/boot/grub/grub.cfg", config)]) else {
        return;
    };
    assert_eq!(
        error,
        "grub.cfg on partition 1 (ext4): entry \"A\" needs /boot/gone on partition 1 (ext4), which cannot be read; pass --kernel"
    );
}

#[test]
fn inspection_shows_partitions_entries_and_the_default() {
    let nodes = [
        File("/boot/grub/grub.cfg", DEBIAN.as_bytes()),
        File("/boot/vmlinuz-6.1.0-18-cloud-amd64", KERNEL),
        File("/boot/initrd.img-6.1.0-18-cloud-amd64", INITRD),
        File("/etc/os-release", b"PRETTY_NAME=\"Debian\"\n"),
    ];
    let Some(root) = ext4(&nodes) else { return };
    let shown = inspect(&root_disk(&root), &Limits::default()).unwrap();
    assert_eq!(shown.os.as_deref(), Some("Debian"));
    let [partition] = &shown.partitions[..] else {
        panic!("{shown:?}");
    };
    assert_eq!(partition.filesystem, Some(filesystem::FsKind::Ext4));
    assert_eq!(partition.label.as_deref(), Some("cloudimg-rootfs"));
    assert_eq!(partition.uuid.as_deref(), Some(UUID));
    assert_eq!(partition.description, Some("Linux root (x86-64)"));
    let titles: Vec<_> = shown.entries.iter().map(|e| (e.title.as_str(), e.problem.is_some())).collect();
    assert_eq!(
        titles,
        [
            ("Debian GNU/Linux", false),
            ("Debian, with Linux 6.1.0-17", true),
            ("vmlinuz-6.1.0-18-cloud-amd64", false)
        ]
    );
    assert_eq!((shown.default, shown.problem), (Some(0), None));
}

fn error_on(image: Vec<u8>) -> String {
    let disk: Arc<dyn Disk> = MemoryDisk::new(image);
    find(&disk, &Limits::default()).unwrap_err().to_string()
}

fn squashfs() -> Vec<u8> {
    let mut image = vec![0; 1 << 17];
    image[..4].copy_from_slice(b"hsqs");
    image
}

#[test]
fn files_that_are_no_disks_say_so() {
    let nothing = "no partition table and no file system in it: is this a disk image?";
    assert_eq!(error_on(vec![0; 1 << 20]), nothing);
    assert_eq!(error_on(vec![0xa5; 1 << 20]), nothing);
    assert_eq!(error_on(Vec::new()), "the disk is empty (0 bytes): is this the right file?");
}

#[test]
fn unreadable_file_systems_are_named() {
    assert_eq!(
        error_on(squashfs()),
        "the disk is Squashfs, which Kiln cannot read yet; pass --kernel and --initrd"
    );
    let gpt = |root: &[u8]| Gpt::new(4 << 20).contents(1, PartitionType::ROOT_X86_64, 2048, root);
    assert_eq!(
        error_on(gpt(&squashfs()).build()),
        "partition 1 is Squashfs, which Kiln cannot read yet; pass --kernel and --initrd"
    );
    assert_eq!(
        error_on(gpt(&[0xa5; 4096]).build()),
        "no file system on any partition; pass --kernel and --initrd"
    );
    let Some(esp) = fat(512, &[], &[]) else { return };
    let both = gpt(&squashfs()).contents(15, PartitionType::ESP, 4096, &esp);
    assert_eq!(
        error_on(both.build()),
        "no kernel on partition 15 (FAT12); partition 1 is Squashfs, which Kiln cannot read yet; pass --kernel and --initrd"
    );
}

#[test]
fn truncated_file_system_is_named() {
    let Some(mut root) = ext4(&[]) else { return };
    root.truncate(4 << 20);
    assert_eq!(
        error_on(root),
        "the disk is ext4, but the file system is damaged: it is larger than its partition (is the image truncated?); pass --kernel and --initrd"
    );
}

#[test]
fn kernel_on_a_device_that_is_not_there_names_it() {
    let config = b"menuentry 'A' {\n set root='lvm/vg-root'\n linux /vmlinuz root=/dev/vg/root\n}";
    let Some(error) = error_of(&[File("/boot/grub/grub.cfg", config)]) else {
        return;
    };
    assert_eq!(
        error,
        "grub.cfg on partition 1 (ext4): entry \"A\" needs /vmlinuz, which is on no partition that Kiln can read; pass --kernel"
    );
}

#[test]
fn kernel_and_initrd_larger_than_the_limits_are_refused() {
    let nodes = [File("/boot/vmlinuz-1", &[1; 5000]), File("/boot/initrd.img-1", &[2; 5000])];
    let Some(root) = ext4(&nodes) else { return };
    for (kernel, initrd) in [(4999, 5000), (5000, 4999)] {
        let limits = Limits { kernel, initrd, ..Limits::default() };
        let error = find(&root_disk(&root), &limits).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, "5000 bytes is more than the limit of 4999");
    }
}

#[test]
fn search_that_costs_too_much_says_so() {
    let Some(root) = ext4(&[File("/boot/vmlinuz-1", KERNEL)]) else {
        return;
    };
    let limits = Limits { metadata: 20_000, ..Limits::default() };
    let error = find(&root_disk(&root), &limits).unwrap_err();
    assert!(matches!(error, BootError::Exhausted), "{error}");
}

#[test]
fn unified_image_on_an_efi_partition_boots() {
    let os = b"ID=x\nPRETTY_NAME=\"X Linux 2\"\n\0";
    let unified = |kernel: &[u8]| {
        uki::tests::build(&[
            (b".osrel", os),
            (b".cmdline", b"root=LABEL=x quiet\0"),
            (b".linux", kernel),
            (b".initrd", INITRD),
        ])
    };
    let (old, new) = (unified(b"old"), unified(KERNEL));
    let nodes = [File("/EFI/Linux/x-9.efi", old.as_slice()), File("/EFI/Linux/x-10.efi", new.as_slice())];
    let Some(esp) = fat(2048, &[], &nodes) else { return };
    let entry = find(&one_partition(PartitionType::ESP, &esp), &Limits::default()).unwrap();
    assert_eq!(entry.title, "X Linux 2");
    assert_eq!(entry.origin, "x-10.efi on partition 1 (FAT12)");
    assert_eq!(entry.cmdline, "root=LABEL=x quiet");
    assert_eq!((read(&entry.kernel), read(&entry.initrds[0])), (KERNEL.to_vec(), INITRD.to_vec()));
    let mut streamed = Vec::new();
    std::io::copy(&mut entry.kernel.reader(), &mut streamed).unwrap();
    assert_eq!(streamed, KERNEL);
    assert!(entry.kernel.read_exact_at(&mut [0; 2], KERNEL.len() as u64 - 1).is_err());
}

#[test]
fn loader_conf_names_the_default_of_systemd_boot() {
    let nodes = [
        File("/loader/loader.conf", b"timeout 3\ndefault b-*.conf\n"),
        File("/loader/entries/b-1.conf", b"title B\nlinux /k\noptions root=b\n"),
        File("/loader/entries/c-2.conf", b"title C\nlinux /k\noptions root=c\n"),
        File("/k", KERNEL),
    ];
    let Some(esp) = fat(2048, &[], &nodes) else { return };
    let entry = find(&one_partition(PartitionType::ESP, &esp), &Limits::default()).unwrap();
    assert_eq!((entry.title.as_str(), entry.cmdline.as_str()), ("B", "root=b"));
}

#[test]
fn amazon_linux_boots_from_xfs() {
    let entry = b"title Amazon Linux (6.1.1) 2023\nversion 6.1.1\nlinux /boot/vmlinuz-6.1.1\ninitrd /boot/initramfs-6.1.1.img\noptions root=UUID=x ro console=ttyS0,115200n8 quiet\ngrub_users $grub_users\n";
    let nodes = [
        File("/boot/loader/entries/machine-6.1.1.conf", entry.as_slice()),
        File("/boot/grub2/grub.cfg", b"load_env\nset default=$saved_entry\nblscfg\n"),
        File("/boot/grub2/grubenv", b"# GRUB Environment Block\nsaved_entry=machine-6.1.1\n##"),
        File("/boot/vmlinuz-6.1.1", KERNEL),
        File("/boot/initramfs-6.1.1.img", INITRD),
        File("/etc/os-release", b"PRETTY_NAME=\"Amazon Linux 2023\"\n"),
    ];
    let Some(root) = xfs(&["-L", "/"], &nodes) else { return };
    let disk = root_disk(&root);
    let entry = find(&disk, &Limits::default()).unwrap();
    assert_eq!(entry.title, "Amazon Linux (6.1.1) 2023");
    assert_eq!(entry.origin, "loader entry on partition 1 (XFS)");
    assert_eq!(entry.cmdline, "root=UUID=x ro console=ttyS0,115200n8 quiet");
    let shown = inspect(&disk, &Limits::default()).unwrap();
    assert_eq!(shown.os.as_deref(), Some("Amazon Linux 2023"));
    assert_eq!(shown.default, Some(0));
}

#[test]
fn arch_linux_boots_from_btrfs() {
    let menu = b"set timeout=5\nmenuentry 'Arch Linux' --class arch {\n  load_video\n  insmod btrfs\n  search --no-floppy --fs-uuid --set=root 6b1d2ad5-9c5e-4f5a-b7f3-0a1b2c3d4e5f\n  linux /boot/vmlinuz-linux root=UUID=6b1d2ad5-9c5e-4f5a-b7f3-0a1b2c3d4e5f rw net.ifnames=0 rootflags=compress-force=zstd console=ttyS0,115200\n  initrd /boot/initramfs-linux.img\n}\n";
    let nodes = [
        File("/boot/grub/grub.cfg", menu.as_slice()),
        File("/boot/vmlinuz-linux", KERNEL),
        File("/boot/initramfs-linux.img", INITRD),
        Link("/etc/os-release", "../usr/lib/os-release"),
        File("/usr/lib/os-release", b"PRETTY_NAME=\"Arch Linux\"\n"),
    ];
    let Some(root) = btrfs(&["-M", "-U", UUID], &nodes) else { return };
    let disk = root_disk(&root);
    let entry = find(&disk, &Limits::default()).unwrap();
    assert_eq!(
        (entry.title.as_str(), entry.origin.as_str()),
        ("Arch Linux", "grub.cfg on partition 1 (Btrfs)")
    );
    assert!(entry.cmdline.ends_with("rootflags=compress-force=zstd console=ttyS0,115200"));
    assert_eq!(inspect(&disk, &Limits::default()).unwrap().os.as_deref(), Some("Arch Linux"));
}

#[test]
fn whole_disk_file_system_boots() {
    let nodes = [File("/boot/vmlinuz", KERNEL), File("/sbin/init", b"#!")];
    let Some(root) = ext4(&nodes) else { return };
    let disk: Arc<dyn Disk> = MemoryDisk::new(root);
    let entry = find(&disk, &Limits::default()).unwrap();
    assert_eq!(entry.origin, "/boot/vmlinuz on the disk (ext4)");
    assert_eq!(entry.cmdline, "root=/dev/vda ro console=ttyS0");
    let cmdline = default_cmdline(&disk, &Limits::default()).unwrap();
    assert_eq!(cmdline, entry.cmdline);
}
