//! What a VMM can do that a guest has taken over: all it has is an open tap queue.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use kiln_model::security::{Message, Packet};
use support::packets::{World, all_out, ethernet, ingress, ipv4};
use support::{DEADLINE, host_state, on_own_host, sh};

/// Runs as nobody, without capabilities, in an empty namespace, with the queue as standard input.
/// Prints the name of each attempt and whether the kernel let it happen.
const ATTEMPTS: &str = r#"
import ctypes, fcntl, os, struct, sys
tap = 0
def attempt(name, do):
    try:
        do()
        print(name, "allowed")
    except OSError as error:
        print(name, "refused", error.errno)
def ioctl(number, argument):
    return lambda: fcntl.ioctl(tap, number, argument)
def ifreq(name, flags=0):
    return struct.pack("16sH22x", name, flags)
attempt("another-tap", lambda: os.open("/dev/net/tun", os.O_RDWR))
attempt("neighbours-tap", ioctl(0x400454CA, ifreq(b"kt000000000105", 0x5002)))
attempt("attach-again", ioctl(0x400454D9, ifreq(b"kt000000000105", 0x0200)))
attempt("namespace-of-tap", ioctl(0x54E3, 0))
attempt("owner", ioctl(0x400454CC, 12345))
libc = ctypes.CDLL(None, use_errno=True)
def setns():
    fd = os.open("/run/netns/kiln-000000000001", os.O_RDONLY)
    if libc.setns(fd, 0x40000000):
        raise OSError(ctypes.get_errno(), "setns")
attempt("setns", setns)
def userns():
    if libc.unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "unshare")
    setns()
attempt("userns-setns", userns)
attempt("write-neighbour-mac", ioctl(0x8924, struct.pack("16sH6s16x", b"", 1, bytes([2, 0, 0, 0, 1, 5]))))
attempt("persist", ioctl(0x400454CB, 1))
attempt("sndbuf", ioctl(0x400454D4, struct.pack("i", 1 << 30)))
attempt("bogus-gso", lambda: os.write(tap, struct.pack("<BBHHHHH", 1, 0x7f, 65535, 9, 65535, 65535, 0) + bytes(100)))
for n in range(2000):
    try:
        os.write(tap, os.urandom(12 + n % 1500))
    except OSError:
        pass
for n in range(2000):
    try:
        os.write(tap, bytes([0]) * 12 + os.urandom(14 + n % 1500))
    except OSError:
        pass
frame = bytes.fromhex(sys.argv[1])
os.write(tap, bytes(12) + frame)
"#;

fn have(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        println!("SKIPPED: needs the program {program}");
    }
    found
}

#[test]
fn vmm_with_its_tap_alone_reaches_nothing_that_its_groups_forbid() {
    if !have("/usr/bin/python3") || !have("setpriv") {
        return;
    }
    on_own_host(|| {
        let before = host_state();
        let mut world = World::new(&[4, 5, 6]);
        // All is open, so that only what is forged is kept out.
        world.set_rules(1, vec![ingress("all 0-0 0.0.0.0/0"), all_out()]);
        for last in [4, 5, 6] {
            world.join(last, &[1]);
        }
        world.apply();
        let [own, neighbour, other] = [4, 5, 6].map(World::address);
        let forged =
            Packet { source: other.into(), destination: neighbour.into(), message: Message::Udp { port: 9 } };
        let plan = world.plans[&own].clone();
        // To the hardware address that it gives the router's side of its tap.
        let router = world.plans[&neighbour].mac.octets();
        let frame = ethernet(router, plan.mac.octets(), 0x0800, &ipv4(9, forged, 999));
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        let queue: OwnedFd = world.taps[&own].fd().as_fd().try_clone_to_owned().unwrap();
        let vmm = Command::new("unshare")
            .args(["--net", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
            .args([
                "--no-new-privs",
                "--bounding-set=-all",
                "--inh-caps=-all",
                "/usr/bin/python3",
                "-c",
                ATTEMPTS,
                &hex,
            ])
            .stdin(queue)
            .output()
            .unwrap();
        let told = String::from_utf8(vmm.stdout).unwrap();
        assert!(vmm.status.success(), "{told}{}", String::from_utf8_lossy(&vmm.stderr));
        print!("{told}");
        for name in [
            "another-tap",
            "neighbours-tap",
            "attach-again",
            "namespace-of-tap",
            "setns",
            "userns-setns",
            "bogus-gso",
        ] {
            assert!(told.contains(&format!("{name} refused")), "{name}: {told}");
        }
        // What the kernel allows has no effect on others: the hardware address of the router's side of
        // its own tap is nothing that anybody goes by.
        let spoofed = world.counters().interface(plan.interface);
        assert!(spoofed.spoofed.packets > 0 && spoofed.other_kinds.packets > 0, "{spoofed:?}");
        for last in [5, 6] {
            let tap = world.taps.get_mut(&World::address(last)).unwrap();
            let mut received = 0;
            while tap.read_frame().is_some() {
                received += 1;
            }
            assert_eq!(received, 0, "interface {last} got what it should not");
        }
        for (from, to) in [(other, neighbour), (neighbour, other)] {
            let packet =
                Packet { source: from.into(), destination: to.into(), message: Message::Udp { port: 80 } };
            let id = world.send(packet, 999);
            let tap = world.taps.get_mut(&to).unwrap();
            tap.wait(DEADLINE);
            let frame = tap.read_frame().unwrap();
            assert_eq!(frame[18..20], id.to_be_bytes(), "neighbours talk as ever");
        }
        assert!(
            sh("ip -n kiln-000000000001 neigh")
                .contains("172.31.0.5 dev kt000000000105 lladdr 02:00:00:00:01:05 PERMANENT")
        );
        // A tap that was made to stay goes with its interface.
        let plans = world.plans.clone();
        let dir = world.dir;
        drop(world.taps);
        for plan in plans.values() {
            kiln_hostnet::detach(dir.path(), plan.interface).unwrap();
        }
        assert_eq!(host_state(), before);
    });
}
