//! The request table of the service, over TCP from a fake guest.

use std::sync::Arc;
use std::time::Duration;

use kiln_vmspec::{HttpTokens, LeafValue, MetadataSnapshot};

use crate::testing::{Bench, IMDS, Response, metadata};

const TTL_HEADER: &str = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds";

fn required() -> MetadataSnapshot {
    let mut snapshot = metadata();
    snapshot.options.tokens = HttpTokens::Required;
    snapshot
}

fn update(bench: &mut Bench, change: impl FnOnce(&mut MetadataSnapshot)) {
    let mut snapshot = metadata();
    snapshot.generation = 2;
    change(&mut snapshot);
    bench.service.update_metadata(Arc::new(snapshot));
}

fn put(bench: &mut Bench, path: &str, headers: &str) -> Response {
    bench.http(&format!("PUT {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n"))
}

/// An answer without a body is `text/plain` and has neither range nor date of change.
fn assert_bare(reply: &Response, status: u16) {
    assert_eq!((reply.status, reply.body.len()), (status, 0), "{reply:?}");
    assert_eq!(reply.header("Content-Type"), Some("text/plain"));
    assert_eq!(reply.header("Content-Length"), Some("0"));
    assert_eq!(reply.header("Last-Modified"), None);
    assert_eq!(reply.header("Accept-Ranges"), None);
}

#[test]
fn token_reply_is_that_of_the_real_service() {
    let mut bench = Bench::new(required());
    for ttl in [1, 60, 21_600] {
        let reply = put(
            &mut bench,
            "/latest/api/token",
            &format!("X-aws-ec2-metadata-token-ttl-seconds: {ttl}\r\nContent-Length: 0\r\n"),
        );
        assert_eq!((reply.status, reply.body.len()), (200, 56));
        assert!(reply.body.iter().all(|b| b.is_ascii_alphanumeric() || b"-_=".contains(b)));
        assert_eq!(
            reply.names(),
            [TTL_HEADER, "Content-Type", "Content-Length", "Date", "Server", "Connection"]
        );
        assert_eq!(reply.header(TTL_HEADER), Some(ttl.to_string().as_str()));
        assert_eq!(reply.header("Content-Type"), Some("text/plain"));
    }
}

#[test]
fn token_with_a_bad_lifetime_is_400() {
    let mut bench = Bench::new(metadata());
    for value in ["0", "21601", "", "abc", "-1", "+60", "60s", "6 0", "1e3", "60.0", "99999999999999999999"] {
        let header = format!("X-aws-ec2-metadata-token-ttl-seconds: {value}\r\n");
        assert_bare(&put(&mut bench, "/latest/api/token", &header), 400);
    }
    assert_bare(&put(&mut bench, "/latest/api/token", ""), 400);
    let twice = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n".repeat(2);
    assert_bare(&put(&mut bench, "/latest/api/token", &twice), 400);
    assert_eq!(bench.service.counters().imds_tokens, 0);
}

#[test]
fn put_is_forbidden_through_proxies_and_elsewhere() {
    let mut bench = Bench::new(metadata());
    let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
    for forwarded in ["X-Forwarded-For: 10.0.0.1\r\n", "x-forwarded-for:\r\n"] {
        assert_bare(&put(&mut bench, "/latest/api/token", &format!("{ttl}{forwarded}")), 403);
        assert_bare(&put(&mut bench, "/latest/api/token", forwarded), 403);
    }
    for path in [
        "/latest/api/token/",
        "/2021-03-23/api/token",
        "/1.0/api/token",
        "/latest/meta-data/instance-id",
        "/latest/api/tokens",
        "/",
    ] {
        assert_bare(&put(&mut bench, path, ttl), 403);
    }
    assert_eq!(bench.service.counters().imds_tokens, 0);
}

#[test]
fn token_path_is_not_for_reading() {
    for snapshot in [metadata(), required()] {
        let mut bench = Bench::new(snapshot);
        for method in ["GET", "POST", "DELETE"] {
            let reply = bench.http(&format!("{method} /latest/api/token HTTP/1.1\r\n\r\n"));
            assert_bare(&reply, 405);
            assert_eq!(reply.reason, "Not Allowed");
            assert_eq!(reply.header("Allow"), Some("OPTIONS, PUT"));
        }
    }
}

#[test]
fn other_methods_are_405() {
    let mut bench = Bench::new(metadata());
    for method in ["POST", "DELETE", "PATCH", "TRACE", "BREW"] {
        let reply =
            bench.http(&format!("{method} /latest/meta-data/ HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"));
        assert_bare(&reply, 405);
        assert_eq!(reply.header("Allow"), Some("GET, HEAD, OPTIONS"));
    }
    let reply = bench.http("OPTIONS /latest/meta-data/ HTTP/1.1\r\n\r\n");
    assert_bare(&reply, 200);
    assert_eq!(reply.header("Allow"), Some("GET, HEAD, OPTIONS"));
}

#[test]
fn version_1_works_only_while_tokens_are_optional() {
    let mut bench = Bench::new(metadata());
    let reply = bench.get("/latest/meta-data/placement/region");
    assert_eq!((reply.status, reply.text()), (200, "us-east-1"));
    assert_eq!(reply.header(TTL_HEADER), None);
    assert_eq!(bench.service.counters().imds_no_token, 1);

    update(&mut bench, |snapshot| snapshot.options.tokens = HttpTokens::Required);
    for path in ["/", "/latest", "/latest/meta-data/placement/region", "/latest/meta-data/nothing"] {
        assert_bare(&bench.get(path), 401);
    }
    let token = bench.token(60);
    assert_eq!(bench.get_with(&token, "/").status, 200);
    update(&mut bench, |_| {});
    assert_eq!(bench.get("/latest/meta-data/placement/region").status, 200);
}

#[test]
fn token_that_does_not_hold_is_401_also_where_none_is_needed() {
    let mut other = metadata();
    other.instance_id = "i-0fedcba9876543210".into();
    let foreign = Bench::new(other).token(60);
    for snapshot in [metadata(), required()] {
        let mut bench = Bench::new(snapshot);
        let own = bench.token(60);
        let forged = format!("{}{}", if own.starts_with('A') { "B" } else { "A" }, &own[1..]);
        for token in ["x", "", &foreign, &forged, &own[..55], &format!("{own}=")] {
            assert_bare(&bench.get_with(token, "/latest/meta-data/instance-id"), 401);
        }
        let twice = format!("X-aws-ec2-metadata-token: {own}\r\n").repeat(2);
        assert_bare(&bench.http(&format!("GET / HTTP/1.1\r\n{twice}\r\n")), 401);
        assert_eq!(bench.get_with(&own, "/latest/meta-data/instance-id").status, 200);
    }
}

#[test]
fn token_counts_down_and_dies_on_the_second() {
    let mut bench = Bench::new(required());
    let token = bench.token(60);
    let ask = |bench: &mut Bench, millis: u64| {
        bench.wait(Duration::from_millis(millis));
        let reply = bench.get_with(&token, "/latest/meta-data/nothing");
        (reply.status, reply.header(TTL_HEADER).map(str::to_owned))
    };
    assert_eq!(ask(&mut bench, 0), (404, Some("60".into())));
    assert_eq!(ask(&mut bench, 1_001), (404, Some("59".into())));
    assert_eq!(ask(&mut bench, 57_999), (404, Some("1".into())));
    assert_eq!(ask(&mut bench, 999), (404, Some("1".into())));
    assert_eq!(ask(&mut bench, 1), (401, None));
}

#[test]
fn tokens_die_with_a_restore_but_not_with_new_metadata() {
    let mut bench = Bench::new(required());
    let token = bench.token(21_600);
    update(&mut bench, |snapshot| snapshot.options.tokens = HttpTokens::Required);
    assert_eq!(bench.get_with(&token, "/").status, 200);
    bench.service.reseed([8; 32]);
    bench.settle();
    assert_bare(&bench.get_with(&token, "/"), 401);
    let token = bench.token(60);
    assert_eq!(bench.get_with(&token, "/").status, 200);
}

#[test]
fn data_reply_is_that_of_the_real_service() {
    let mut bench = Bench::new(metadata());
    let token = bench.token(21_600);
    let reply = bench.get_with(&token, "/latest/meta-data/placement/region");
    assert_eq!(
        reply.names(),
        [
            TTL_HEADER,
            "Content-Type",
            "Accept-Ranges",
            "Last-Modified",
            "Content-Length",
            "Date",
            "Server",
            "Connection"
        ]
    );
    assert_eq!(reply.header("Accept-Ranges"), Some("none"));
    assert_eq!(reply.header("Last-Modified"), Some("Thu, 27 Jun 2024 22:17:40 GMT"));
    assert_eq!(reply.header("Date"), Some("Thu, 27 Jun 2024 22:31:31 GMT"));
    assert_eq!(reply.header("Server"), Some("EC2ws"));
    assert_eq!(reply.header("Content-Type"), Some("text/plain"));
    bench.wait(Duration::from_secs(65));
    let later = bench.get("/latest/dynamic/instance-identity/document");
    assert_eq!(later.header("Date"), Some("Thu, 27 Jun 2024 22:32:36 GMT"));
    assert_eq!(later.header("Last-Modified"), Some("Thu, 27 Jun 2024 22:17:40 GMT"));
    assert_eq!(later.header("Content-Type"), Some("text/plain"));
}

#[test]
fn what_does_not_exist_is_a_page_of_339_bytes() {
    let mut bench = Bench::new(metadata());
    for path in [
        "/2021-03-24/meta-data/",
        "/latest/meta-data/nothing",
        "/latest/api/",
        "/latest/meta-data/placement%2Fregion",
        "/latest/meta-data/%ff",
        "/latest/meta-data/./placement/region",
        "/latest/meta-data/../meta-data/placement/region",
        "/latest/meta-data/public-keys/0=my-key",
    ] {
        let reply = bench.get(path);
        assert_eq!((reply.status, reply.body.len()), (404, 339), "{path}");
        assert_eq!(reply.header("Content-Type"), Some("text/html"));
        assert!(reply.text().contains("<title>404 - Not Found</title>"));
        assert!(reply.rest.is_empty());
    }
}

#[test]
fn paths_are_read_as_clients_write_them() {
    let mut bench = Bench::new(metadata());
    for (path, text) in [
        ("/latest/meta-data/placement/availability-zone/", "us-east-1a"),
        ("/latest//meta-data/instance-id", "i-0123456789abcdef0"),
        ("//2009-04-04//meta-data//instance-id//", "i-0123456789abcdef0"),
        ("/latest/meta-data/tags/instance/a%3Db", "tag value"),
        ("/latest/meta-data/tags/instance/a=b", "tag value"),
        ("/latest/meta-data/placement/region?x=/../y", "us-east-1"),
        ("/latest", "dynamic\nmeta-data\nuser-data"),
        ("/2021-03-23/", "dynamic\nmeta-data\nuser-data"),
        ("/latest/meta-data", "instance-id\nplacement/\npublic-keys/\ntags/"),
        ("/latest/meta-data/placement", "availability-zone\nregion"),
        ("/latest/meta-data/placement/", "availability-zone\nregion"),
        ("/latest/meta-data/public-keys/", "0=my-key"),
        ("/latest/meta-data/public-keys/0/", "openssh-key"),
        ("/latest/meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAA my-key"),
        ("/latest/dynamic/instance-identity", "document"),
    ] {
        let reply = bench.get(path);
        assert_eq!((reply.status, reply.text()), (200, text), "{path}");
    }
}

#[test]
fn targets_of_proxies_and_broken_ones_are_400() {
    let mut bench = Bench::new(metadata());
    for target in [
        "http://169.254.169.254/latest/meta-data/",
        "169.254.169.254:80",
        "*",
        "latest",
        "/%zz",
        "/latest/%4",
    ] {
        assert_bare(&bench.get(target), 400);
        assert_bare(&put(&mut bench, target, "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n"), 400);
    }
    assert_bare(&bench.http("\u{16}\u{3}\u{1}\u{0}\r\n\r\n"), 400);
    assert_bare(&bench.http("GET / HTTP/1.1\r\nno colon\r\n\r\n"), 400);
}

#[test]
fn requests_are_bounded() {
    let mut bench = Bench::new(metadata());
    let agent = |length: usize| format!("GET / HTTP/1.1\r\nUser-Agent: {}\r\n\r\n", "x".repeat(length));
    let fitting = super::http::MAX_REQUEST - agent(0).len();
    assert_eq!(bench.http(&agent(fitting)).status, 200);
    assert_bare(&bench.http(&agent(fitting + 1)), 431);
    assert_bare(&bench.http(&agent(20_000)), 431);
}

#[test]
fn head_is_get_without_the_body() {
    let mut bench = Bench::new(metadata());
    let token = bench.token(60);
    for path in
        ["/", "/latest/meta-data/", "/latest/meta-data/instance-id", "/latest/user-data", "/latest/nothing"]
    {
        let get = bench.get_with(&token, path);
        let handle = bench.connect(IMDS);
        bench.send(
            handle,
            format!("HEAD {path} HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n").as_bytes(),
        );
        let mut bytes = Vec::new();
        assert!(bench.run_until(Duration::from_secs(9), |bench| {
            bytes.extend(bench.received(handle));
            !bench.tcp(handle).may_recv()
        }));
        assert!(bytes.ends_with(b"\r\n\r\n"), "{path}: a body came");
        let head = Response { body: get.body.clone(), ..Response::parse(&bytes) };
        assert_eq!(head, get, "{path}");
    }
}

#[test]
fn connection_closes_unless_asked_to_stay() {
    let mut bench = Bench::new(metadata());
    for (request, stays) in [
        ("GET / HTTP/1.1\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n", true),
        ("GET /nothing HTTP/1.1\r\nConnection: Keep-Alive\r\n\r\n", true),
        ("DELETE / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n", true),
        ("GET * HTTP/1.1\r\nConnection: keep-alive\r\n\r\n", false),
    ] {
        let handle = bench.connect(IMDS);
        bench.send(handle, request.as_bytes());
        let reply = bench.response(handle);
        assert_eq!(reply.header("Connection"), if stays { None } else { Some("close") }, "{request}");
        bench.run_until(Duration::from_secs(1), |_| false);
        assert_eq!(bench.tcp(handle).may_recv(), stays, "{request}");
        if stays {
            bench.send(handle, b"GET /latest HTTP/1.1\r\n\r\n");
            assert_eq!(bench.response(handle).status, 200);
        }
        bench.tcp(handle).close();
        bench.settle();
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut bench = Bench::new(metadata());
    let handle = bench.connect(IMDS);
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nConnection: keep-alive\r\n\r\n");
    let requests = [
        get("/latest/user-data"),
        get("/latest/meta-data/instance-id"),
        get("/latest/nothing"),
        "GET /latest HTTP/1.1\r\n\r\n".to_owned(),
    ];
    bench.send(handle, requests.concat().as_bytes());
    let mut bytes = Vec::new();
    assert!(bench.run_until(Duration::from_secs(9), |bench| {
        bytes.extend(bench.received(handle));
        !bench.tcp(handle).may_recv()
    }));
    let mut lengths = Vec::new();
    while !bytes.is_empty() {
        let reply = Response::parse(&bytes);
        lengths.push((reply.status, reply.body.len()));
        bytes = reply.rest;
    }
    assert_eq!(lengths, [(200, 16_384), (200, 19), (404, 339), (200, 27)]);
}

#[test]
fn user_data_come_back_byte_for_byte() {
    let mut bench = Bench::new(metadata());
    let reply = bench.get("/latest/user-data");
    assert_eq!(reply.header("Content-Type"), Some("application/octet-stream"));
    assert_eq!(reply.body.len(), 16_384);
    assert!(reply.body.iter().zip((0..=255u8).cycle()).all(|(got, want)| *got == want));
    assert_eq!(bench.get("/2009-04-04/user-data/").body, reply.body);
    update(&mut bench, |snapshot| {
        snapshot.leaves.remove("user-data");
    });
    assert_eq!(bench.get("/latest/user-data").status, 404);
    assert_eq!(bench.get("/latest/").text(), "dynamic\nmeta-data");
}

#[test]
fn disabled_endpoint_answers_403_and_comes_back() {
    let mut bench = Bench::new(metadata());
    let token = bench.token(60);
    update(&mut bench, |snapshot| snapshot.options.endpoint_enabled = false);
    assert_bare(&bench.get("/latest/meta-data/"), 403);
    assert_bare(&bench.get_with(&token, "/"), 403);
    assert_bare(&put(&mut bench, "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n"), 403);
    assert_bare(&bench.http("POST / HTTP/1.1\r\n\r\n"), 403);
    update(&mut bench, |_| {});
    assert_eq!(bench.get_with(&token, "/").status, 200);
}

#[test]
fn metadata_change_under_an_open_connection() {
    let mut bench = Bench::new(metadata());
    let handle = bench.connect(IMDS);
    let ask = |bench: &mut Bench, path: &str| {
        bench.send(handle, format!("GET {path} HTTP/1.1\r\nConnection: keep-alive\r\n\r\n").as_bytes());
        bench.response(handle)
    };
    assert_eq!(ask(&mut bench, "/latest/meta-data/iam/security-credentials/").status, 404);
    update(&mut bench, |snapshot| {
        let path = "meta-data/iam/security-credentials/web-role";
        snapshot.leaves.insert(path.into(), LeafValue::from("{}"));
        snapshot.leaves.insert("meta-data/security-groups".into(), LeafValue::from("a\nb"));
        snapshot.leaves.remove("meta-data/tags/instance/a=b");
    });
    assert_eq!(ask(&mut bench, "/latest/meta-data/iam/security-credentials/").text(), "web-role");
    assert_eq!(ask(&mut bench, "/latest/meta-data/security-groups").text(), "a\nb");
    assert_eq!(
        ask(&mut bench, "/latest/meta-data/").text(),
        "iam/\ninstance-id\nplacement/\npublic-keys/\nsecurity-groups"
    );
    assert_eq!(ask(&mut bench, "/latest/meta-data/tags/instance/a=b").status, 404);
}

/// What cloud-init does: each listing, then everything it lists.
#[test]
fn every_listed_name_has_an_answer() {
    let mut bench = Bench::new(required());
    let token = bench.token(60);
    let mut directories = vec!["/latest/meta-data/".to_owned(), "/2021-03-23/dynamic/".to_owned()];
    let mut leaves = 0;
    while let Some(directory) = directories.pop() {
        let listing = bench.get_with(&token, &directory);
        assert_eq!(listing.status, 200, "{directory}");
        for name in listing.text().lines() {
            if name.ends_with('/') {
                directories.push(format!("{directory}{name}"));
                continue;
            }
            let name = name
                .split_once('=')
                .filter(|(n, _)| n.bytes().all(|b| b.is_ascii_digit()))
                .map_or_else(|| name.replace('=', "%3D"), |(number, _)| format!("{number}/openssh-key"));
            assert_eq!(
                bench.get_with(&token, &format!("{directory}{name}")).status,
                200,
                "{directory}{name}"
            );
            leaves += 1;
        }
    }
    assert_eq!(leaves, 6);
}
