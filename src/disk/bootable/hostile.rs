//! Damaged images and arbitrary bytes: every search ends, in bounded time, without a panic.
//!
//! `KILN_DAMAGE_CASES` raises the number of cases for a long run.

use proptest::prelude::*;

use super::fuzzing;
use super::testing::*;

fn cases(usual: u32) -> ProptestConfig {
    let wanted = std::env::var("KILN_DAMAGE_CASES");
    ProptestConfig {
        cases: wanted.ok().and_then(|n| n.parse().ok()).unwrap_or(usual),
        failure_persistence: None,
        max_shrink_iters: 64,
        ..ProptestConfig::default()
    }
}

/// What is changed, as places among the parts of an image that hold anything.
#[derive(Debug, Clone)]
enum Damage {
    Byte(prop::sample::Index, u8),
    Word(prop::sample::Index, u32),
    /// Copies from one place to another: makes loops and double use.
    Copy(prop::sample::Index, prop::sample::Index, usize),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let place = any::<prop::sample::Index>;
    let word = prop_oneof![
        any::<u32>(),
        prop::sample::select(vec![0, 1, 2, 0xff, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX])
    ];
    let one = prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        (place(), word).prop_map(|(at, word)| Damage::Word(at, word)),
        (place(), place(), prop::sample::select(vec![2, 4, 8, 16, 64, 1024]))
            .prop_map(|(from, to, len)| Damage::Copy(from, to, len)),
    ];
    prop::collection::vec(one, 1..12)
}

fn apply(image: &mut [u8], used: &[usize], damage: &[Damage]) {
    for one in damage {
        match one {
            Damage::Byte(at, byte) => image[*at.get(used)] = *byte,
            Damage::Word(at, word) => {
                // On disk fields are aligned, and little or big endian.
                let at = at.get(used) & !3;
                let bytes = if at & 4 == 0 { word.to_le_bytes() } else { word.to_be_bytes() };
                image[at..at + 4].copy_from_slice(&bytes);
            }
            Damage::Copy(from, to, len) => {
                let (from, to) = (from.get(used) / len * len, to.get(used) / len * len);
                let len = (*len).min(image.len() - from).min(image.len() - to);
                image.copy_within(from..from + len, to);
            }
        }
    }
}

/// Damages an image again and again, and searches it.
fn survives(image: Option<Vec<u8>>) {
    let Some(image) = image else { return };
    let used: Vec<usize> = (0..image.len()).filter(|&at| image[at] != 0).collect();
    let mut runner = proptest::test_runner::TestRunner::new(cases(24));
    let result = runner.run(&damage(), |damage| {
        let mut image = image.clone();
        apply(&mut image, &used, &damage);
        fuzzing::bootable_find(&image);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

fn with_nodes(make: impl FnOnce(&[Node<'_>]) -> Option<Vec<u8>>, symlinks: bool) {
    let config = b"load_env\nset default=$saved_entry\nmenuentry A --id a {\nsearch --set=root --file /boot/vmlinuz-6.1\nlinux /boot/vmlinuz-6.1 root=/dev/vda1\ninitrd /boot/initrd.img-6.1\n}\n";
    let kernel = vec![0x55; 20_000];
    let unified = super::uki::tests::build(&[(b".linux", b"kernel"), (b".cmdline", b"quiet")]);
    let mut nodes = vec![
        File("/boot/grub/grub.cfg", config),
        File("/boot/grub/grubenv", b"# GRUB Environment Block\nsaved_entry=a\n##"),
        File("/boot/vmlinuz-6.1", &kernel),
        File("/boot/initrd.img-6.1", b"initrd"),
        File("/boot/loader/entries/x.conf", b"title X\nlinux /vmlinuz-6.1\noptions $kernelopts\n"),
        File("/EFI/Linux/x.efi", &unified),
        File("/etc/os-release", b"PRETTY_NAME=X\n"),
    ];
    if symlinks {
        nodes.push(Link("/vmlinuz", "boot/vmlinuz-6.1"));
    }
    let image = make(&nodes);
    if let Some(image) = image.clone() {
        let disk: std::sync::Arc<dyn crate::Disk> = crate::partition::MemoryDisk::new(image);
        let entry = super::find(&disk, &super::Limits::default()).unwrap();
        assert_eq!(entry.kernel.len(), kernel.len() as u64);
    }
    survives(image);
}

#[test]
fn damaged_ext4_ends() {
    with_nodes(|nodes| ext(1, &["-t", "ext4", "-N", "64", "-b", "1024"], nodes), true);
}

#[test]
fn damaged_ext4_with_a_journal_ends() {
    let options = ["-t", "ext4", "-N", "64", "-b", "1024", "-J", "size=1", "-O", "^resize_inode"];
    with_nodes(
        |nodes| {
            let mut image = ext(6, &options, nodes)?;
            // As if it had not been unmounted.
            image[1024 + 0x60] |= 4;
            Some(image)
        },
        true,
    );
}

#[test]
fn damaged_ext2_ends() {
    with_nodes(|nodes| ext(1, &["-t", "ext2", "-N", "64", "-b", "1024"], nodes), true);
}

#[test]
fn damaged_fat_ends() {
    for (width, kib) in [("12", 1440), ("16", 5 << 10)] {
        let options = ["-F", width, "-s", "1"];
        with_nodes(|nodes| fat(kib, &options, nodes), false);
    }
}

#[test]
fn damaged_xfs_ends() {
    with_nodes(|nodes| xfs(&["-b", "size=1024"], nodes), true);
}

#[test]
fn damaged_btrfs_ends() {
    with_nodes(|nodes| btrfs(&["-M", "-n", "4096", "-s", "4096"], nodes), true);
}

#[test]
fn damaged_gpt_ends() {
    use crate::partition::PartitionType;
    use crate::partition::testing::Gpt;
    let image = Gpt::new(200 * 512)
        .contents(1, PartitionType::ROOT_X86_64, 40, &[7; 512])
        .partition(15, PartitionType::ESP, 50, 60, "esp")
        .build();
    survives(Some(image));
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn any_bytes_are_a_disk(bytes in prop::collection::vec(any::<u8>(), 0..8192)) {
        fuzzing::partition_table(&bytes);
        fuzzing::bootable_find(&bytes);
    }

    #[test]
    fn any_words_are_a_script(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "if", "then", "elif", "else", "fi", "for", "in", "do", "done", "while", "until",
                "function", "f", "{", "}", ";", "\n", "a", "'", "\"", "\\", "$a", "${a", "$1", "[",
                "]", "=", "!", "-f", "/boot/vmlinuz", "set", "a=$a$a", "menuentry", "submenu",
                "linux", "initrd", "search", "--set=root", "source", "/boot/grub/grub.cfg",
                "configfile", "load_env", "blscfg", "default=1>1", "return", "break", "exit",
            ]),
            0..60,
        )
    ) {
        fuzzing::grub_script(words.join(" ").as_bytes());
    }

    #[test]
    fn any_text_is_an_entry(text in "\\PC{0,20}(\n(title|linux|initrd|options|version|sort-key) \\PC{0,20}){0,9}") {
        fuzzing::bls_entry(text.as_bytes());
    }

    #[test]
    fn any_text_is_an_extlinux_conf(
        text in "((default|label|linux|kernel|append|initrd|menu label|include) \\PC{0,20}\n){0,20}"
    ) {
        fuzzing::extlinux_conf(text.as_bytes());
    }

    #[test]
    fn any_bytes_are_a_unified_image(
        head in prop::collection::vec(any::<u8>(), 0..256),
        offset in 0..200u8,
    ) {
        fuzzing::uki(&head);
        let mut image = super::uki::tests::build(&[(b".linux", &head), (b".initrd", &head)]);
        image[60] = offset;
        fuzzing::uki(&image);
        let at = usize::from(offset) % image.len();
        image[at] = offset;
        fuzzing::uki(&image);
    }
}
