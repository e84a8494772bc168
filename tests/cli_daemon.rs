//! `kiln` beside `kilnd`, with real machines: what a user types, from the launch to the end.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod api_support;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use api_support::{Daemon, own_host};
use serde_json::Value;

/// What the guest says when it is up.
const UP: &str = "waiting for the power button";
/// Longest wait for anything. Generous: it only tells a hang from a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn instances_of_a_daemon_obey_the_command_line() {
    own_host::run_inside();
}

/// A `kiln` that goes on printing. Killed when dropped.
struct Following {
    child: Child,
    output: BufReader<ChildStdout>,
    seen: String,
}

impl Following {
    fn new(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Following { child, output, seen: String::new() }
    }

    /// Reads until `text` has come; answers the line.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        loop {
            let mut bytes = Vec::new();
            assert_ne!(self.output.read_until(b'\n', &mut bytes).unwrap(), 0, "no {text:?} in {}", self.seen);
            let line = String::from_utf8_lossy(&bytes).into_owned();
            self.seen.push_str(&line);
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits for its end; what it said of it.
    fn end(mut self) -> Output {
        let mut child = std::mem::replace(&mut self.child, Command::new("true").spawn().unwrap());
        std::io::copy(&mut self.output, &mut std::io::sink()).unwrap();
        child.stdout = None;
        child.wait_with_output().unwrap()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct User {
    daemon: Daemon,
}

impl User {
    /// Runs `kiln`, which must succeed; answers what it printed.
    #[track_caller]
    fn kiln(&self, args: &[&str]) -> String {
        self.checked(args, self.daemon.kiln(args))
    }

    #[track_caller]
    fn checked(&self, args: &[&str], output: Output) -> String {
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs `kiln`, which must fail with one line that says `why`.
    #[track_caller]
    fn fail(&self, args: &[&str], why: &str) {
        let output = self.daemon.kiln(args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{args:?} succeeded");
        let one_line = text.starts_with("kiln: ") && text.matches('\n').count() == 1;
        assert!(one_line && text.contains(why), "{args:?}: {text:?}");
    }

    fn json(&self, args: &[&str]) -> Vec<Value> {
        let text = self.kiln(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap()
    }

    /// What `kiln ps` says of an instance.
    #[track_caller]
    fn instance(&self, id: &str) -> Value {
        self.json(&["ps"]).into_iter().find(|row| row["id"] == id).unwrap()
    }

    fn follow(&self, args: &[&str]) -> Following {
        Following::new(self.daemon.kiln_command(args))
    }

    /// Writes a file; answers its path.
    fn file(&self, name: &str, contents: &str) -> String {
        let path = self.daemon.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// What `kiln ssh` would tell `ssh`.
    fn ssh(&self, args: &[&str]) -> String {
        let program = self.file("bin/ssh", "#!/bin/sh\necho \"$@\"\n");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let others = std::env::var("PATH").unwrap();
        let path = format!("{}:{others}", Path::new(&program).parent().unwrap().display());
        let args = [&["ssh"], args].concat();
        let mut command = self.daemon.kiln_command(&args);
        let output = command.env("PATH", path).env("HOME", self.daemon.path("home")).output().unwrap();
        self.checked(&args, output)
    }
}

#[track_caller]
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        // Another process has to come to it.
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "runs on a host of its own, made by instances_of_a_daemon_obey_the_command_line"]
fn inside() {
    if !own_host::is_inside() {
        return;
    }
    let vmm = Path::new(env!("CARGO_BIN_EXE_kiln-vmm"));
    let mut user = User { daemon: Daemon::new_with(&own_host::variables(vmm)) };
    let image = own_host::guest_image(&user.daemon.path("guest.raw"));
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
    let public = user.file("home/.ssh/id_test.pub", &format!("{key} me@here\n"));
    let private = user.file("home/.ssh/id_test", "");
    let user_data = user.file("user-data", "#!/bin/sh\n");
    let mut events = user.follow(&["events", "--since", "0", "--json"]);

    // A launch, with what the API takes and without what it does not.
    user.fail(&["run", "-d", &image, "--memory", "64M"], "'--detach' cannot be used with '--memory <SIZE>'");
    user.fail(&["run", "-d", "nothing"], "nothing");
    assert_eq!(user.json(&["ps"]), Vec::<Value>::new());
    let web = ["run", "-d", &image, "--name", "web", "--instance-type", "t3.nano", "--tag", "colour=blue"];
    let more = ["--user-data", &user_data, "--ssh-key", &public, "--volume-size", "1"];
    let volumes = ["--volume", "size=1,keep", "--volume", "size=2,device=/dev/sdh"];
    let id = user.kiln(&[&web[..], &more[..], &volumes[..]].concat());
    let mut own: Vec<_> = user
        .json(&["volume", "ls"])
        .into_iter()
        .map(|row| (row["device"].as_str().unwrap().to_owned(), row["bytes"].as_u64().unwrap() >> 30))
        .collect();
    own.sort();
    assert_eq!(own, [("/dev/sdf".to_owned(), 1), ("/dev/sdh".to_owned(), 2), ("/dev/xvda".to_owned(), 1)]);
    assert_eq!(user.kiln(&["metadata", "web", "meta-data/block-device-mapping/ebs2"]), "sdh");
    let shown = user.instance(&id);
    assert_eq!((&shown["name"], &shown["state"]), (&"web".into(), &"running".into()));
    assert_eq!((&shown["supervised"], &shown["volume_bytes"]), (&true.into(), &(1u64 << 30).into()));
    assert_eq!(shown["public_ip"], Value::Null);
    assert!(user.kiln(&["ps"]).contains(&id));
    let second = user.kiln(&["run", "-d", "guest", "--instance-type", "t3.nano", "--ssh-key", &public]);
    assert_eq!(user.json(&["image", "ls"]).len(), 1, "the file is imported once");
    assert_eq!(user.kiln(&["terminate", &second]), "");
    assert_eq!(user.instance(&second)["state"], "terminated");

    // What it prints, read by others than its daemon; a reboot in the same machine.
    let mut logs = user.follow(&["logs", "--follow", "web"]);
    logs.expect(UP);
    user.follow(&["console", "web"]).expect(UP);
    let machine = user.instance(&id)["pid"].clone();
    user.kiln(&["reboot", "web"]);
    logs.expect(UP);
    assert_eq!(user.instance(&id)["pid"], machine);

    // What only concerns its row reaches its guest through its daemon.
    user.kiln(&["role", "create", "app"]);
    user.kiln(&["role", "attach", "web", "app"]);
    assert_eq!(user.kiln(&["metadata", "web", "meta-data/iam/security-credentials/"]), "app");
    user.kiln(&["metadata", "web", "--set", "instance-metadata-tags=enabled"]);
    user.kiln(&["tag", "web", "colour=red"]);
    assert_eq!(user.kiln(&["metadata", "web", "meta-data/tags/instance/colour"]), "red");

    // The way in: the private address where this host may, the public one otherwise.
    let address = shown["private_ip"].as_str().unwrap();
    let told = user.ssh(&["web", "uname", "-a"]);
    let expected = format!(
        "-o StrictHostKeyChecking=accept-new -o HostKeyAlias={id} -i {private} -p 22 -l root {address} uname -a"
    );
    assert_eq!(told, expected);
    user.kiln(&["sg", "assign", "web", "default"]);
    user.fail(&["ssh", "web"], "kiln sg authorize GROUP --allow tcp:22:host");
    let public = user.kiln(&["address", "allocate"]);
    user.kiln(&["address", "associate", &public, "web"]);
    assert!(user.ssh(&["me@web"]).ends_with(&format!("-l me {public}")));
    assert_eq!(user.instance(&id)["public_ip"], public.as_str());

    // Stopped, it can be changed, and has a volume more when it starts.
    user.fail(&["type", "web", "t3.micro"], "running");
    user.kiln(&["stop", "web"]);
    assert_eq!(user.instance(&id)["state"], "stopped");
    assert!(logs.end().status.success(), "it ends with the machine");
    user.fail(&["ssh", "web"], "is stopped");
    user.kiln(&["type", "web", "t3.micro"]);
    let volume = user.kiln(&["volume", "create", "--size", "1"]);
    user.kiln(&["volume", "resize", &volume, "3"]);
    user.fail(&["volume", "resize", &volume, "2"], "smaller");
    user.fail(&["volume", "attach", &volume, "web"], "/dev/sdf");
    user.kiln(&["volume", "attach", &volume, "web", "--device", "/dev/sdg"]);
    user.fail(&["volume", "rm", &volume], &id);
    user.kiln(&["start", "web"]);
    let shown = user.instance(&id);
    assert_eq!((&shown["state"], &shown["instance_type"]), (&"running".into(), &"t3.micro".into()));
    let rows = user.json(&["volume", "ls"]);
    let row = rows.iter().find(|row| row["id"] == volume.as_str()).unwrap();
    assert_eq!((&row["instance"], &row["device"]), (&id.as_str().into(), &"/dev/sdg".into()));
    assert_eq!(row["bytes"], 3u64 << 30);
    // While it runs, too.
    let other = user.kiln(&["volume", "create", "--size", "1"]);
    user.kiln(&["volume", "attach", &other, "web", "--device", "/dev/sdk"]);
    user.kiln(&["volume", "resize", &other, "2"]);
    let rows = user.json(&["volume", "ls"]);
    assert!(rows.iter().any(|row| row["id"] == other.as_str() && row["bytes"] == 2u64 << 30), "{rows:?}");
    user.kiln(&["volume", "detach", "--force", &other]);
    user.kiln(&["volume", "rm", &other]);

    // What its disks hold is kept while it runs.
    let snapshot = user.kiln(&["snapshot", "create", &volume, "--description", "of data"]);
    until("the snapshot", || user.json(&["snapshot", "ls"])[0]["state"] == "completed");
    let golden = user.kiln(&["image", "create", "web", "golden"]);
    assert!(user.kiln(&["image", "ls"]).contains(&golden));
    user.fail(&["image", "create", "web", "golden"], "InvalidAMIName.Duplicate");
    user.kiln(&["snapshot", "rm", &snapshot]);

    // A machine outlives its daemon, and who needs the daemon is told so.
    user.daemon.kill();
    for args in [&["stop", "web"][..], &["run", "-d", "guest"], &["snapshot", "create", &volume], &["events"]]
    {
        user.fail(args, "kilnd must run to ");
    }
    user.follow(&["console", "web"]).expect(UP);
    user.daemon.start();
    user.kiln(&["stop", "--force", "web"]);
    user.kiln(&["volume", "detach", &volume]);
    user.kiln(&["volume", "rm", &volume]);

    // One of `kiln run` becomes the daemon's.
    let mut run = user.follow(&["run", "guest", "--name", "own", "--keep", "--instance-type", "t3.nano"]);
    run.expect(UP);
    user.kiln(&["stop", "own"]);
    assert!(run.end().status.success());
    user.kiln(&["start", "--detach", "own"]);
    let own = user.json(&["ps"]).into_iter().find(|row| row["name"] == "own").unwrap();
    assert_eq!((&own["state"], &own["supervised"]), (&"running".into(), &true.into()));
    user.kiln(&["terminate", "own", "web"]);

    // All of it was told, by either daemon; the stream ends with the daemon.
    events.expect("\"state\":\"stopped\"");
    let events_text = events.seen.clone();
    let ended = events.end();
    assert!(String::from_utf8_lossy(&ended.stderr).contains("kilnd"), "{ended:?}");
    assert_eq!(
        events_text.matches("\"state\":\"in-use\"").count(),
        4,
        "volumes of two launches: {events_text}"
    );
    // Such as that the role had credentials to give.
    assert!(events_text.contains("\"event\":\"credentials\"") && events_text.contains("\"role\":\"app\""));
    let mut second_events = user.follow(&["events", "--since", "0"]);
    second_events.expect(&format!("instance-adopted instance={id}"));
    second_events.expect("state=terminated");
    assert!(user.daemon.stop().success());
    assert_eq!(second_events.end().status.code(), Some(1));
}
