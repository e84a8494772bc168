//! Whole disks, as distributions lay them out.

use super::testing::*;
use super::*;

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
