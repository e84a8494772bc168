//! The network of a booted guest under load: offloads, merged buffers, several queues, fragments.
//!
//! Needs the lab: see `support`.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use support::run::{Desk, Run};

/// Boots take seconds; this tells a hang from a slow machine.
const BOOT: u64 = 180;
/// Bytes of each transfer.
const LEN: usize = 24 << 20;
/// Transfers at once, so that all queues have something to do.
const STREAMS: u16 = 4;

/// Bytes that no two places share.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn connect(address: Ipv4Addr, port: u16) -> TcpStream {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match TcpStream::connect((address, port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < end, "port {port} of the guest: {error}"),
        }
    }
}

/// A counter of the guest's interface.
fn statistic(run: &mut Run, address: Ipv4Addr, name: &str) -> u64 {
    let script = format!("cat /sys/class/net/eth0/statistics/{name}");
    run.ssh("root", address, &script).trim().parse().unwrap()
}

#[test]
fn bulk_data_pass_whole_in_few_large_frames_both_ways() {
    let image = lab_image!("tiny");
    let desk = Desk::new();
    let mut run = desk.run(&image, &["--vcpus", "2", "--memory", "512M"]);
    run.expect("tiny: ready at", BOOT);
    let address: Ipv4Addr = desk.instance()["private_ip"].as_str().unwrap().parse().unwrap();
    let data = pattern(LEN);

    // The guest sends back what it gets, on several connections at once.
    for port in 9000..9000 + STREAMS {
        let script = format!("nc -l -p {port} -e /bin/cat >/dev/null 2>&1 </dev/null &");
        run.ssh("root", address, &script);
    }
    let names = ["rx_bytes", "rx_packets", "tx_bytes", "tx_packets"];
    let before = names.map(|name| statistic(&mut run, address, name));
    thread::scope(|scope| {
        for port in 9000..9000 + STREAMS {
            let data = &data;
            scope.spawn(move || {
                let stream = connect(address, port);
                thread::scope(|both| {
                    both.spawn(|| {
                        (&stream).write_all(data).unwrap();
                        stream.shutdown(Shutdown::Write).unwrap();
                    });
                    let mut back = Vec::with_capacity(LEN);
                    (&stream).read_to_end(&mut back).unwrap();
                    assert!(back == *data, "port {port}: {} bytes came back changed", back.len());
                });
            });
        }
    });
    let after = names.map(|name| statistic(&mut run, address, name));
    let [rx_bytes, rx_packets, tx_bytes, tx_packets] = [0, 1, 2, 3].map(|i| after[i] - before[i]);
    println!(
        "frames to the guest: {rx_packets} of {} bytes, from it: {tx_packets} of {}",
        rx_bytes / rx_packets,
        tx_bytes / tx_packets
    );
    // With acknowledgements counted, and yet more than any packet of the MTU.
    assert!(rx_bytes / rx_packets > 1600 && tx_bytes / tx_packets > 1600);
    let errors =
        "cat /sys/class/net/eth0/statistics/*_errors /sys/class/net/eth0/statistics/*_dropped | sort -u";
    assert_eq!(run.ssh("root", address, errors), "0\n");

    // Fragments, in both directions.
    run.ssh("root", address, "ping -c 3 -s 8000 -W 20 ${SSH_CLIENT%% *}");

    // And outwards: the guest connects to a server of the host.
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    run.ssh("root", address, &format!("echo out | nc ${{SSH_CLIENT%% *}} {port}"));
    assert_eq!(server.join().unwrap(), "out\n");

    run.ssh("root", address, "(sleep 1; poweroff) >/dev/null 2>&1 &");
    run.wait_power_off(60);
}
