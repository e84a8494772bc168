//! A VMM without a machine: listens where a real one would and plays a part.
//!
//! The test binary itself is the VMM program. `kiln` starts a script that runs the one ignored test
//! which calls [`play`]; the harness's own text goes to the VMM's log, where nobody minds.

use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kiln_vmspec::frame::Connection;
use kiln_vmspec::{Command, Event, ExitReason, Message, MetadataSnapshot, Reply, Request, Stats};

use super::Bench;

const FD: &str = "FAKE_VMM_FD";
const PART: &str = "FAKE_VMM_PART";

/// Writes the script that stands for `kiln-vmm`; answers its path. `part`: see [`play`].
pub fn program(bench: &Bench, part: &str) -> PathBuf {
    let path = bench.path(&format!("vmm-{part}"));
    let ourselves = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\n{FD}=$2 {PART}={part} exec {} --exact fake_vmm --ignored --nocapture\n",
        ourselves.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

struct Guest {
    part: String,
    metadata: Mutex<MetadataSnapshot>,
    clients: Mutex<Vec<Connection>>,
}

impl Guest {
    fn say(&self, event: &Event) {
        for client in self.clients.lock().unwrap().iter() {
            let _ = client.send(&Message::Event(event.clone()), &[]);
        }
    }

    fn print(&self, text: &str) {
        self.say(&Event::Console { bytes: text.as_bytes().to_vec() });
    }

    fn end(&self, reason: ExitReason) -> ! {
        self.say(&Event::Exited(reason));
        std::process::exit(0);
    }
}

/// Body of the fake. Parts: `poweroff` prints a line and powers off; `serve` echoes input until it
/// is told to end; `deaf` is the same but ignores its power button; `refuse` refuses the spec;
/// `crash` dies without a word; `hang` reads nothing at all; `flood` prints 64 MiB and then serves.
pub fn play() {
    let Some(fd) = std::env::var(FD).ok().and_then(|fd| fd.parse().ok()) else { return };
    #[expect(unsafe_code, reason = "an inherited descriptor is known by its number only")]
    // SAFETY: `kiln` passed it to this process, where nothing else knows it.
    let listener = UnixListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let part = std::env::var(PART).unwrap();
    if part == "hang" {
        loop {
            std::thread::park();
        }
    }
    let guest = Arc::new(Guest { part, metadata: Mutex::default(), clients: Mutex::new(Vec::new()) });
    for stream in listener.incoming() {
        let connection = Connection::new(stream.unwrap());
        guest.clients.lock().unwrap().push(connection.try_clone().unwrap());
        let guest = Arc::clone(&guest);
        std::thread::spawn(move || {
            while let Ok((request, fds)) = connection.receive::<Request>() {
                let reply = answer(&guest, &request.command, fds.len());
                connection.send(&Message::Reply { id: request.id, reply }, &[]).unwrap();
                after(&guest, request.command);
            }
        });
    }
}

fn answer(guest: &Guest, command: &Command, fds: usize) -> Reply {
    match command {
        Command::Start(spec) => {
            // kvm, overlay, base, log at least.
            assert!(fds >= 4 && spec.metadata.check().is_ok());
            *guest.metadata.lock().unwrap() = spec.metadata.clone();
            match guest.part.as_str() {
                "refuse" => Reply::Error { message: "no kernel on the root volume (give --kernel)".into() },
                "crash" => {
                    eprintln!("kiln-vmm: out of luck");
                    std::process::exit(3);
                }
                "flood" => {
                    let line = [b"kiln-vmm: ".as_slice(), &[b'x'; 1013], b"\n"].concat();
                    // Its pipe is full at times, and never blocks.
                    (0..64 << 10).for_each(|_| drop(std::io::stderr().write_all(&line)));
                    Reply::Ok
                }
                _ => Reply::Ok,
            }
        }
        Command::Stats => {
            let counters = [("blk0.read_bytes".to_owned(), 4096)].into();
            Reply::Stats(Box::new(Stats { counters }))
        }
        Command::UpdateMetadata(snapshot) => {
            let mut metadata = guest.metadata.lock().unwrap();
            assert!(snapshot.check().is_ok() && snapshot.generation > metadata.generation);
            *metadata = *snapshot.clone();
            Reply::Ok
        }
        Command::ReadMetadata { path } => {
            Reply::Metadata { found: kiln_linklocal::read_metadata(&guest.metadata.lock().unwrap(), path) }
        }
        _ => Reply::Ok,
    }
}

fn attached(guest: &Guest) {
    guest.print("guest is up\r\n");
    if guest.part == "poweroff" {
        guest.end(ExitReason::PowerOff);
    }
}

fn after(guest: &Guest, command: Command) {
    match command {
        Command::Start(_) if guest.part == "refuse" => std::process::exit(1),
        Command::Start(spec) => {
            guest.say(&Event::Running { booted: "a fake".into() });
            if spec.console.to_starter {
                attached(guest);
            }
        }
        Command::AttachConsole { .. } => attached(guest),
        Command::ConsoleInput { bytes } => {
            guest.print(&format!("typed {:?}\r\n", String::from_utf8_lossy(&bytes)));
        }
        Command::PowerButton if guest.part == "deaf" => guest.print("what button?\r\n"),
        Command::PowerButton => {
            guest.print("going down\r\n");
            guest.end(ExitReason::PowerOff);
        }
        Command::Kill => guest.end(ExitReason::Killed),
        _ => {}
    }
}
