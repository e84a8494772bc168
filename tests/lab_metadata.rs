//! Roles and metadata inside a booted guest: what programs in it get, and how it follows the host.
//!
//! Needs the lab: see `support`. One boot, so one test looks at everything.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::run::{Desk, Run};

const BOOT: u64 = 180;

/// The page's example: user data start a web server, which shows what the instance knows of itself. And
/// what a Windows guest's launch agent prints to the serial port.
const USER_DATA: &str = r#"#!/bin/sh
mkdir /www && echo served by a guest > /www/index.html && httpd -h /www
at="2024/05/07 09:12:44Z:"
printf '%s\r\n' "$at Username: Administrator" "$at Password: <Password>" aGVsbG8= "</Password>" \
  "$at Message: Windows is Ready to use" > /dev/ttyS0
"#;

/// Prints the body of `GET /latest/$1`, or the status where it is not 200.
const GET: &str = r#"
ask() {
  printf '%s /latest/%s HTTP/1.0\r\n%s\r\n\r\n' "$1" "$2" "$3" | nc -w 20 169.254.169.254 80 | {
    read -r version status reason
    while read -r line && [ "$line" != "$(printf '\r')" ]; do :; done
    [ "$status" = 200 ] && cat || echo "$status"
  }
}
token=$(ask PUT api/token 'X-aws-ec2-metadata-token-ttl-seconds: 60')
get() { ask GET "$1" "X-aws-ec2-metadata-token: $token"; }
"#;

const CREDENTIALS: &str = "meta-data/iam/security-credentials";

struct Guest {
    run: Run,
    address: Ipv4Addr,
}

impl Guest {
    fn get(&mut self, path: &str) -> String {
        self.run.ssh("root", self.address, &format!("{GET}get {path}"))
    }

    fn document(&mut self, path: &str) -> Value {
        let text = self.get(path);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"))
    }

    /// What any program in the guest gets without a token.
    fn without_token(&mut self, path: &str) -> String {
        self.run.ssh("root", self.address, &format!("{GET}ask GET {path} 'X: y'"))
    }
}

fn kiln(desk: &Desk, args: &[&str]) -> String {
    let output = desk.kiln().args(args).output().unwrap();
    assert!(output.status.success(), "kiln {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    println!("$ kiln {}\n{}", args.join(" "), text.trim_end());
    text
}

/// A set with a key of its own, six hours from now.
fn write_set(path: &Path, key: &str) {
    let end = Command::new("date").args(["-u", "-d", "+6 hours", "+%Y-%m-%dT%H:%M:%SZ"]).output().unwrap();
    let end = String::from_utf8(end.stdout).unwrap();
    let text = format!(
        r#"{{"Version":1,"AccessKeyId":"{key}","SecretAccessKey":"s","SessionToken":"t","Expiration":"{}"}}"#,
        end.trim()
    );
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(&fresh, path).unwrap();
}

#[test]
fn guest_follows_its_role_its_tags_and_its_options() {
    let image = lab_image!("tiny");
    let desk = Desk::new();
    let set = desk.path("set.json");
    write_set(&set, "AKIAFIRST");
    kiln(&desk, &["role", "create", "app"]);
    kiln(&desk, &["role", "create", "watched", "--source", &format!("file:{}", set.display())]);
    let user_data = desk.write("user-data", USER_DATA);
    let options = "http-tokens=required,instance-metadata-tags=enabled";
    let mut run = desk.run(
        &image,
        &["--role", "app", "--tag", "colour=blue", "--user-data", &user_data, "--metadata-options", options],
    );
    run.expect("tiny: ready at", BOOT);
    let instance = desk.instance();
    let id = instance["id"].as_str().unwrap().to_owned();
    let mut guest = Guest { run, address: instance["private_ip"].as_str().unwrap().parse().unwrap() };

    // The web server of the user data answers.
    let mut web = TcpStream::connect((guest.address, 80)).unwrap();
    web.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    web.read_to_string(&mut page).unwrap();
    assert!(page.ends_with("served by a guest\n"), "{page}");

    // The report of a Windows guest's launch agent, word for word, from one that is none.
    let password = kiln(&desk, &["password", &id]);
    assert_eq!(password.trim_end(), "aGVsbG8=");

    // Credentials were there from the start, are those that the host says, and need a token.
    assert_eq!(guest.get(&format!("{CREDENTIALS}/")), "app");
    let document = guest.document(&format!("{CREDENTIALS}/app"));
    assert_eq!(document["Code"], "Success");
    let host: Value =
        serde_json::from_str(&kiln(&desk, &["metadata", &id, &format!("{CREDENTIALS}/app")])).unwrap();
    assert_eq!(document, host);
    assert_eq!(guest.without_token(&format!("{CREDENTIALS}/app")), "401\n");
    let identity = guest.document("dynamic/instance-identity/document");
    assert_eq!(identity["instanceId"], id.as_str());

    // Another role, without a restart; then three rotations of its credentials.
    kiln(&desk, &["role", "attach", &id, "watched", "--replace"]);
    assert_eq!(guest.get(&format!("{CREDENTIALS}/app")), "404\n");
    for key in ["AKIAFIRST", "AKIASECOND", "AKIATHIRD", "AKIAFOURTH"] {
        write_set(&set, key);
        let deadline = support::Deadline::after(60);
        while guest.document(&format!("{CREDENTIALS}/watched"))["AccessKeyId"] != key {
            deadline.left(key);
        }
    }
    kiln(&desk, &["role", "show", "watched"]);
    kiln(&desk, &["role", "detach", &id]);
    assert_eq!(guest.get("meta-data/iam/"), "404\n");

    // Tags and options, live.
    assert_eq!(guest.get("meta-data/tags/instance/colour"), "blue");
    kiln(&desk, &["tag", &id, "colour=red"]);
    assert_eq!(guest.get("meta-data/tags/instance/colour"), "red");
    kiln(&desk, &["metadata", &id, "--set", "http-tokens=optional"]);
    assert_eq!(guest.without_token("meta-data/instance-id"), id);
    kiln(&desk, &["metadata", &id, "--set", "http-endpoint=disabled"]);
    assert_eq!(guest.without_token("meta-data/instance-id"), "403\n");

    guest.run.ssh("root", guest.address, "(sleep 1; poweroff) >/dev/null 2>&1 &");
    guest.run.wait_power_off(60);
    kiln(&desk, &["role", "rm", "app", "watched"]);
}
