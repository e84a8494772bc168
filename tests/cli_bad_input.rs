//! Whatever is wrong with what a person gives, `kiln` says it in one line, fails, and leaves nothing.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod cli_support;

use cli_support::{Bench, MIB, disk, have_kvm};

/// Each refusal contains `expected`; afterwards nothing is there.
fn refuses(situation: &str, args: impl Fn(&Bench) -> Vec<String>, expected: &[&str]) {
    let bench = Bench::new();
    let args = args(&bench);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let line = bench.fail(&args);
    for part in expected {
        assert!(line.contains(part), "{situation}: {part:?} is not in {line:?}");
    }
    bench.assert_no_instance();
}

fn run_with(bench: &Bench, more: &[&str]) -> Vec<String> {
    let mut args = vec!["run".to_owned(), bench.file("disk.raw", &disk(1))];
    args.extend(more.iter().map(|&a| a.to_owned()));
    args
}

#[test]
fn images_that_are_none_are_refused() {
    refuses("missing", |_| vec!["run".into(), "/nonexistent/x.raw".into()], &["cannot open", "No such file"]);
    refuses("unknown name", |_| vec!["run".into(), "debian".into()], &["debian", "kiln image import"]);
    refuses("unknown id", |_| vec!["run".into(), "ami-0123456789abcdef0".into()], &["there is no image"]);
    refuses("empty", |b| vec!["run".into(), b.file("e.raw", &[])], &["is empty"]);
    refuses("cut off", |b| vec!["run".into(), b.file("c.raw", &[1; 1000])], &["multiple of 512"]);
    refuses("directory", |b| vec!["run".into(), b.path("").display().to_string()], &["is a directory"]);
    refuses("no format", |b| vec!["run".into(), b.file("disk", &disk(1))], &["--format raw"]);
    refuses(
        "raw declared qcow2",
        |b| vec!["run".into(), b.file("d.raw", &disk(1)), "--format".into(), "qcow2".into()],
        &["declared qcow2", "--format raw"],
    );
    refuses(
        "qcow2 declared raw",
        |b| {
            let mut contents = disk(0);
            contents[..4].copy_from_slice(b"QFI\xfb");
            vec!["run".into(), b.file("d.raw", &contents)]
        },
        &["declared raw", "--format qcow2"],
    );
    refuses("qcow2 cut off", |b| vec!["run".into(), b.file("q.qcow2", b"QFI\xfb\0\0\0\x03")], &["cut off"]);
}

#[test]
fn machines_that_cannot_be_are_refused() {
    for (args, expected) in [
        (["--instance-type", "t3.mirco"], ["t3.micro", "kiln types"]),
        (["--instance-type", ""], ["instance type", "kiln types"]),
        (["--memory", "63"], ["63 MiB", "64 MiB"]),
        (["--memory", "100000G"], ["host has available", "--memory"]),
        (["--memory", "lots"], ["lots", "--memory"]),
        (["--vcpus", "0"], ["1 to 32", "not 0"]),
        (["--vcpus", "33"], ["1 to 32", "not 33"]),
        (["--vcpus", "-1"], ["-1", "see kiln --help"]),
        (["--initrd", "/etc/hostname"], ["--kernel", "--initrd"]),
        (["--kernel", "/nonexistent/vmlinuz"], ["kernel /nonexistent/vmlinuz", "No such file"]),
        (["--kernel", "/etc"], ["kernel /etc", "directory"]),
        (["--name", "a\u{1b}b"], ["name", "control characters"]),
        (["--metadata-options", "http-tokens=maybe"], ["http-tokens", "required"]),
        (["--metadata-options", "hop-limit=65"], ["hop-limit", "1 to 64"]),
        (["--memroy", "64"], ["--memroy", "--memory"]),
    ] {
        refuses(args[1], |b| run_with(b, &args), &expected);
    }
    refuses("long command line", |b| run_with(b, &["--cmdline", &"x".repeat(3000)]), &["3000 bytes"]);
    refuses("hugepages", |b| run_with(b, &["--hugepages", "--memory", "1000000G"]), &["vm.nr_hugepages"]);
}

#[test]
fn files_for_the_guest_are_checked() {
    refuses(
        "user data too large",
        |b| run_with(b, &["--user-data", &b.file("ud", &[b'x'; 16385])]),
        &["16385 bytes", "limit of 16384"],
    );
    refuses(
        "user data missing",
        |b| run_with(b, &["--user-data", "/nonexistent"]),
        &["user data", "No such file"],
    );
    refuses("user data is a folder", |b| run_with(b, &["--user-data", "/etc"]), &["user data", "directory"]);
    refuses(
        "key missing",
        |b| run_with(b, &["--ssh-key", "/nonexistent"]),
        &["SSH public key", "No such file"],
    );
    let private = b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n";
    refuses("private key", |b| run_with(b, &["--ssh-key", &b.file("id", private)]), &["private key", ".pub"]);
    refuses(
        "no key",
        |b| run_with(b, &["--ssh-key", &b.file("k.pub", b"hello\n")]),
        &["no OpenSSH public key"],
    );
    refuses(
        "binary key",
        |b| run_with(b, &["--ssh-key", &b.file("k.pub", &[0xff; 40])]),
        &["it is not text"],
    );
}

#[test]
fn volume_smaller_than_the_image_is_refused() {
    refuses("too small", |b| run_with(b, &["--volume-size", "512K"]), &["512 KiB", "1 MiB", "--volume-size"]);
    refuses("too large", |b| run_with(b, &["--volume-size", "65T"]), &["64 TiB"]);
}

#[test]
fn volumes_that_cannot_be_are_refused() {
    refuses("a word", |b| run_with(b, &["--volume", "disk"]), &["says nothing of a volume"]);
    refuses("no size", |b| run_with(b, &["--volume", "keep"]), &["a size or a snapshot"]);
    refuses("the root", |b| run_with(b, &["--volume", "size=1,device=/dev/xvda"]), &["--volume-size"]);
    refuses(
        "twice",
        |b| run_with(b, &["--volume=size=1,device=sdf", "--volume=size=1,device=xvdf"]),
        &["xvdf"],
    );
}

#[test]
fn host_without_hardware_kvm_names_the_lab() {
    if std::path::Path::new("/sys/module/kvm_intel").exists()
        || std::path::Path::new("/sys/module/kvm_amd").exists()
    {
        println!("SKIPPED: this host's KVM is hardware-backed");
        return;
    }
    refuses("no hardware KVM", |b| run_with(b, &[]), &["/dev/kvm", "scripts/lab"]);
}

#[test]
fn missing_vmm_program_names_where_it_was_looked_for() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    let image = bench.file("disk.raw", &disk(1));
    let mut command = bench.kiln(&["run", &image, "--no-network"]);
    command.env("KILN_VMM", "/nonexistent/kiln-vmm").env("KILN_ALLOW_SOFTWARE_KVM", "1");
    let line = cli_support::refusal(&command.output().unwrap());
    assert!(line.contains("kiln-vmm") && line.contains("KILN_VMM"), "{line}");
    bench.assert_no_instance();
}

/// These get as far as the VMM, which reads the image.
#[test]
fn disks_that_do_not_boot_fail_in_one_line() {
    if !have_kvm() {
        return;
    }
    let mut gpt = vec![0; 4 * MIB];
    gpt[510..512].copy_from_slice(&[0x55, 0xaa]);
    gpt[450] = 0xee;
    gpt[454..458].copy_from_slice(&1u32.to_le_bytes());
    gpt[458..462].copy_from_slice(&8191u32.to_le_bytes());
    gpt[512..520].copy_from_slice(b"EFI PART");
    let random: Vec<u8> = (0..MIB).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (situation, contents) in [("zeroes", disk(0)), ("random bytes", random), ("broken GPT", gpt)] {
        let bench = Bench::new();
        let image = bench.file("disk.raw", &contents);
        let mut command = bench.kiln(&["run", &image, "--no-network", "--memory", "64", "--vcpus", "1"]);
        let output = command.env("KILN_ALLOW_SOFTWARE_KVM", "1").output().unwrap();
        let text = cli_support::stderr(&output);
        assert!(!output.status.success(), "{situation}: {text}");
        // One line says what was started, one what went wrong.
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{situation}: {text}");
        assert!(lines[1].starts_with("kiln: "), "{situation}: {text}");
        bench.assert_no_instance();
    }
}

#[test]
fn unknown_instances_are_refused() {
    let bench = Bench::new();
    for command in ["console", "start", "stop", "terminate"] {
        let line = bench.fail(&[command, "nobody"]);
        assert!(line.contains("there is no instance \"nobody\"") && line.contains("kiln ps"), "{line}");
    }
}

#[test]
fn usage_errors_are_one_line() {
    let bench = Bench::new();
    for args in
        [&[] as &[&str], &["frobnicate"], &["run"], &["image"], &["completion", "cobol"], &["run", "a", "b"]]
    {
        let output = bench.output(args);
        // Without a command, clap prints the help instead.
        if args.is_empty() || args == ["image"] {
            assert!(!output.status.success());
            continue;
        }
        assert_eq!(output.status.code(), Some(2));
        cli_support::refusal(&output);
    }
}

#[test]
fn state_directory_that_cannot_be_is_named() {
    let bench = Bench::new();
    let file = bench.file("file", b"x");
    let line = bench.fail(&["--state-dir", &format!("{file}/state"), "ps"]);
    assert!(line.contains("state directory") && line.contains(&file), "{line}");
}
