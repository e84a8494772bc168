//! Clients as they are shipped, in a network namespace whose interface ends in the services.
//!
//! Programs that are not installed are skipped with a note. `KILN_TEST_CLIENTS` may name further
//! directories for them; `KILN_TEST_PYTHON` the Python that has botocore and cloud-init.

#![expect(clippy::unwrap_used, reason = "tests")]

mod figures;
mod guest;
mod link;
mod programs;

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use guest::{Guest, IMDS, MAC, metadata};
use kiln_vmspec::{HttpTokens, InterfaceFacts};
use programs::{ip, report};

/// Says so, and gives false, where the guest has no such program.
fn has(guest: &Guest, program: &str, arguments: &[&str]) -> bool {
    let there = guest.command(program).args(arguments).output().is_ok_and(|output| output.status.success());
    if !there {
        println!("SKIPPED: no {program} {arguments:?}");
    }
    there
}

fn python() -> String {
    std::env::var("KILN_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

/// Runs curl inside the guest: quietly, with the status behind the body, five seconds at most.
fn curl(guest: &Guest, arguments: &[&str]) -> (String, String) {
    let common = ["--silent", "--show-error", "--max-time", "5", "--write-out", "\n%{http_code}"];
    let text = guest.run("curl", &[&common[..], arguments].concat());
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

fn token(guest: &Guest) -> String {
    let url = format!("http://{IMDS}/latest/api/token");
    let (status, token) =
        curl(guest, &["-X", "PUT", "-H", "X-aws-ec2-metadata-token-ttl-seconds: 21600", &url]);
    assert_eq!((status.as_str(), token.len()), ("200", 56));
    token
}

#[test]
fn curl_gets_what_the_table_says() {
    let Some(guest) = Guest::new(metadata()) else { return };
    if !has(&guest, "curl", &["--version"]) {
        return;
    }
    let token = token(&guest);
    let with = format!("X-aws-ec2-metadata-token: {token}");
    let url = |path: &str| format!("http://{IMDS}{path}");
    let get = |path: &str| curl(&guest, &["-H", &with, &url(path)]);
    assert_eq!(get("/latest/meta-data/instance-id"), ("200".into(), "i-000000000000000bb".into()));
    assert_eq!(get("/latest/meta-data/tags/instance/a%3Db"), ("200".into(), "c d".into()));
    assert_eq!(get("/latest/meta-data/public-keys/").1, "0=my-key");
    assert_eq!(get("/latest/nothing").0, "404");
    assert_eq!(curl(&guest, &[&url("/latest/")]).0, "401");
    assert_eq!(
        curl(&guest, &["-X", "PUT", "-H", "X-Forwarded-For: 1.2.3.4", &url("/latest/api/token")]).0,
        "403"
    );
    assert_eq!(curl(&guest, &["-x", "169.254.169.254:80", "http://example.com/latest/"]).0, "400");
    assert_eq!(curl(&guest, &["--http1.0", "-H", &with, &url("/latest/meta-data/mac")]).1, MAC.to_string());
    let (status, head) = curl(&guest, &["--head", "-H", &with, &url("/latest/meta-data/instance-id")]);
    assert_eq!(status, "200");
    assert!(head.contains("Content-Length: 19\r\n") && head.contains("Server: EC2ws\r\n"), "{head}");
    let long = format!("User-Agent: {}", "x".repeat(7_000));
    assert_eq!(curl(&guest, &["-H", &long, "-H", &with, &url("/latest/")]).0, "200");
    let user_data =
        guest.command("curl").args(["-s", "-H", &with, &url("/latest/user-data")]).output().unwrap();
    assert_eq!(user_data.stdout, metadata().leaves["user-data"].as_bytes());
    guest.assert_nothing_leaked();
}

#[test]
fn curl_keeps_a_connection_and_opens_a_hundred() {
    let Some(guest) = Guest::new(metadata()) else { return };
    if !has(&guest, "curl", &["--version"]) {
        return;
    }
    let with = format!("X-aws-ec2-metadata-token: {}", token(&guest));
    let before = guest.counters().connections;
    let url = format!("http://{IMDS}/latest/meta-data/instance-id");
    let kept = guest.run("curl", &["-s", "-H", &with, "-H", "Connection: keep-alive", &url, &url, &url]);
    assert_eq!(kept, "i-000000000000000bb".repeat(3));
    assert_eq!(guest.counters().connections, before + 1);
    let many = format!("{url}?[1-100]");
    let arguments = ["-s", "-Z", "--parallel-immediate", "--parallel-max", "100", "-H", &with, &many];
    assert_eq!(guest.run("curl", &arguments), "i-000000000000000bb".repeat(100));
    guest.assert_nothing_leaked();
}

#[test]
fn service_is_found_through_the_router_and_on_the_link_and_over_ipv6() {
    let mut snapshot = metadata();
    snapshot.options.tokens = HttpTokens::Optional;
    snapshot.options.ipv6_enabled = true;
    let addresses: Vec<IpAddr> = vec![[10, 0, 1, 10].into(), "2001:db8::10".parse().unwrap()];
    snapshot.interfaces.insert(MAC, InterfaceFacts { addresses, source_dest_check: true });
    let Some(guest) = Guest::new(snapshot) else { return };
    if !has(&guest, "curl", &["--version"]) {
        return;
    }
    let id = |host: &str| curl(&guest, &[&format!("http://{host}/latest/meta-data/instance-id")]).1;
    assert_eq!(id(IMDS), "i-000000000000000bb");
    guest.ip(&["route", "add", "169.254.169.254", "dev", "eth0"]);
    assert_eq!(id(IMDS), "i-000000000000000bb");
    guest.ip(&["-6", "address", "add", "2001:db8::10/128", "dev", "eth0", "nodad"]);
    guest.ip(&["-6", "route", "add", "fd00:ec2::/32", "dev", "eth0"]);
    assert_eq!(id("[fd00:ec2::254]"), "i-000000000000000bb");
    guest.assert_nothing_leaked();
}

/// What DHCP clients run when something has happened.
fn write_script(path: &Path, line: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{line}\nexit 0\n")).unwrap();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn busybox_gets_a_lease_pings_and_resolves() {
    let Some(guest) = Guest::unconfigured(metadata()) else { return };
    if !has(&guest, "busybox", &["udhcpc", "--help"]) && !has(&guest, "busybox", &["true"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("lease");
    let lease = folder.path().join("out");
    write_script(&script, &format!("[ \"$1\" = bound ] && env > {}", lease.display()));
    guest.run("busybox", &["udhcpc", "-n", "-q", "-f", "-i", "eth0", "-s", script.to_str().unwrap()]);
    let lease = std::fs::read_to_string(&lease).unwrap();
    for line in [
        "ip=10.0.1.10",
        "mask=24",
        "router=10.0.1.1",
        "dns=10.0.0.2",
        "lease=3600",
        "serverid=10.0.1.1",
        "mtu=9001",
        "broadcast=10.0.1.255",
        "hostname=ip-10-0-1-10",
        "domain=ec2.internal",
    ] {
        assert!(lease.lines().any(|l| l == line), "no {line} in\n{lease}");
    }
    guest.ip(&["address", "add", "10.0.1.10/24", "dev", "eth0"]);
    guest.ip(&["route", "add", "default", "via", "10.0.1.1"]);
    for host in [IMDS, "169.254.169.253", "169.254.169.123", "10.0.0.2"] {
        guest.run("busybox", &["ping", "-c", "1", "-W", "5", "-s", "5000", host]);
    }
    let answer = guest.run("busybox", &["nslookup", "ip-10-0-1-11.ec2.internal", "169.254.169.253"]);
    assert!(answer.contains("10.0.1.11"), "{answer}");
    let answer = guest.run("busybox", &["nslookup", "10.0.1.11", "10.0.0.2"]);
    assert!(answer.contains("ip-10-0-1-11.ec2.internal"), "{answer}");
    guest.assert_nothing_leaked();
}

#[test]
fn dhclient_gets_a_lease() {
    let Some(guest) = Guest::unconfigured(metadata()) else { return };
    if !has(&guest, "dhclient", &["--version"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (leases, pid, script, lease) = (at("leases"), at("pid"), at("script"), at("out"));
    // The client stays for renewals; once bound it has done what it is here for.
    write_script(script.as_ref(), &format!("[ \"$reason\" = BOUND ] && env > {lease} && kill $PPID"));
    let arguments = ["10", "dhclient", "-1", "-d", "-sf", &script, "-lf", &leases, "-pf", &pid, "eth0"];
    let run = guest.command("timeout").args(arguments).output().unwrap();
    let lease = std::fs::read_to_string(&lease).unwrap_or_default();
    for line in [
        "new_ip_address=10.0.1.10",
        "new_subnet_mask=255.255.255.0",
        "new_routers=10.0.1.1",
        "new_dhcp_lease_time=3600",
        "new_domain_name_servers=10.0.0.2",
        "new_dhcp_server_identifier=10.0.1.1",
        "new_interface_mtu=9001",
        "new_host_name=ip-10-0-1-10",
        "new_domain_name=ec2.internal",
    ] {
        assert!(lease.lines().any(|l| l == line), "no {line} in\n{lease}\n{}", report(&run));
    }
}

#[test]
fn kernel_hears_its_router_and_dhclient_gets_an_ipv6_lease() {
    let Some(guest) = Guest::dual_stack(metadata()) else { return };
    if !has(&guest, "dhclient", &["--version"]) {
        return;
    }
    let end = Instant::now() + Duration::from_secs(30);
    let wait_for = |arguments: &[&str], text: &str| {
        loop {
            let said = guest.run("ip", arguments);
            if said.contains(text) {
                break;
            }
            assert!(Instant::now() < end, "no {text} in {said}");
        }
    };
    wait_for(&["-6", "route", "show", "default"], "via fe80::ff:fe00:1 dev eth0 proto ra");
    wait_for(&["-6", "route"], "2001:db8:1::/64 dev eth0 proto kernel");
    wait_for(&["-6", "address", "show", "dev", "eth0", "scope", "link", "-tentative"], "fe80::");
    let own = guest.run("ip", &["-6", "address", "show", "dev", "eth0", "scope", "global"]);
    assert_eq!(own, "", "none is made of the prefix");

    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (leases, pid, script, lease) = (at("leases"), at("pid"), at("script"), at("out"));
    write_script(script.as_ref(), &format!("[ \"$reason\" = BOUND6 ] && env > {lease} && kill $PPID"));
    let arguments = ["20", "dhclient", "-6", "-1", "-d", "-sf", &script, "-lf", &leases, "-pf", &pid, "eth0"];
    let run = guest.command("timeout").args(arguments).output().unwrap();
    let lease = std::fs::read_to_string(&lease).unwrap_or_default();
    for line in [
        "new_ip6_address=2001:db8:1::10",
        "new_max_life=3600",
        "new_preferred_life=1800",
        "new_dhcp6_name_servers=fd00:ec2::253",
        "new_dhcp6_domain_search=ec2.internal.",
    ] {
        assert!(lease.lines().any(|l| l == line), "no {line} in\n{lease}\n{}", report(&run));
    }
    // The services, by the kernel's own way to them.
    guest.ip(&["-6", "address", "add", "2001:db8:1::10/128", "dev", "eth0", "nodad"]);
    for host in ["fd00:ec2::253", "fd00:ec2::123"] {
        guest.run("ping", &["-6", "-c", "1", "-W", "5", host]);
    }
    assert!(guest.counters().router_advertisements >= 1);
    guest.assert_nothing_leaked();
}

#[test]
fn botocore_gets_credentials_and_region() {
    let Some(guest) = Guest::new(metadata()) else { return };
    let python = python();
    if !has(&guest, &python, &["-c", "import botocore"]) {
        return;
    }
    let program = "
import botocore.session
from botocore.utils import InstanceMetadataFetcher, InstanceMetadataRegionFetcher
found = InstanceMetadataFetcher(timeout=5, num_attempts=1).retrieve_iam_role_credentials()
print(found['role_name'], found['access_key'], found['secret_key'], found['token'], found['expiry_time'])
print(InstanceMetadataRegionFetcher(timeout=5).retrieve_region())
credentials = botocore.session.Session().get_credentials()
print(credentials.method, credentials.get_frozen_credentials().access_key)
";
    let output = guest
        .command(&python)
        .args(["-c", program])
        .env("AWS_EC2_METADATA_V1_DISABLED", "true")
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", report(&output));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "web-role ASIAROLE000000000000 c2VjcmV0 dG9rZW4= 2099-01-01T00:00:00Z\nus-east-1\n\
         iam-role ASIAROLE000000000000\n"
    );
    assert_eq!(guest.counters().imds_no_token, 0);
    guest.assert_nothing_leaked();
}

#[test]
fn ec2_metadata_prints_everything() {
    let Some(guest) = Guest::new(metadata()) else { return };
    if !has(&guest, "ec2-metadata", &["--help"]) {
        return;
    }
    let text = guest.run("ec2-metadata", &["--all"]);
    for line in [
        "ami-id: ami-000000000000000aa",
        "instance-id: i-000000000000000bb",
        "instance-type: t3.micro",
        "local-hostname: ip-10-0-1-10.ec2.internal",
        "local-ipv4: 10.0.1.10",
        "placement: us-east-1a",
        "security-groups: default",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
    }
    assert!(text.contains("ssh-ed25519 AAAAC3Nza"), "{text}");
    assert_eq!(guest.counters().imds_no_token, 0);
}

#[test]
fn ec2metadata_of_ubuntu_prints_everything() {
    let Some(guest) = Guest::new({
        // It knows version 1 of the service only.
        let mut snapshot = metadata();
        snapshot.options.tokens = HttpTokens::Optional;
        snapshot
    }) else {
        return;
    };
    if !has(&guest, "sh", &["-c", "command -v ec2metadata"]) {
        return;
    }
    let text = guest.run("ec2metadata", &[]);
    for line in ["instance-id: i-000000000000000bb", "availability-zone: us-east-1a", "local-ipv4: 10.0.1.10"]
    {
        assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
    }
}

#[test]
fn cloud_init_crawls_the_whole_tree() {
    let Some(guest) = Guest::new(metadata()) else { return };
    let python = python();
    if !has(&guest, &python, &["-c", "import cloudinit.sources.DataSourceEc2"]) {
        return;
    }
    let program = "
import json, logging, sys
from cloudinit import helpers, distros
from cloudinit.sources import DataSourceEc2
logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
source = DataSourceEc2.DataSourceEc2({}, None, helpers.Paths({'cloud_dir': '/nonexistent', 'run_dir': '/nonexistent'}))
source._cloud_name = 'aws'
crawled = source.crawl_metadata()
print(json.dumps({
    'version': crawled['_metadata_api_version'],
    'meta': crawled['meta-data'],
    'dynamic': crawled['dynamic'],
    'user': crawled['user-data'].hex(),
}))
";
    let output = guest.command(&python).args(["-c", program]).output().unwrap();
    assert!(output.status.success(), "{}", report(&output));
    let crawled: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let meta = &crawled["meta"];
    assert_eq!(crawled["version"], "2021-03-23");
    assert_eq!(meta["instance-id"], "i-000000000000000bb");
    assert_eq!(meta["placement"]["availability-zone"], "us-east-1a");
    assert_eq!(meta["tags"]["instance"]["a=b"], "c d");
    assert!(meta["public-keys"]["my-key"].to_string().contains("ssh-ed25519"), "{meta}");
    assert_eq!(meta["network"]["interfaces"]["macs"][MAC.to_string()]["device-number"], "0");
    assert_eq!(crawled["dynamic"]["instance-identity"]["document"]["instanceId"], "i-000000000000000bb");
    let user_data: String =
        metadata().leaves["user-data"].as_bytes().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(crawled["user"], user_data);
    let counters = guest.counters();
    assert_eq!((counters.imds_no_token, counters.imds_unauthorized, counters.allowance_exceeded), (0, 0, 0));
    guest.assert_nothing_leaked();
}

/// A container behind the guest, as Docker would set it up: a namespace, a pair of interfaces and
/// address translation.
struct Container<'g> {
    namespace: String,
    guest: &'g Guest,
}

impl<'g> Container<'g> {
    fn behind(guest: &'g Guest) -> Self {
        let namespace = format!("{}c", guest.namespace);
        ip(&["netns", "add", &namespace]);
        let container = Container { namespace, guest };
        guest.ip(&[
            "link",
            "add",
            "veth0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &container.namespace,
        ]);
        guest.ip(&["address", "add", "172.17.0.1/24", "dev", "veth0"]);
        guest.ip(&["link", "set", "veth0", "up"]);
        let inside = ["-n", &container.namespace];
        ip(&[&inside[..], &["address", "add", "172.17.0.2/24", "dev", "eth0"]].concat());
        ip(&[&inside[..], &["link", "set", "eth0", "up"]].concat());
        ip(&[&inside[..], &["route", "add", "default", "via", "172.17.0.1"]].concat());
        guest.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        let rules = "table ip nat { chain out { type nat hook postrouting priority 100; \
                     ip saddr 172.17.0.0/24 masquerade; }; }";
        guest.run("nft", &[rules]);
        container
    }

    fn curl(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.namespace, "curl", "--silent", "--max-time", "2"])
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.guest;
        ip(&["netns", "delete", &self.namespace]);
    }
}

#[test]
fn container_gets_a_token_only_with_hops_to_spare() {
    for (limit, gets) in [(1, false), (2, true), (64, true)] {
        let mut snapshot = metadata();
        snapshot.options.tokens = HttpTokens::Optional;
        snapshot.options.hop_limit = limit;
        let Some(guest) = Guest::new(snapshot) else { return };
        if !has(&guest, "nft", &["list", "tables"]) || !has(&guest, "curl", &["--version"]) {
            return;
        }
        token(&guest);
        let container = Container::behind(&guest);
        let token = format!("http://{IMDS}/latest/api/token");
        let (code, body) =
            container.curl(&["-X", "PUT", "-H", "X-aws-ec2-metadata-token-ttl-seconds: 60", &token]);
        const TIMED_OUT: i32 = 28;
        assert_eq!(
            (code, body.len()),
            if gets { (Some(0), 56) } else { (Some(TIMED_OUT), 0) },
            "limit {limit}"
        );
        let id = format!("http://{IMDS}/latest/meta-data/instance-id");
        assert_eq!(container.curl(&[&id]), (Some(0), "i-000000000000000bb".into()), "limit {limit}");
    }
}

#[test]
fn switches_take_effect_on_a_running_guest() {
    let Some(guest) = Guest::new(metadata()) else { return };
    if !has(&guest, "curl", &["--version"]) {
        return;
    }
    let url = format!("http://{IMDS}/latest/meta-data/instance-id");
    let status = || curl(&guest, &[&url]).0;
    assert_eq!(status(), "401");
    let mut snapshot = metadata();
    snapshot.options.tokens = HttpTokens::Optional;
    guest.update_metadata(snapshot.clone());
    assert_eq!(status(), "200");
    snapshot.options.endpoint_enabled = false;
    guest.update_metadata(snapshot);
    assert_eq!(status(), "403");
    guest.update_metadata(metadata());
    assert_eq!(status(), "401");
}

/// For a program that this suite does not know: `KILN_TEST_RUN='sh -c …'`.
#[test]
#[ignore = "runs the program that KILN_TEST_RUN names inside a guest"]
fn any_program_inside_a_guest() {
    let Some(guest) = Guest::new(metadata()) else { return };
    let line = std::env::var("KILN_TEST_RUN").unwrap();
    print!("{}", guest.run("sh", &["-c", &line]));
    println!("{:?}", guest.counters());
    guest.assert_nothing_leaked();
}
