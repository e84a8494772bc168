//! Configurations as distributions write them, and as nobody should.

use crate::bootable::fuzzing::MemoryFs;
use crate::bootable::limits::{Budget, Limits};
use crate::bootable::search::Search;
use crate::bootable::volumes::Volumes;
use crate::bootable::{BootEntry, BootError};
use crate::partition::TableKind;

const ROOT: &str = "11111111-2222-3333-4444-555555555555";
const BOOT: &str = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee";

type Files<'a> = &'a [(&'a str, &'a [u8])];

fn fs(uuid: &str, label: &str, files: Files<'_>) -> MemoryFs {
    let mut fs = MemoryFs::new(files);
    (fs.uuid, fs.label) = (Some(uuid.to_owned()), Some(label.to_owned()));
    fs
}

fn find(file_systems: Vec<MemoryFs>) -> Result<BootEntry, BootError> {
    let boxed = file_systems.into_iter().map(|fs| Box::new(fs) as _);
    let volumes = Volumes::of(TableKind::Gpt, boxed.collect());
    let limits = Limits::default();
    let budget = Budget::new(&limits);
    let found = Search::new(&volumes, &limits, &budget).default();
    found.map(|(_, entry)| entry)
}

/// Boots from one file system with kernels `/boot/k1`, `/boot/k2`, `/boot/k3` and this `grub.cfg`.
fn boot(config: &str) -> Result<BootEntry, BootError> {
    find(vec![fs(
        ROOT,
        "root",
        &[
            ("/boot/grub/grub.cfg", config.as_bytes()),
            ("/boot/k1", b"1"),
            ("/boot/k2", b"2"),
            ("/boot/k3", b"3"),
            ("/boot/i", b"i"),
            ("/boot/extra.cfg", b"set extra=yes\nmenuentry X { linux /boot/k3 extra\n}\n"),
        ],
    )])
}

fn cmdline(config: &str) -> String {
    boot(config).unwrap().cmdline
}

const UBUNTU: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${initrdfail}" = 2 ]; then
   set initrdfail=
elif [ "${initrdfail}" = 1 ]; then
   set next_entry="${prev_entry}"
   set prev_entry=
   save_env prev_entry
   if [ "${next_entry}" ]; then
      set initrdfail=2
   fi
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
else
   set default="0"
fi
if [ x"${feature_menuentry_id}" = xy ]; then menuentry_id_option="--id"; else menuentry_id_option=""; fi
function recordfail {
  set recordfail=1
  # GRUB lacks write support for cloud disks.
  if [ -n "${have_grubenv}" ]; then if [ -z "${boot_once}" ]; then save_env recordfail; fi; fi
}
function initrdfail {
    if [ -n "${have_grubenv}" ]; then if [ -n "${partuuid}" ]; then
      if [ -z "${initrdfail}" ]; then
        set initrdfail=1
        save_env initrdfail
      fi; fi
    fi
}
function gfxmode {
	set gfxpayload="${1}"
	if [ "${1}" = "keep" ]; then set vt_handoff=vt.handoff=7; else set vt_handoff=; fi
}
if [ "${recordfail}" != 1 ]; then
  if [ -e ${prefix}/gfxblacklist.txt ]; then
    if [ ${grub_platform} != pc ]; then set linux_gfx_mode=keep
    elif hwmatch ${prefix}/gfxblacklist.txt 3; then
      if [ ${match} = 0 ]; then set linux_gfx_mode=keep; else set linux_gfx_mode=text; fi
    else set linux_gfx_mode=text; fi
  else set linux_gfx_mode=keep; fi
else
  set linux_gfx_mode=text
fi
export linux_gfx_mode
set partuuid=cafe1234-01
menuentry 'Ubuntu' --class ubuntu --class gnu-linux $menuentry_id_option 'gnulinux-simple-X' {
	recordfail
	load_video
	gfxmode $linux_gfx_mode
	insmod gzio
	if [ x$feature_platform_search_hint = xy ]; then
	  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1 --hint-efi=hd0,gpt1  11111111-2222-3333-4444-555555555555
	else
	  search --no-floppy --fs-uuid --set=root 11111111-2222-3333-4444-555555555555
	fi
	if [ "${initrdfail}" = 1 ]; then
	  linux	/boot/k1 root=PARTUUID=cafe1234-01 ro with-initrd
	  initrd	/boot/i
	else
	  linux	/boot/k1 root=PARTUUID=cafe1234-01 ro  console=tty1 console=ttyS0 $vt_handoff panic=-1
	  initrd	/boot/i /boot/i
	fi
	initrdfail
}
"#;

#[test]
fn ubuntu_picks_its_first_branch() {
    let entry = boot(UBUNTU).unwrap();
    assert_eq!(
        entry.cmdline,
        "root=PARTUUID=cafe1234-01 ro console=tty1 console=ttyS0 vt.handoff=7 panic=-1"
    );
    assert_eq!((entry.title.as_str(), entry.initrds.len()), ("Ubuntu", 2));
}

const FEDORA: &str = r#"
if [ -f ${config_directory}/grubenv ]; then
  load_env -f ${config_directory}/grubenv
elif [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
else
   set default="${saved_entry}"
fi
search --no-floppy --fs-uuid --set=root aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee
set boot=${root}
if [ -z "${kernelopts}" ]; then
  set kernelopts="root=UUID=11111111-2222-3333-4444-555555555555 ro net.ifnames=0"
fi
insmod blscfg
blscfg
if [ "${boot_success}" = "1" -o "${boot_indeterminate}" = "1" ]; then
  set menu_hide_ok=1
fi
"#;

fn fedora(environment: &str) -> Result<BootEntry, BootError> {
    let environment = format!("# GRUB Environment Block\n{environment}\n####");
    let entry = |title: &str, version: &str| {
        format!(
            "title {title}\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initramfs-{version}.img $tuned_initrd\noptions $kernelopts $tuned_params\ngrub_users $grub_users\n"
        )
    };
    let (new, old) = (entry("New", "6.10.1"), entry("Old", "6.9.1"));
    let boot: Files<'_> = &[
        ("/grub2/grub.cfg", FEDORA.as_bytes()),
        ("/grub2/grubenv", environment.as_bytes()),
        ("/loader/entries/machine-6.10.1.conf", new.as_bytes()),
        ("/loader/entries/machine-6.9.1.conf", old.as_bytes()),
        ("/loader/entries/machine-0-rescue.conf", b"title Rescue\nlinux /vmlinuz-0-rescue\n"),
        ("/vmlinuz-6.10.1", b"new"),
        ("/vmlinuz-6.9.1", b"old"),
        ("/initramfs-6.10.1.img", b"i"),
        ("/initramfs-6.9.1.img", b"i"),
    ];
    let stub = "search --no-floppy --root-dev-only --fs-uuid --set=dev aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee\nset prefix=($dev)/grub2\nexport $prefix\nconfigfile $prefix/grub.cfg\n";
    find(vec![
        fs("CAFE-1234", "EFI", &[("/EFI/fedora/grub.cfg", stub.as_bytes())]),
        fs(BOOT, "boot", boot),
        fs(ROOT, "root", &[("/etc/os-release", b"")]),
    ])
}

#[test]
fn fedora_boots_its_newest_entry_with_options_from_grub() {
    let entry = fedora("boot_success=0").unwrap();
    assert_eq!(entry.title, "New");
    assert_eq!(entry.cmdline, format!("root=UUID={ROOT} ro net.ifnames=0"));
    assert_eq!(entry.initrds.len(), 1);
}

#[test]
fn fedora_boots_its_saved_entry_with_options_from_the_environment() {
    for saved in ["machine-6.9.1", "Old", "1"] {
        let environment = format!("saved_entry={saved}\nkernelopts=root=/dev/vda3 quiet");
        let entry = fedora(&environment).unwrap();
        assert_eq!((entry.title.as_str(), entry.cmdline.as_str()), ("Old", "root=/dev/vda3 quiet"));
    }
}

#[test]
fn stub_on_an_efi_partition_leads_to_the_real_configuration() {
    let stub = "search.fs_uuid 11111111-2222-3333-4444-555555555555 root hd0,gpt2\nset prefix=($root)'/elsewhere/grub'\nconfigfile $prefix/grub.cfg\n";
    let config = b"menuentry A {\n linux /boot/k root=LABEL=root\n}\nmenuentry B { true; }";
    let entry = find(vec![
        fs("CAFE-1234", "EFI", &[("/EFI/debian/grub.cfg", stub.as_bytes())]),
        fs(ROOT, "root", &[("/elsewhere/grub/grub.cfg", config), ("/boot/k", b"k")]),
    ]);
    assert_eq!(entry.unwrap().cmdline, "root=LABEL=root");
}

#[test]
fn separate_boot_partition_is_searched_by_uuid_label_or_file() {
    for search in [
        "search --no-floppy --fs-uuid --set=root aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
        "search --set -u AAAAAAAA-bbbb-cccc-dddd-eeeeeeeeeeee",
        "search --label boot --set root",
        "search -l -s root boot",
        "search --set=root --file /vmlinuz-1",
        "set root='hd0,gpt2'",
        "root=hd0,2",
        "set root=(hd0,gpt2)",
    ] {
        let config = format!("menuentry A {{\n{search}\nlinux /vmlinuz-1 a\n}}");
        let entry = find(vec![
            fs(ROOT, "root", &[("/boot/grub/grub.cfg", config.as_bytes())]),
            fs(BOOT, "boot", &[("/vmlinuz-1", b"k")]),
        ]);
        let entry = entry.unwrap();
        assert_eq!(entry.kernel.place(), "/vmlinuz-1 on partition 2 (ext4)", "{search}");
    }
}

#[test]
fn one_time_entry_is_ignored_and_saved_entry_is_used() {
    let config = "load_env\nif [ \"${next_entry}\" ]; then set default=$next_entry; else set default=$saved_entry; fi\n\
        menuentry A --id a { linux /boot/k1 a\n}\nmenuentry B --id b { linux /boot/k2 b\n}\nmenuentry C --id c { linux /boot/k2 c\n}";
    let environment = b"# GRUB Environment Block\nsaved_entry=b\nnext_entry=c\n###";
    let entry = find(vec![fs(
        ROOT,
        "root",
        &[
            ("/boot/grub/grub.cfg", config.as_bytes()),
            ("/boot/grub/grubenv", environment),
            ("/boot/k1", b"1"),
            ("/boot/k2", b"2"),
        ],
    )]);
    assert_eq!(entry.unwrap().cmdline, "b");
}

#[test]
fn control_flow_and_variables_work() {
    for (script, expected) in [
        ("for i in a 'b c' d; do set x=\"$x-$i\"; done", "-a-b c-d"),
        ("set l='p q'; for i in $l \"$l\"; do set x=\"$x.$i\"; done", ".p.q.p q"),
        ("set n=1; while [ $n != 1111 ]; do set n=1$n; done; set x=$n", "1111"),
        ("until [ \"$x\" = aaa ]; do set x=${x}a; done", "aaa"),
        ("for i in 1 2 3; do if [ $i = 2 ]; then continue; fi; set x=$x$i; done", "13"),
        ("for i in 1 2 3; do if [ $i = 2 ]; then break; fi; set x=$x$i; done", "1"),
        ("function f { set x=\"$1+$2+$#\"; return 1; set x=no; }\nif f a b; then x=bad; fi", "a+b+2"),
        ("if false; then x=1; elif true; then x=2; else x=3; fi", "2"),
        ("if ! true; then x=1; else x=2; fi", "2"),
        ("if unknown_command; then x=1; else x=2; fi", "2"),
        ("source /boot/extra.cfg; set x=$extra", "yes"),
        ("x=before; exit; x=after", "before"),
        ("set y=1; unset y; set x=[$y]", "[]"),
        ("probe --set=x -u $root", ROOT),
        ("x=\"a\\\"b\"", "a\\\"b"),
    ] {
        let config = format!("default=A\n{script}\nmenuentry A {{ linux /boot/k1 \"v=$x\"\n}}");
        let found = cmdline(&config.replace("exit", "menuentry A { linux /boot/k1 \"v=$x\"\n}\nexit"));
        let found = found.trim_matches('"');
        assert_eq!(found, format!("v={expected}"), "{script}");
    }
}

#[test]
fn entries_do_not_see_each_others_variables() {
    let config = "default=1\nsubmenu S { set x=s\nmenuentry A { linux /boot/k1 a\n} }\nmenuentry B { linux /boot/k1 x=$x\n}";
    assert_eq!(cmdline(config), "x=");
}

#[test]
fn entry_that_loads_no_linux_gives_way_to_one_that_does() {
    let config = "default=0\nmenuentry Firmware { fwsetup\n}\nmenuentry Windows { chainloader +1\n}\nmenuentry L { linux /boot/k1 l\n}";
    assert_eq!(cmdline(config), "l");
}

#[test]
fn default_beyond_the_menu_is_the_first_entry() {
    for default in ["7", "nobody", "99999999999999999999", "0>5", "-1"] {
        let config = format!("default='{default}'\nmenuentry A {{ linux /boot/k1 a\n}}");
        assert_eq!(cmdline(&config), "a", "{default}");
    }
}

#[test]
fn kernel_without_menu_is_booted() {
    assert_eq!(cmdline("linux /boot/k1 root=x\ninitrd /boot/i\nboot\n"), "root=x");
}

#[test]
fn scripts_that_never_end_are_stopped() {
    let doubling = "set a=aaaaaaaaaaaaaaaa\nwhile true; do set a=$a$a; done";
    let nested = "for i in 1 2 3 4 5 6 7 8 9; do ".repeat(9) + "true; " + &"done; ".repeat(9);
    for script in [
        "while true; do true; done",
        "until false; do x=$x; done",
        "function f { f\n }\nf",
        "function f { f; f\n }\nf",
        "source /boot/grub/grub.cfg",
        "configfile /boot/grub/grub.cfg",
        "while true; do menuentry A { true; }; done",
        doubling,
        &nested,
    ] {
        let error = boot(script).unwrap_err();
        assert!(matches!(error, BootError::Script { .. }), "{script}: {error}");
    }
}

#[test]
fn many_variables_and_entries_stay_small() {
    let wide = "x".repeat(60_000);
    let mut config = format!("w={wide}\n");
    for i in 0..300 {
        config += &format!("v{i}=$w\nmenuentry m{i} {{ linux /boot/k1 $w\n}}\n");
    }
    // Ends one way or the other, soon and in bounded memory.
    let _ = boot(&config);
}

#[test]
fn nonsense_names_its_line() {
    let error = boot("true\nif true; then\nmenuentry A {\n").unwrap_err();
    assert_eq!(error.to_string(), "grub.cfg on partition 1 (ext4) cannot be understood; pass --kernel");
    let BootError::Script { source, .. } = error else {
        panic!();
    };
    assert_eq!(source.to_string(), "line 3 makes no sense");
}
