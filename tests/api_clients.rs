//! `kilnd` as boto3 and as nobody should use it.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod api_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use api_support::Daemon;

#[test]
fn networks_groups_keys_and_tags_are_as_boto3_expects() {
    Daemon::new().python("network.py");
}

#[test]
fn routes_gateways_acls_and_interfaces_are_as_boto3_expects() {
    Daemon::new().python("routing.py");
}

#[test]
fn roles_policies_and_sessions_are_as_boto3_expects() {
    Daemon::new().python("access.py");
}

#[test]
fn users_keys_and_managed_policies_are_as_boto3_expects() {
    Daemon::new().python("users.py");
}

#[test]
fn bad_requests_get_the_codes_of_ec2_and_change_nothing() {
    Daemon::new().python("bad_input.py");
}

fn metrics(mut stream: impl Read + Write) -> String {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn daemon_serves_on_both_sockets_and_ends_without_a_trace_when_told() {
    let mut daemon = Daemon::new();
    let environment = daemon.environment();
    let endpoint = &environment.iter().find(|(name, _)| name == "AWS_ENDPOINT_URL").unwrap().1;
    let address = endpoint.strip_prefix("http://").unwrap();
    let socket = daemon.state_dir().join("run/kilnd.sock");
    // A request that nobody signed is counted too.
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /?Action=DescribeVpcs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 403") && text.contains("MissingAuthenticationToken"), "{text}");
    let line =
        "kiln_api_requests_total{service=\"ec2\",action=\"unknown\",code=\"MissingAuthenticationToken\"} 1";
    assert!(metrics(TcpStream::connect(address).unwrap()).contains(line));
    assert!(metrics(UnixStream::connect(&socket).unwrap()).contains(line));
    // Idle clients do not hold it up.
    let idle = TcpStream::connect(address).unwrap();
    assert!(daemon.stop().success());
    drop(idle);
    let left =
        std::fs::read_dir(daemon.state_dir().join("run")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_str().unwrap().contains("kilnd")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(daemon.environment(), {
        let same = environment.into_iter();
        let default = "http://127.0.0.1:4580".to_owned();
        same.map(|(n, v)| if n == "AWS_ENDPOINT_URL" { (n, default.clone()) } else { (n, v) })
            .collect::<Vec<_>>()
    });
}

#[test]
fn second_daemon_and_open_addresses_are_refused() {
    let daemon = Daemon::new();
    let refused = |args: &[&str]| {
        let output = daemon.kilnd(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let text = refused(&[]);
    assert!(text.starts_with("kilnd: another kilnd serves this state directory"), "{text}");
    let text = refused(&["--listen", "0.0.0.0:0"]);
    assert!(text.starts_with("kilnd: 0.0.0.0:0 can be reached by others"), "{text}");
}
