//! The request table of the service, over TCP.

use crate::testing::{Bench, metadata};

#[test]
fn smoke() {
    let mut bench = Bench::new(metadata());
    let reply = bench.get("/latest/meta-data/instance-id");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.text(), "i-0123456789abcdef0");
    let token = bench.token(60);
    let reply = bench.get_with(&token, "/latest/user-data");
    assert_eq!(reply.body.len(), 16384);
    assert!(bench.tapped.is_empty());
    println!("{:?}", bench.service.counters());
}
