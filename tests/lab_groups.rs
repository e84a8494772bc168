//! Security groups between booted guests: four instances in two VPCs of the same range.
//!
//! Needs the lab: see `support`.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::net::Ipv4Addr;
use std::process::Command;

use support::run::{Desk, Run};

/// Boots take seconds; this tells a hang from a slow machine.
const BOOT: u64 = 300;

/// Runs `kiln` with these words; answers what it printed.
fn kiln(desk: &Desk, words: &str) -> String {
    let output = desk.kiln().args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "kiln {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An instance and the address at which the test logs in: private ones are twice there.
struct Guest {
    run: Run,
    public: Ipv4Addr,
}

impl Guest {
    /// What the guest says after running `script`.
    fn sh(&mut self, script: &str) -> String {
        self.run.ssh("root", self.public, script)
    }

    /// What a server says first; nothing if it is not reached.
    fn hear(&mut self, server: &str, port: u16) -> String {
        self.sh(&format!("nc -w 5 {server} {port} </dev/null 2>/dev/null | head -n 1 || true"))
    }
}

fn links() -> String {
    let script = "ip -o link | grep -o ': [^:@]*'; ip netns; nft list tables; ip route";
    String::from_utf8(Command::new("sh").args(["-c", script]).output().unwrap().stdout).unwrap()
}

#[test]
fn rules_hold_between_booted_guests_and_change_while_they_run() {
    let image = lab_image!("tiny");
    let before = links();
    let desk = Desk::new();
    for vpc in ["blue", "green"] {
        kiln(&desk, &format!("vpc create 10.50.0.0/16 --name {vpc}"));
        kiln(&desk, &format!("subnet create {vpc} 10.50.2.0/24 --name {vpc}-2"));
        for group in ["web", "ssh", "people", "inner"] {
            kiln(&desk, &format!("sg create {group} --vpc {vpc}"));
        }
        // Port 80 from 0.0.0.0/0; port 22 from 10.50.2.133/32; port 22 from the members of another group.
        kiln(&desk, &format!("sg authorize web --vpc {vpc} --allow tcp:80:0.0.0.0/0"));
        kiln(&desk, &format!("sg authorize ssh --vpc {vpc} --allow tcp:22:10.50.2.133/32"));
        kiln(&desk, &format!("sg authorize inner --vpc {vpc} --allow tcp:22:people"));
    }
    let start = |name: &str, subnet: &str, address: &str, groups: &[&str]| {
        let mut args = vec!["--vcpus", "1", "--memory", "128M", "--public-ip", "--allow", "tcp:22:host"];
        args.extend(["--name", name, "--subnet", subnet, "--private-ip", address]);
        groups.iter().for_each(|group| args.extend(["--security-group", group]));
        desk.run(&image, &args)
    };
    let runs = [
        start("server", "blue-2", "10.50.2.10", &["web", "ssh"]),
        start("person", "blue-2", "10.50.2.133", &["people"]),
        start("inner", "blue-2", "10.50.2.12", &["inner"]),
        start("twin", "green-2", "10.50.2.10", &["web"]),
    ];
    let mut guests = Vec::new();
    for (mut run, name) in runs.into_iter().zip(["server", "person", "inner", "twin"]) {
        run.expect("tiny: ready at", BOOT);
        let rows = desk.instances();
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        guests.push(Guest { run, public: row["public_ip"].as_str().unwrap().parse().unwrap() });
    }
    let [server, person, inner, twin] = guests.as_mut_slice() else { unreachable!() };
    for (guest, word) in [(&mut *server, "blue"), (&mut *twin, "green")] {
        let serve =
            |port| format!("(while :; do echo {word} | nc -l -p {port}; done) >/dev/null 2>&1 </dev/null &");
        guest.sh(&[serve(80), serve(8080)].join("\n"));
    }

    assert_eq!(person.hear("10.50.2.10", 80), "blue\n", "the server of its own VPC");
    assert_eq!(inner.hear("10.50.2.10", 80), "blue\n");
    assert_eq!(inner.hear("10.50.2.10", 8080), "", "no rule");
    assert!(person.hear("10.50.2.10", 22).starts_with("SSH-"));
    assert_eq!(inner.hear("10.50.2.10", 22), "", "only 10.50.2.133 may");
    assert!(person.hear("10.50.2.12", 22).starts_with("SSH-"), "a member of the group");
    assert_eq!(server.hear("10.50.2.12", 22), "", "no member");
    assert_eq!(twin.hear("10.50.2.133", 22), "", "that address is in the other VPC");
    // From one VPC to the other by public addresses, which any address may use for port 80 alone.
    let public = twin.public.to_string();
    assert_eq!(person.hear(&public, 80), "green\n");
    assert_eq!(person.hear(&public, 8080), "");

    let told = kiln(&desk, "sg explain inner person 22");
    println!("{told}\n{}", kiln(&desk, "sg show inner --vpc blue"));
    assert!(told.contains("allowed") && told.contains("tcp:22:people of inner"), "{told}");
    let told = kiln(&desk, "sg explain inner server 22");
    assert!(told.contains("denied") && told.contains("no rule allows it"), "{told}");

    // Rules change while the instances run, and each `kiln run` is a process of its own.
    kiln(&desk, "sg revoke web --vpc blue --allow tcp:80:0.0.0.0/0");
    assert_eq!(person.hear("10.50.2.10", 80), "");
    kiln(&desk, "sg authorize web --vpc blue --allow tcp:80:people");
    assert_eq!(person.hear("10.50.2.10", 80), "blue\n");
    assert_eq!(inner.hear("10.50.2.10", 80), "");
    kiln(&desk, "sg assign inner people inner");
    assert_eq!(inner.hear("10.50.2.10", 80), "blue\n", "a member from now on");

    // A guest that takes its neighbour's address says nothing to anybody.
    let forged = inner
        .sh("ip addr add 10.50.2.133/32 dev eth0; nc -w 5 -s 10.50.2.133 10.50.2.10 80 </dev/null || true");
    assert_eq!(forged, "");

    for guest in &mut guests {
        guest.sh("(sleep 1; poweroff) >/dev/null 2>&1 &");
    }
    for guest in &mut guests {
        guest.run.wait_power_off(120);
    }
    assert_eq!(links(), before);
}
