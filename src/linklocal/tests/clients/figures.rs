//! Figures of the metadata service, beside a plain HTTP server one hop away. They pass or fail nothing.
//!
//! The services run in this process, the server in one of its own, the client is curl in the guest for
//! both; what is counted is the processor time that the answering side takes.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln_vmspec::HttpTokens;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::guest::{Guest, IMDS, metadata};
use crate::programs::ip;

const REQUESTS: u32 = 2_000;
const CONNECTIONS: usize = 60;

/// User and system time of a process and of its children that have ended.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    // utime, stime, cutime, cstime (proc(5)), in hundredths of a second.
    let own = pid == std::process::id();
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(if own { 2 } else { 4 })
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// Pages of this process that are in memory, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Requests for `url`, one after the other: how many a second, and processor time of `pid` for each.
fn measure(guest: &Guest, url: &str, pid: u32) -> (f64, Duration) {
    let (began, before) = (Instant::now(), cpu(pid));
    let many = format!("{url}?[1-{REQUESTS}]");
    // A header that closes after each, as SDKs have it.
    guest.run("curl", &["-s", "-o", "/dev/null", "-H", "Connection: close", &many]);
    (f64::from(REQUESTS) / began.elapsed().as_secs_f64(), (cpu(pid) - before) / REQUESTS)
}

#[test]
#[ignore = "prints figures: scripts/bench metadata"]
fn figures() {
    let mut snapshot = metadata();
    snapshot.options.tokens = HttpTokens::Optional;
    let Some(guest) = Guest::new(snapshot) else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("id"), "i-000000000000000bb").unwrap();
    let other = format!("{}s", guest.namespace);
    ip(&["netns", "add", &other]);
    guest.ip(&["link", "add", "veth0", "type", "veth", "peer", "name", "eth0", "netns", &other]);
    guest.ip(&["address", "add", "172.18.0.1/24", "dev", "veth0"]);
    guest.ip(&["link", "set", "veth0", "up"]);
    ip(&["-n", &other, "address", "add", "172.18.0.2/24", "dev", "eth0"]);
    ip(&["-n", &other, "link", "set", "eth0", "up"]);
    let mut server = Command::new("ip")
        .args(["netns", "exec", &other, "busybox", "httpd", "-f", "-h"])
        .arg(folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    guest.run(
        "curl",
        &["-s", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "http://172.18.0.2/id"],
    );

    let (plain, plain_cpu) = measure(&guest, "http://172.18.0.2/id", server.id());
    let dropped = guest.counters().allowance_exceeded;
    let url = format!("http://{IMDS}/latest/meta-data/instance-id");
    let (ours, ours_cpu) = measure(&guest, &url, std::process::id());
    let dropped = guest.counters().allowance_exceeded - dropped;
    println!(
        "requests, one after the other     metadata {ours:.0}/s, plain server {plain:.0}/s, ratio {:.2}",
        ours / plain
    );
    println!("  (packets over the allowance of 1024/s, which are sent again: {dropped})");
    println!(
        "processor time for each request   metadata {ours_cpu:?}, plain server {plain_cpu:?}, ratio {:.2}",
        ours_cpu.as_secs_f64() / plain_cpu.as_secs_f64()
    );

    let namespace = std::fs::File::open(format!("/run/netns/{}", guest.namespace)).unwrap();
    let grown = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let before = resident();
        let open: Vec<_> = (0..CONNECTIONS).map(|_| TcpStream::connect((IMDS, 80)).unwrap()).collect();
        let grown = resident().saturating_sub(before);
        drop(open);
        grown
    });
    let grown = grown.join().unwrap();
    println!(
        "memory for each open connection   {} KiB ({CONNECTIONS} at once)",
        grown.div_ceil(CONNECTIONS as u64)
    );
    let _ = server.kill();
    let _ = server.wait();
    ip(&["netns", "delete", &other]);
}
