//! A host of the test's own for real machines: a network, `/run` and bare-metal guests.

use std::path::Path;
use std::process::Command;

use super::Daemon;

const INSIDE: &str = "KILN_TEST_OWN_HOST";

/// What a test needs that is not here.
fn lacks() -> Option<String> {
    if let Err(e) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Some(format!("/dev/kvm: {e}"));
    }
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let missing = |program: &&&str| Command::new(program).arg("--help").output().is_err();
    let program = ["nft", "ip", "unshare", "mkfs.vfat", "mcopy"].iter().find(missing);
    program.map(|program| format!("needs the program {program}"))
}

/// Runs the ignored test `inside` of this test binary where nothing is but what it makes; answers what it
/// printed. Says why not, if it cannot be.
pub fn run_inside() -> String {
    run_inside_with(&[])
}

/// The same with more variables.
pub fn run_inside_with(variables: &[(&str, &str)]) -> String {
    if let Some(lacks) = lacks() {
        println!("SKIPPED: {lacks}");
        return String::new();
    }
    let host = "mount -t tmpfs none /run && mkdir /run/netns && ip link set lo up && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "sh", "-c", host, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "inside", "--ignored", "--nocapture"])
        .env(INSIDE, "1")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    for line in text.lines().filter(|line| line.starts_with("SKIPPED")) {
        println!("{line}");
    }
    assert!(output.status.success(), "{text}");
    text.into_owned()
}

/// Whether this is that test where it belongs.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// What `kilnd` and `kiln` need in their environment to run real machines from here.
pub fn variables(vmm: &Path) -> [(&str, &str); 2] {
    [("KILN_ALLOW_SOFTWARE_KVM", "1"), ("KILN_VMM", vmm.to_str().unwrap())]
}

/// A daemon that runs real machines, and the path of a disk for them.
pub fn daemon() -> (Daemon, String) {
    let daemon = Daemon::new_with(&variables(Path::new(env!("CARGO_BIN_EXE_kiln-vmm"))));
    let image = guest_image(&daemon.path("guest.raw"));
    (daemon, image)
}

/// Makes a disk whose boot entry is a guest that waits for its power button; answers its path.
pub fn guest_image(path: &Path) -> String {
    let kernel = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/guest/build.sh")).output().unwrap();
    let kernel = String::from_utf8(kernel.stdout).unwrap().trim().to_owned();
    let entry = path.with_extension("conf");
    std::fs::write(&entry, "title guest\nlinux /kernel\noptions test=hello,power-button\n").unwrap();
    let (image, entry) = (path.to_str().unwrap().to_owned(), entry.to_str().unwrap().to_owned());
    let script = format!(
        "truncate -s 16M {image} && mkfs.vfat {image} && mmd -i {image} ::loader ::loader/entries &&
         mcopy -i {image} {kernel} ::kernel && mcopy -i {image} {entry} ::loader/entries/guest.conf"
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    image
}
