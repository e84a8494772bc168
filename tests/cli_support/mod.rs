//! A state directory of its own and `kiln` on it.

#![allow(dead_code, reason = "each test file uses its own part")]

pub mod fake_vmm;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Size of the smallest image used here.
pub const MIB: usize = 1 << 20;

/// The program under test. Inside the lab it is not where it was built.
fn kiln() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_kiln"));
    std::env::var_os("KILN_BIN_DIR").map_or_else(built, |dir| PathBuf::from(dir).join("kiln"))
}

/// A temporary folder with a state directory in it. Everything goes with it.
pub struct Bench {
    temp: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Bench { temp: tempfile::tempdir().unwrap() }
    }

    pub fn state_dir(&self) -> PathBuf {
        self.temp.path().join("state")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Writes a file; answers its path as an argument.
    pub fn file(&self, name: &str, contents: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, contents).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// `kiln` with these arguments on the state directory of this bench.
    pub fn kiln(&self, args: &[&str]) -> Command {
        let mut command = Command::new(kiln());
        command.args(args).env("KILN_STATE_DIR", self.state_dir()).current_dir(self.temp.path());
        // The surroundings of the test must not change what is seen.
        for name in ["RUST_LOG", "KILN_VMM", "KILN_ALLOW_SOFTWARE_KVM"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs it to its end.
    pub fn output(&self, args: &[&str]) -> Output {
        self.kiln(args).output().unwrap()
    }

    /// Runs it, which must succeed; answers what it printed.
    pub fn succeed(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it, which must fail with one line on standard error; answers the line.
    pub fn fail(&self, args: &[&str]) -> String {
        refusal(&self.output(args))
    }

    /// Asserts that no instance left anything.
    pub fn assert_no_instance(&self) {
        let entries = |sub: &str| -> Vec<PathBuf> {
            let dir = std::fs::read_dir(self.state_dir().join(sub));
            dir.into_iter().flatten().map(|e| e.unwrap().path()).collect()
        };
        assert_eq!(entries("instances"), Vec::<PathBuf>::new());
        let locks: Vec<_> = entries("run").into_iter().filter(|p| !p.ends_with("images.lock")).collect();
        assert_eq!(locks, Vec::<PathBuf>::new());
        assert_eq!(self.succeed(&["ps", "--json"]).trim(), "[]");
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The one line of a failed run, without `kiln: `.
pub fn refusal(output: &Output) -> String {
    let text = stderr(output);
    assert!(!output.status.success(), "it succeeded: {text}");
    let line = text.strip_prefix("kiln: ").unwrap_or_else(|| panic!("not an error line: {text:?}"));
    assert_eq!(line.matches('\n').count(), 1, "more than one line: {text}");
    assert!(line.len() > 10 && line.ends_with('\n'), "{text:?}");
    line.trim_end().to_owned()
}

/// Whether a machine can be asked for at all here; prints why not.
pub fn have_kvm() -> bool {
    let open = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(e) = &open {
        println!("SKIPPED: /dev/kvm: {e}");
    }
    open.is_ok()
}

/// An image that `kiln` accepts as a disk.
pub fn disk(fill: u8) -> Vec<u8> {
    vec![fill; MIB]
}

pub fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}
