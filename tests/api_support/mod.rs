//! `kilnd` on a state directory and a port of its own, and clients in Python.

#![allow(dead_code, reason = "each test file uses its own part")]

pub mod own_host;
pub mod wire;

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// A running daemon. Ends with its owner.
pub struct Daemon {
    temp: tempfile::TempDir,
    child: Option<Child>,
    variables: Vec<(String, String)>,
}

impl Daemon {
    /// Starts one.
    pub fn new() -> Self {
        Self::new_with(&[])
    }

    /// Starts one with more variables in its environment.
    pub fn new_with(variables: &[(&str, &str)]) -> Self {
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut daemon = Daemon { temp: tempfile::tempdir().unwrap(), child: None, variables };
        daemon.start();
        daemon
    }

    /// Sets one more variable for its next start.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.retain(|(other, _)| other != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    pub fn state_dir(&self) -> PathBuf {
        self.temp.path().join("state")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    pub fn kilnd(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kilnd"));
        command.args(args).env("KILN_STATE_DIR", self.state_dir()).env("KILN_LISTEN", "127.0.0.1:0");
        command.env("RUST_LOG", "info").envs(self.variables.iter().cloned());
        command
    }

    /// Starts it and waits until it says that it serves.
    pub fn start(&mut self) {
        let mut child = self.kilnd(&[]).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        while !text.contains("serving") {
            let before = text.len();
            lines.read_line(&mut text).unwrap();
            assert_ne!(before, text.len(), "kilnd ended: {text}");
        }
        // Read on, or it would wait for us.
        std::thread::spawn(move || {
            let mut log = String::new();
            let _ = lines.read_to_string(&mut log);
            // Shown when the test fails.
            println!("{log}");
        });
        self.child = Some(child);
    }

    /// Tells it to end; answers how it did.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        let mut child = self.child.take().unwrap();
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Ends it without a chance to say so.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn kiln(&self, args: &[&str]) -> Output {
        self.kiln_command(args).output().unwrap()
    }

    /// `kiln` on the same state directory.
    pub fn kiln_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(args).env("KILN_STATE_DIR", self.state_dir()).envs(self.variables.iter().cloned());
        command
    }

    /// What `kiln env` sets.
    pub fn environment(&self) -> Vec<(String, String)> {
        let output = self.kiln(&["env"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let exports = text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        exports.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Runs a script of this directory with the account's key; `false` without a Python with boto3.
    pub fn python(&self, script: &str) -> bool {
        self.python_with(script, &[])
    }

    /// As [`Daemon::python`], with more variables.
    pub fn python_with(&self, script: &str, variables: &[(&str, &str)]) -> bool {
        let Some(mut command) = python(script) else { return false };
        let output = command
            .envs(self.environment())
            .env("KILN_TEST_DIR", self.temp.path())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {text}");
        assert!(output.stdout.ends_with(b"done\n"), "{script} ended early: {text}");
        true
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A script of this directory in a Python that has boto3.
pub fn python(script: &str) -> Option<Command> {
    let Some(python) = std::env::var_os("KILN_TEST_PYTHON") else {
        println!("SKIPPED: no Python with boto3 (KILN_TEST_PYTHON)");
        return None;
    };
    let mut command = Command::new(python);
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api_support");
    command
        .arg(format!("{directory}/{script}"))
        .env("PYTHONPATH", directory)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Some(command)
}
