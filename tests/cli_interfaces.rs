//! Several network interfaces and IPv6 from the command line: what metadata and `kiln ps` say, over stop and
//! start. The machine is a fake; taps, routes and filter are real, in namespaces of the test's own.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod cli_support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use cli_support::{Bench, disk, fake_vmm, have_kvm};
use serde_json::Value;

#[test]
#[ignore = "is the VMM program of the other tests"]
fn fake_vmm() {
    fake_vmm::play();
}

fn words(bench: &Bench, line: &str) -> String {
    bench.succeed(&line.split(' ').collect::<Vec<_>>()).trim_end().to_owned()
}

fn refused(bench: &Bench, line: &str) -> String {
    bench.fail(&line.split(' ').collect::<Vec<_>>())
}

/// Whether this host can have a host of the test's own inside; says why not.
fn have_namespaces() -> bool {
    let there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let possible = rustix::process::geteuid().is_root()
        && Path::new("/dev/net/tun").exists()
        && there("nft")
        && there("unshare");
    if !possible {
        println!("SKIPPED: needs root, /dev/net/tun, nft and unshare");
    }
    possible
}

/// `kiln` in the foreground on a host of its own, until its guest is up.
fn run(bench: &Bench, args: &[&str]) -> Child {
    let kiln = bench.kiln(&[]);
    let script = "mkdir -p /run/netns /run/kiln && mount -t tmpfs none /run/netns \
        && mount -t tmpfs none /run/kiln && ip link set lo up && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "sh", "-c", script, "sh"]).arg(kiln.get_program()).args(args);
    for (name, value) in kiln.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("KILN_VMM", fake_vmm::program(bench, "serve")).env("KILN_ALLOW_SOFTWARE_KVM", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("guest is up") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the console ended");
    }
    child.stdout = Some(output.into_inner());
    child
}

fn stop(bench: &Bench, mut running: Child) {
    words(bench, "stop two");
    drop(running.stdout.take());
    running.wait().unwrap();
}

fn instance(bench: &Bench) -> Value {
    let all: Value = serde_json::from_str(&words(bench, "ps --json")).unwrap();
    all[0].clone()
}

#[test]
fn interfaces_and_their_addresses_are_in_the_metadata_and_stay_over_stop_and_start() {
    let bench = Bench::new();
    if !have_kvm() || !have_namespaces() {
        return;
    }
    let image = bench.file("disk.raw", &disk(1));
    words(&bench, "vpc create 10.50.0.0/16 --ipv6=2001:db8:31::/56 --name blue");
    words(&bench, "subnet create blue 10.50.2.0/24 --ipv6 --name blue-2");
    words(&bench, "subnet create blue 10.50.3.0/24 --name blue-3");
    words(&bench, "sg create web --vpc blue");
    let shape = "--keep --name two --memory 64 --subnet blue-2 --ipv6 --interface \
        subnet=blue-3,group=web,ip=10.50.3.9 --interface ipv6";
    let args: Vec<_> = ["run", &image].into_iter().chain(shape.split_whitespace()).collect();
    let running = run(&bench, &args);

    let shown = instance(&bench);
    let interfaces = shown["interfaces"].as_array().unwrap();
    let addresses: Vec<_> =
        interfaces.iter().map(|own| (own["private_ip"].as_str().unwrap(), own["ipv6"].as_str())).collect();
    assert_eq!(
        addresses,
        [("10.50.2.4", Some("2001:db8:31::4")), ("10.50.3.9", None), ("10.50.2.5", Some("2001:db8:31::5"))]
    );
    let leaf = |number: usize, name: &str| {
        let mac = interfaces[number]["mac"].as_str().unwrap();
        words(&bench, &format!("metadata two meta-data/network/interfaces/macs/{mac}/{name}"))
    };
    for (number, device) in ["0", "1", "2"].into_iter().enumerate() {
        assert_eq!(leaf(number, "device-number"), device);
        assert_eq!(leaf(number, "interface-id"), interfaces[number]["id"].as_str().unwrap());
    }
    assert_eq!(leaf(0, "ipv6s"), "2001:db8:31::4");
    assert_eq!(leaf(0, "subnet-ipv6-cidr-blocks"), "2001:db8:31::/64");
    assert_eq!(leaf(0, "vpc-ipv6-cidr-blocks"), "2001:db8:31::/56");
    assert_eq!((leaf(0, "security-groups"), leaf(1, "security-groups")), ("default".into(), "web".into()));
    assert_eq!(leaf(1, "local-ipv4s"), "10.50.3.9");
    assert_eq!(leaf(1, "subnet-ipv4-cidr-block"), "10.50.3.0/24");
    assert_eq!(leaf(2, "ipv6s"), "2001:db8:31::5");
    assert_eq!(words(&bench, "metadata two meta-data/ipv6"), "2001:db8:31::4");
    assert_eq!(words(&bench, "interface ls --json").matches("\"mac\"").count(), 3);

    // Who may connect, by IPv6 as well.
    assert!(words(&bench, "sg explain two 2001:db8:99::7 443").contains("denied"));
    words(&bench, "sg authorize default --vpc blue --allow tcp:443:2001:db8:99::/64 --allow icmpv6:::/0");
    assert!(words(&bench, "sg explain two 2001:db8:99::7 443").contains("allowed"));
    let ping = words(&bench, "sg explain two 2001:db8:98::7 icmp");
    assert!(ping.contains("icmpv6:128/0: allowed"), "{ping}");
    assert!(words(&bench, "sg explain two 2001:db8:98::7 22 --egress").contains("all:::/0 of default"));

    stop(&bench, running);
    let running = run(&bench, &["start", "two"]);
    assert_eq!(instance(&bench)["interfaces"], shown["interfaces"]);
    stop(&bench, running);
    assert!(refused(&bench, "subnet rm blue-3").contains("in use by i-"));
    words(&bench, "terminate two");
    assert_eq!(words(&bench, "interface ls --json"), "[]");
    words(&bench, "subnet rm blue-3");
    bench.assert_no_instance();
}

#[test]
fn impossible_interfaces_are_refused_with_one_line_and_nothing_is_made() {
    let bench = Bench::new();
    words(&bench, "vpc create 10.50.0.0/16 --ipv6 --name blue");
    words(&bench, "vpc create 10.51.0.0/16 --name green");
    for (line, word) in [
        ("vpc create 10.52.0.0/16 --ipv6=fe80::/56", "expected /48 to /60"),
        ("vpc create 10.52.0.0/16 --ipv6=2001:db8::1/56", "host bits"),
        ("vpc add-ipv6 blue", "has an IPv6 range already"),
        ("subnet create green 10.51.1.0/24 --ipv6", "has no IPv6 range"),
        ("subnet create blue 10.50.1.0/24 --ipv6=2001:db8::/64", "expected a /64 inside of fd"),
        ("run x --interface nowhere", "\"nowhere\" says nothing of an interface"),
        ("run x --interface ip=10.50.3.9,ip=10.50.3.8", "ip is given twice"),
        ("run x --ipv6=10.0.0.4", "invalid value"),
        ("run x --no-network --ipv6", "cannot be used with"),
    ] {
        let told = refused(&bench, line);
        assert!(told.contains(word), "{line}: {told:?} does not say {word:?}");
    }
    assert_eq!(words(&bench, "subnet ls --json").matches("\"id\"").count(), 0);
    let range = words(&bench, "vpc add-ipv6 green 2001:db8:51::/56");
    assert_eq!(range, "2001:db8:51::/56");
    words(&bench, "subnet create green 10.51.1.0/24 --name green-1");
    assert_eq!(words(&bench, "subnet add-ipv6 green-1"), "2001:db8:51::/64");
    let list = words(&bench, "subnet ls");
    assert!(list.contains("10.51.1.0/24") && list.contains("2001:db8:51::/64"), "{list}");
    if !have_kvm() {
        return;
    }
    let image = bench.file("disk.raw", &disk(1));
    words(&bench, "subnet create blue 10.50.1.0/24 --name blue-1");
    for (options, word) in [
        ("--subnet blue-1 --ipv6", "has no IPv6 range (see `kiln vpc add-ipv6`"),
        ("--subnet green-1 --ipv6=2001:db8:51::3", "cannot be the IPv6 address"),
        ("--subnet green-1 --interface subnet=blue-1", "where the instance's other interfaces are"),
        ("--subnet blue-1 --interface group=nobody", "there is no security group \"nobody\""),
    ] {
        let mut command = bench.kiln(&["run", &image, "--memory", "64"]);
        let output = command.args(options.split(' ')).env("KILN_ALLOW_SOFTWARE_KVM", "1").output().unwrap();
        let told = cli_support::refusal(&output);
        assert!(told.contains(word), "{options}: {told}");
        bench.assert_no_instance();
    }
}
