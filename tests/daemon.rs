//! Machines outlive their daemon, and the next one takes them over, whenever it dies.
//!
//! The daemon is a child of the test: it opens a supervisor and obeys lines. What is killed is killed with
//! SIGKILL.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod cli_support;
#[path = "support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use cli_support::{Bench, disk, have_kvm};
use kiln_controlplane::credentials::NoSts;
use kiln_controlplane::instances::{
    Capacity, ControlPlane, LaunchRequest, NetworkMode, NewImage, Settings, Supervisor,
};
use kiln_controlplane::network::HostFabric;
use kiln_controlplane::volumes::NewVolume;
use kiln_model::{ByteSize, InstanceId};
use serde_json::{Value, json};
use support::Deadline;

const STATE: &str = "KILN_TEST_STATE";
const IMAGE: &str = "KILN_TEST_IMAGE";
const KERNEL: &str = "KILN_TEST_KERNEL";
/// Seconds that a guest has to power off for a reboot.
const GRACE: &str = "KILN_TEST_GRACE";
/// Operations of the crash test, if not said otherwise in `KILN_ROUNDS`.
const OPERATIONS: u32 = 200;
/// Instances that it keeps at once.
const MOST: usize = 5;

/// What the guests do: write to their disk, then wait for their power button.
const CMDLINE: &str = "test=blk-rw,power-button";
/// What those do that do not care for it.
const DEAF: &str = "test=blk-rw,spin";

#[test]
#[ignore = "the daemon of the other tests"]
fn daemon() {
    let Some(state) = std::env::var_os(STATE) else { return };
    let plane =
        ControlPlane::open(Path::new(&state), Arc::new(HostFabric::default()), Arc::new(NoSts)).unwrap();
    let capacity = Capacity { memory: ByteSize::bytes(1 << 30), vcpus: 64 };
    let mut settings = Settings { capacity, ..Settings::default() };
    if let Ok(grace) = std::env::var(GRACE) {
        settings.reboot_grace = Duration::from_secs(grace.parse().unwrap());
    }
    let supervisor = Supervisor::open(plane, settings).unwrap();
    println!("\nready");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let mut words = line.split(' ');
        let (verb, id) = (words.next().unwrap(), words.next().and_then(|id| id.parse().ok()));
        println!("answer {}", obey(&supervisor, verb, id).unwrap_or_else(|e| json!({ "error": e })));
    }
}

fn obey(supervisor: &Supervisor, verb: &str, id: Option<InstanceId>) -> Result<Value, String> {
    let text = |e: kiln_controlplane::instances::SupervisorError| e.to_string();
    let ids: Vec<InstanceId> = id.into_iter().collect();
    match verb {
        "launch" | "launch-deaf" => {
            let mut request = LaunchRequest::new(&std::env::var(IMAGE).unwrap(), "t3.nano");
            request.memory = Some(ByteSize::bytes(64 << 20));
            request.vcpus = Some(1);
            request.network = NetworkMode::LinkLocalOnly;
            request.boot.kernel = Some(std::env::var_os(KERNEL).unwrap().into());
            let cmdline = if verb == "launch" { CMDLINE } else { DEAF };
            request.boot.cmdline = Some(cmdline.to_owned());
            let launched = supervisor.launch(&request, (1, 1), &mut |_, _, _| Ok(())).map_err(text)?;
            Ok(json!({ "id": launched[0].id.to_string() }))
        }
        "stop" => supervisor.stop(&ids, false).map(|_| json!({})).map_err(text),
        "start" => supervisor.start(&ids).map(|_| json!({})).map_err(text),
        "terminate" => supervisor.terminate(&ids).map(|_| json!({})).map_err(text),
        "reboot" => supervisor.reboot(&ids).map(|()| json!({})).map_err(text),
        "console" => {
            let output = supervisor.console_output(ids[0]).map_err(text)?;
            Ok(json!({ "text": String::from_utf8_lossy(&output.bytes) }))
        }
        "snapshot" => {
            let root = supervisor.instance(ids[0]).map_err(text)?.root.id;
            let snapshot = supervisor.create_snapshot(root, "", &[]).map_err(text)?;
            Ok(json!({ "id": snapshot.id.to_string(), "volume": root.to_string() }))
        }
        "image" | "image-after-reboot" => {
            let reboot = verb != "image";
            let name = format!("of-{}-{}", ids[0], supervisor.plane().images().list().unwrap().len());
            let wish = NewImage { name, reboot, ..NewImage::default() };
            let image = supervisor.create_image(ids[0], &wish).map_err(text)?;
            Ok(json!({ "id": image.id.to_string(), "root": image.root.map(|root| root.to_string()) }))
        }
        "volume" => {
            let wish = NewVolume { size: Some(ByteSize::bytes(1 << 20)), ..NewVolume::default() };
            let volume = supervisor.plane().volumes().create(&wish).map_err(|e| e.to_string())?;
            Ok(json!({ "id": volume.id.to_string() }))
        }
        // Of the one volume that no instance boots from.
        "attach" | "detach" | "attachment" => {
            let plane = supervisor.plane();
            let all = plane.volumes().list().map_err(|e| e.to_string())?;
            let volume = all.into_iter().find(|volume| !volume.is_root()).unwrap();
            let after = match verb {
                "attach" => plane.attach_volume(volume.id, ids[0], "/dev/sdf"),
                "detach" => plane.detach_volume(volume.id, false),
                _ => Ok(volume),
            };
            Ok(json!({ "state": after.map_err(|e| e.to_string())?.attachment.map(|own| own.state) }))
        }
        "progress" => {
            let snapshots = supervisor.plane().volumes().snapshots().map_err(|e| e.to_string())?;
            let shown = snapshots.iter().map(|s| (s.id.to_string(), json!(s.progress)));
            Ok(shown.collect::<serde_json::Map<_, _>>().into())
        }
        "list" => {
            let all = supervisor.instances().map_err(text)?;
            let shown = all.iter().map(|i| {
                let reason = i.reason.as_ref();
                json!({ "id": i.id.to_string(), "state": i.state, "pid": i.vmm.map(|vmm| vmm.pid),
                        "reason": reason.map(|reason| &reason.code), "why": reason.map(|reason| &reason.message),
                        "address": i.interface.address.to_string() })
            });
            Ok(json!({ "all": shown.collect::<Vec<_>>() }))
        }
        other => panic!("no verb {other}"),
    }
}

/// A daemon process.
struct Daemon {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Daemon {
    fn new(world: &World) -> Self {
        Self::with_grace(world, None)
    }

    fn with_grace(world: &World, grace: Option<&str>) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .envs(grace.map(|seconds| (GRACE, seconds)))
            .args(["--exact", "daemon", "--ignored", "--nocapture"])
            .env(STATE, world.bench.state_dir())
            .env(IMAGE, &world.image)
            .env(KERNEL, &world.kernel)
            .env("KILN_VMM", support::binary("kiln-vmm"))
            .env("KILN_ALLOW_SOFTWARE_KVM", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut daemon = Daemon { child, input, output };
        daemon.line("ready");
        daemon
    }

    /// The rest of the next line that starts like this.
    fn line(&mut self, start: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the daemon has ended");
            if let Some(rest) = line.trim_end().strip_prefix(start) {
                return rest.to_owned();
            }
        }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input.as_ref().unwrap(), "{line}").unwrap();
    }

    fn ask(&mut self, line: &str) -> Value {
        self.say(line);
        serde_json::from_str(&self.line("answer ")).unwrap()
    }

    fn list(&mut self) -> BTreeMap<String, Value> {
        let all = self.ask("list");
        all["all"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| (i["id"].as_str().unwrap().to_owned(), i.clone()))
            .collect()
    }

    /// Waits until an instance is in this state.
    #[track_caller]
    fn until(&mut self, id: &str, state: &str) -> Value {
        let deadline = Deadline::after(60);
        loop {
            let instance = self.list()[id].clone();
            if instance["state"] == state {
                return instance;
            }
            deadline.left(&format!("{id} {state}, it is {instance}"));
            pause(20);
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as it would end itself.
    fn end(mut self) {
        self.input = None;
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct World {
    bench: Bench,
    image: String,
    kernel: PathBuf,
}

impl World {
    fn new() -> Option<Self> {
        if !have_kvm() {
            return None;
        }
        let bench = Bench::new();
        let kernel = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/guest/build.sh")).output().unwrap();
        let kernel = PathBuf::from(String::from_utf8(kernel.stdout).unwrap().trim());
        let image = bench.file("disk.raw", &disk(7));
        Some(World { bench, image, kernel })
    }

    /// Instances that have files.
    fn instance_dirs(&self) -> BTreeSet<String> {
        let dir = std::fs::read_dir(self.bench.state_dir().join("instances")).unwrap();
        dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for World {
    /// A test that failed leaves machines that nobody else would end.
    fn drop(&mut self) {
        let left = std::fs::read_dir(self.bench.state_dir().join("instances"));
        for entry in left.into_iter().flatten().filter_map(Result::ok) {
            let _ = self.bench.output(&["terminate", entry.file_name().to_str().unwrap()]);
        }
    }
}

fn pause(milliseconds: u64) {
    let (_keep, never) = channel::<()>();
    let _ = never.recv_timeout(Duration::from_millis(milliseconds));
}

fn alive(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn guest_outlives_its_daemon_and_is_adopted() {
    let Some(world) = World::new() else { return };
    let mut first = Daemon::new(&world);
    let id = first.ask("launch")["id"].as_str().unwrap().to_owned();
    let pid = first.until(&id, "running")["pid"].as_u64().unwrap();
    first.kill();
    assert!(alive(pid), "the machine goes on");

    // Adopted, and under control: the guest comes up a second time in the same process.
    let mut second = Daemon::new(&world);
    assert_eq!(second.until(&id, "running")["pid"], pid);
    let deadline = Deadline::after(60);
    let came_up = |daemon: &mut Daemon, times: usize| loop {
        let text = daemon.ask(&format!("console {id}"))["text"].as_str().unwrap().to_owned();
        if text.matches("waiting for the power button").count() >= times {
            break;
        }
        deadline.left(&format!("the guest to come up {times} times: {text}"));
        pause(20);
    };
    came_up(&mut second, 1);
    assert_eq!(second.ask(&format!("reboot {id}")), json!({}));
    came_up(&mut second, 2);
    assert_eq!(second.until(&id, "running")["pid"], pid);
    second.kill();

    // Nobody is there when it ends, and yet the next one knows why.
    let socket = world.bench.state_dir().join("instances").join(&id).join("control.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        use kiln_controlplane::vmm_process::{Commands, ControlConnection};
        let (connection, mut events) = ControlConnection::connect(&socket).unwrap();
        connection.request(kiln_vmspec::Command::PowerButton).await.unwrap();
        while events.recv().await.is_some() {}
    });
    while alive(pid) {
        deadline.left("the end of the VMM");
        pause(20);
    }
    let mut third = Daemon::new(&world);
    let stopped = third.until(&id, "stopped");
    assert_eq!(
        (&stopped["reason"], &stopped["pid"]),
        (&json!("Client.InstanceInitiatedShutdown"), &Value::Null),
        "{stopped}"
    );

    third.ask(&format!("start {id}"));
    let again = third.until(&id, "running")["pid"].as_u64().unwrap();
    third.end();
    assert!(alive(again), "an orderly end of the daemon leaves machines too");
    let mut last = Daemon::new(&world);
    last.ask(&format!("terminate {id}"));
    last.until(&id, "terminated");
    assert!(!alive(again));
    assert_eq!(world.instance_dirs(), BTreeSet::new());
    last.end();
}

/// A VMM that has stopped working, as one that a guest has taken over may, answers nothing.
#[test]
fn vmm_that_hangs_is_killed_and_its_neighbour_feels_nothing() {
    let Some(world) = World::new() else { return };
    let mut daemon = Daemon::new(&world);
    let mut launch = || daemon.ask("launch")["id"].as_str().unwrap().to_owned();
    let (hung, neighbour) = (launch(), launch());
    let pid = daemon.until(&hung, "running")["pid"].as_u64().unwrap();
    let next = daemon.until(&neighbour, "running")["pid"].as_u64().unwrap();
    let process = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();

    // It is asked first, and what asks does not hang with it.
    assert_eq!(daemon.ask(&format!("reboot {hung}")), json!({}));
    assert_eq!(daemon.ask(&format!("reboot {neighbour}")), json!({}));
    assert_eq!(daemon.ask(&format!("terminate {hung}")), json!({}));
    daemon.until(&hung, "terminated");
    assert!(!alive(pid));
    let deadline = Deadline::after(60);
    while daemon.ask(&format!("console {neighbour}"))["text"].as_str().unwrap().matches("kiln guest").count()
        < 2
    {
        deadline.left("the neighbour to come up again");
        pause(20);
    }
    assert_eq!(daemon.until(&neighbour, "running")["pid"], next);
    daemon.ask(&format!("terminate {neighbour}"));
    daemon.until(&neighbour, "terminated");
    assert_eq!(world.instance_dirs(), BTreeSet::new());
    daemon.end();
}

#[test]
fn snapshot_and_image_of_a_running_guest_hold_what_it_wrote() {
    let Some(world) = World::new() else { return };
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return support::skip("needs qemu-img");
    }
    let qemu_img = |args: &[&str]| {
        let output = Command::new("qemu-img").args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let mut daemon = Daemon::new(&world);
    let id = daemon.ask("launch")["id"].as_str().unwrap().to_owned();
    let pid = daemon.until(&id, "running")["pid"].clone();
    let deadline = Deadline::after(60);
    while !daemon.ask(&format!("console {id}"))["text"].as_str().unwrap().contains("waiting for the power") {
        deadline.left("the guest to write");
        pause(20);
    }
    let snapshot = daemon.ask(&format!("snapshot {id}"));
    let image = daemon.ask(&format!("image {id}"));
    let snapshots = [snapshot["id"].as_str().unwrap(), image["root"].as_str().unwrap()];
    while snapshots.iter().any(|id| daemon.ask("progress")[id] != "complete") {
        deadline.left("the snapshots");
        pause(20);
    }
    // It goes on, and stops as it should.
    assert_eq!(daemon.until(&id, "running")["pid"], pid);
    daemon.ask(&format!("stop {id}"));
    daemon.until(&id, "stopped");
    let file = |name: &str| {
        let path = world.bench.state_dir().join("volumes").join(format!("{name}.qcow2"));
        path.to_str().unwrap().to_owned()
    };
    let volume = file(snapshot["volume"].as_str().unwrap());
    for id in snapshots {
        qemu_img(&["check", "-q", "-f", "qcow2", &file(id)]);
        qemu_img(&["compare", "-f", "qcow2", "-F", "qcow2", &file(id), &volume]);
        // What the guest wrote is in the snapshot's own layer, tables and all.
        let map = |file: &str| qemu_img(&["map", "--output=json", "-f", "qcow2", file]);
        let written = map(&file(id));
        assert!(written.contains("\"depth\": 0"), "{written}");
        assert_eq!(written, map(&volume));
    }
    daemon.ask(&format!("terminate {id}"));
    daemon.until(&id, "terminated");
    qemu_img(&["check", "-q", "-f", "qcow2", &file(snapshots[0])]);
    daemon.end();
}

#[test]
fn guest_that_does_not_power_off_for_its_image_is_reset_and_runs_on() {
    let Some(world) = World::new() else { return };
    let mut daemon = Daemon::with_grace(&world, Some("1"));
    let id = daemon.ask("launch-deaf")["id"].as_str().unwrap().to_owned();
    let pid = daemon.until(&id, "running")["pid"].clone();
    let deadline = Deadline::after(120);
    let boots = |daemon: &mut Daemon, wanted: usize| {
        let console = format!("console {id}");
        while daemon.ask(&console)["text"].as_str().unwrap().matches("spinning").count() != wanted {
            deadline.left(&format!("boot {wanted}"));
            pause(20);
        }
    };
    boots(&mut daemon, 1);
    let root = daemon.ask(&format!("image-after-reboot {id}"))["root"].as_str().unwrap().to_owned();
    boots(&mut daemon, 2);
    while daemon.ask("progress")[&root] != "complete" {
        deadline.left("the image");
        pause(20);
    }
    assert_eq!(daemon.until(&id, "running")["pid"], pid);
    daemon.end();

    // One that waits for its guest when its daemon dies has failed; the guest knows nothing of it.
    let mut daemon = Daemon::new(&world);
    let root = daemon.ask(&format!("image-after-reboot {id}"))["root"].as_str().unwrap().to_owned();
    assert_eq!(daemon.ask("progress")[&root], "pending");
    daemon.kill();
    let mut daemon = Daemon::new(&world);
    assert_eq!(daemon.ask("progress")[&root], "failed");
    assert_eq!(daemon.until(&id, "running")["pid"], pid);
    boots(&mut daemon, 2);
    // Nor does a daemon that ends wait for it.
    let last = daemon.ask(&format!("image-after-reboot {id}"))["root"].as_str().unwrap().to_owned();
    daemon.end();
    let mut daemon = Daemon::new(&world);
    assert_eq!(daemon.ask("progress")[&last], "failed");
    boots(&mut daemon, 2);
    daemon.ask(&format!("terminate {id}"));
    daemon.until(&id, "terminated");
    daemon.end();
}

#[test]
fn daemon_killed_at_any_moment_loses_and_doubles_nothing() {
    let Some(world) = World::new() else { return };
    let operations = std::env::var("KILN_ROUNDS").map_or(OPERATIONS, |rounds| rounds.parse().unwrap());
    let mut dice = Dice(u64::from(std::process::id()));
    let mut daemon = Daemon::new(&world);
    let mut kills = 0;
    let (mut known, mut ended) = (BTreeSet::new(), BTreeSet::new());
    for operation in 0..operations {
        let all = daemon.list();
        let living: Vec<&String> = all.keys().filter(|id| !ended.contains(*id)).collect();
        let line = match dice.below(6) {
            0 | 1 if living.len() < MOST => "launch".to_owned(),
            _ if living.is_empty() => "launch".to_owned(),
            choice => {
                let id = living[usize::try_from(dice.below(living.len() as u64)).unwrap()];
                let verb = ["reboot", "stop", "start", "stop", "start", "terminate"]
                    [usize::try_from(choice).unwrap()];
                format!("{verb} {id}")
            }
        };
        // Now and then a snapshot is under way too.
        if dice.below(8) == 0
            && let Some(id) = living.first()
        {
            daemon.ask(&format!("snapshot {id}"));
        }
        if dice.below(3) > 0 {
            let answer = daemon.ask(&line);
            if let Some(id) = answer["id"].as_str() {
                known.insert(id.to_owned());
            }
            if line.starts_with("terminate") && answer.get("error").is_none() {
                ended.insert(line.split(' ').nth(1).unwrap().to_owned());
            }
            continue;
        }
        // Somewhere on the way.
        daemon.say(&line);
        pause(dice.below(120));
        daemon.kill();
        kills += 1;
        daemon = Daemon::new(&world);
        let now = daemon.list();
        for id in &known {
            assert!(now.contains_key(id), "operation {operation}, {line}: {id} is lost");
        }
        for id in &ended {
            let state = now[id]["state"].as_str().unwrap();
            assert!(
                matches!(state, "terminated" | "shutting-down"),
                "operation {operation}: {id} is {state}"
            );
        }
        // One that was cut off may have been made, or ended; both are right.
        for (id, instance) in &now {
            known.insert(id.clone());
            if matches!(instance["state"].as_str(), Some("terminated" | "shutting-down")) {
                ended.insert(id.clone());
            }
        }
    }
    // Everything comes to rest, and what is there is what the rows say.
    let deadline = Deadline::after(120);
    let at_rest = loop {
        let all = daemon.list();
        let rest = |i: &Value| matches!(i["state"].as_str(), Some("running" | "stopped" | "terminated"));
        if all.values().all(rest) {
            break all;
        }
        deadline.left(&format!("rest: {all:?}"));
        pause(50);
    };
    let mut addresses = BTreeSet::new();
    let mut dirs = BTreeSet::new();
    for (id, instance) in &at_rest {
        let state = instance["state"].as_str().unwrap();
        assert_eq!(instance["pid"].as_u64().is_some_and(alive), state == "running", "{instance}");
        if state != "terminated" {
            assert!(
                addresses.insert(instance["address"].to_string()),
                "{instance}: an address is given twice"
            );
            dirs.insert(id.clone());
        }
    }
    assert_eq!(world.instance_dirs(), dirs);
    let running = at_rest.values().filter(|i| i["state"] == "running").count();
    println!("{operations} operations, {kills} kills, {} instances, {running} run at the end", known.len());
    for id in &dirs {
        daemon.ask(&format!("terminate {id}"));
        daemon.until(id, "terminated");
    }
    assert_eq!(world.instance_dirs(), BTreeSet::new());
    daemon.end();
    assert_eq!(std::fs::read(&world.image).unwrap(), disk(7), "the image is as it was");
}

#[test]
fn volume_is_where_its_row_says_whenever_the_daemon_is_killed() {
    let Some(world) = World::new() else { return };
    let mut dice = Dice(u64::from(std::process::id()));
    let mut daemon = Daemon::new(&world);
    let id = daemon.ask("launch")["id"].as_str().unwrap().to_owned();
    daemon.until(&id, "running");
    let volume = daemon.ask("volume")["id"].as_str().unwrap().to_owned();
    let pid = daemon.list()[&id]["pid"].as_u64().unwrap();
    let held = || {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let mut files = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        files.any(|file| file.to_string_lossy().contains(&volume))
    };
    let (mut kills, mut seen) = (0, BTreeSet::new());
    for round in 0..60 {
        let line = format!("{} {id}", if dice.below(2) == 0 { "attach" } else { "detach" });
        if dice.below(2) == 0 {
            daemon.ask(&line);
        } else {
            daemon.say(&line);
            pause(dice.below(30));
            daemon.kill();
            kills += 1;
            daemon = Daemon::new(&world);
        }
        // What is under way comes to an end, and the machine has what the row says.
        let deadline = Deadline::after(120);
        let state = loop {
            let state = daemon.ask("attachment")["state"].clone();
            if (state.is_null() && !held()) || (state == "attached" && held()) {
                break state;
            }
            deadline.left(&format!("rest in round {round}, {line}: {state}, held: {}", held()));
            pause(10);
        };
        seen.insert(state.to_string());
    }
    println!("{kills} kills; {seen:?}");
    assert!(alive(pid), "the guest outlives them all");
    daemon.ask(&format!("terminate {id}"));
    daemon.until(&id, "terminated");
    assert!(daemon.ask("attachment")["state"].is_null(), "it outlives its instance");
    daemon.end();
}

/// xorshift64: the moments are arbitrary, and the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
