//! Drives `kiln run` as a person at a terminal does: starts it, reads the console, logs in by SSH.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use super::{Deadline, binary};

/// A key pair and a state directory: what a user has before the first `kiln run`.
pub struct Desk {
    /// State directory of its own.
    pub state: PathBuf,
    dir: tempfile::TempDir,
}

impl Desk {
    /// On the scratch file system.
    pub fn new() -> Self {
        let dir = super::scratch();
        let state = dir.path().join("state");
        let desk = Desk { state, dir };
        let status = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
            .arg(desk.key())
            .status()
            .expect("ssh-keygen");
        assert!(status.success());
        desk
    }

    /// A path in the desk's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn key(&self) -> PathBuf {
        self.path("key")
    }

    /// `kiln` with this desk's state directory.
    pub fn kiln(&self) -> Command {
        let mut command = Command::new(binary("kiln"));
        command.env("KILN_STATE_DIR", &self.state).env("KILN_VMM", binary("kiln-vmm"));
        command
    }

    /// Starts `kiln run` with the desk's key, and whatever else `args` say.
    pub fn run(&self, image: &Path, args: &[&str]) -> Run {
        self.run_in(self, image, args)
    }

    /// The same in the state directory of `other`, with this desk's key.
    pub fn run_in(&self, other: &Desk, image: &Path, args: &[&str]) -> Run {
        let mut command = other.kiln();
        command.arg("run").arg(image).arg("--ssh-key").arg(self.path("key.pub")).args(args);
        Run::spawn(command, self.key())
    }

    /// Writes a file for `--user-data` and the like.
    pub fn write(&self, name: &str, content: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The rows of `kiln ps --json`.
    pub fn instances(&self) -> Vec<serde_json::Value> {
        let output = self.kiln().args(["ps", "--json"]).output().unwrap();
        assert!(output.status.success(), "kiln ps: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The only one.
    pub fn instance(&self) -> serde_json::Value {
        let rows = self.instances();
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows.into_iter().next().unwrap()
    }
}

/// A `kiln run` in the foreground of somebody's terminal. Terminated when dropped.
pub struct Run {
    child: Child,
    key: PathBuf,
    output: Receiver<Vec<u8>>,
    /// All that came out of it: its own words and the guest's console.
    pub console: String,
}

impl Run {
    fn spawn(mut command: Command, key: PathBuf) -> Self {
        let (mut read, write) = std::io::pipe().unwrap();
        command.stdin(Stdio::null()).stdout(write.try_clone().unwrap()).stderr(write);
        let child = command.spawn().unwrap();
        // The command holds write ends of its own.
        drop(command);
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(n @ 1..) = read.read(&mut piece) {
                if sender.send(piece[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Run { child, key, output, console: String::new() }
    }

    /// Another command on the same instance, logging in with the same key.
    pub fn again(&self, command: Command) -> Run {
        Run::spawn(command, self.key.clone())
    }

    /// Process id of `kiln run`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Takes in output; `false` when there will be no more.
    #[track_caller]
    fn read(&mut self, deadline: Deadline, what: &str) -> bool {
        match self.output.recv_timeout(deadline.left(what)) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                print!("{text}");
                let _ = std::io::stdout().flush();
                self.console.push_str(&text);
                true
            }
            Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => panic!("gave up waiting for {what}"),
        }
    }

    /// Waits until `text` has come out.
    #[track_caller]
    pub fn expect(&mut self, text: &str, seconds: u64) {
        self.expect_times(text, 1, seconds);
    }

    /// Waits until `text` has come out `times` times.
    #[track_caller]
    pub fn expect_times(&mut self, text: &str, times: usize, seconds: u64) {
        let deadline = Deadline::after(seconds);
        while self.console.matches(text).count() < times {
            assert!(self.read(deadline, text), "kiln run ended before {text:?} came");
        }
    }

    /// Waits for the end.
    #[track_caller]
    pub fn wait(&mut self, seconds: u64) -> ExitStatus {
        let deadline = Deadline::after(seconds);
        while self.read(deadline, "the end of kiln run") {}
        self.child.wait().unwrap()
    }

    /// Waits for the end and asserts that the guest powered off cleanly.
    #[track_caller]
    pub fn wait_power_off(&mut self, seconds: u64) {
        let status = self.wait(seconds);
        assert_eq!(status.code(), Some(0), "signal {:?}", status.signal());
    }

    /// Runs `script` in the guest as `user` by SSH with the instance's key; returns what it printed.
    #[track_caller]
    pub fn ssh(&mut self, user: &str, address: Ipv4Addr, script: &str) -> String {
        let output = Command::new("ssh")
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-o", "ConnectTimeout=60"])
            // A guest that cannot be reached any more is a failure, not a wait to the end of the lab.
            .args(["-o", "ServerAliveInterval=30", "-o", "ServerAliveCountMax=4", "-i"])
            .arg(&self.key)
            .arg(format!("{user}@{address}"))
            .arg(script)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ssh {script:?}: {} {text} {complaints}", output.status);
        text
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // SIGTERM lets kiln clean up; twice means at once.
        for _ in 0..2 {
            if let Ok(None) = self.child.try_wait() {
                let _ = Command::new("kill").arg(self.child.id().to_string()).status();
                std::thread::sleep(std::time::Duration::from_secs(2));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
