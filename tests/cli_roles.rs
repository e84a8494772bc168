//! Roles, metadata and identity by the command line, on an instance around a VMM without a machine.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod cli_support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use cli_support::{Bench, disk, fake_vmm, have_kvm};
use serde_json::Value;

#[test]
#[ignore = "is the VMM program of the other tests"]
fn fake_vmm() {
    fake_vmm::play();
}

/// A `kiln run` in the background, ended when dropped.
struct Running<'b> {
    bench: &'b Bench,
    child: Child,
    id: String,
}

impl<'b> Running<'b> {
    fn start(bench: &'b Bench, more: &[&str]) -> Self {
        let image = bench.file("disk.raw", &disk(1));
        let mut args = vec!["run", &image, "--no-network"];
        args.extend(more);
        let mut command = bench.kiln(&args);
        command.env("KILN_VMM", fake_vmm::program(bench, "serve")).env("KILN_ALLOW_SOFTWARE_KVM", "1");
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("guest is up") {
            line.clear();
            assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "the console ended");
        }
        // Somebody has to read what the guest prints.
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        let rows: Value = serde_json::from_str(&bench.succeed(&["ps", "--json"])).unwrap();
        let id = rows[0]["id"].as_str().unwrap().to_owned();
        Running { bench, child, id }
    }

    fn metadata(&self, path: &str) -> String {
        self.bench.succeed(&["metadata", &self.id, path])
    }

    fn document(&self, path: &str) -> Value {
        serde_json::from_str(&self.metadata(path)).unwrap()
    }

    fn end(mut self) {
        self.bench.succeed(&["terminate", &self.id]);
        self.child.wait().unwrap();
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const CREDENTIALS: &str = "meta-data/iam/security-credentials/";

#[test]
fn role_goes_from_creation_over_a_running_instance_to_its_end() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    assert_eq!(bench.succeed(&["role", "create", "web"]), "arn:aws:iam::000000000000:role/web\n");
    bench.succeed(&["role", "create", "db", "--lifetime", "90m", "--description", "reads"]);
    let running = Running::start(&bench, &["--role", "web", "--tag", "colour=blue", "--name", "one"]);
    assert_eq!(running.metadata(CREDENTIALS), "web");
    let set = running.document(&format!("{CREDENTIALS}web"));
    assert_eq!(set["Code"], "Success");
    let secret = set["SecretAccessKey"].as_str().unwrap();

    let shown: Value = serde_json::from_str(&bench.succeed(&["role", "show", "web", "--json"])).unwrap();
    assert_eq!(shown["instances"][0]["id"], running.id);
    let busy = bench.fail(&["role", "rm", "web"]);
    assert!(busy.contains(&format!("{} has the role web", running.id)), "{busy}");
    let twice = bench.fail(&["role", "attach", "one", "db"]);
    assert!(twice.contains("has the role web already"), "{twice}");
    bench.succeed(&["role", "attach", "one", "db", "--replace"]);
    assert_eq!(running.metadata(CREDENTIALS), "db");
    let gone = bench.fail(&["metadata", "one", &format!("{CREDENTIALS}web")]);
    assert!(gone.ends_with("(404)"), "{gone}");
    bench.succeed(&["role", "detach", "one"]);
    bench.fail(&["metadata", "one", "meta-data/iam/"]);
    assert!(bench.fail(&["role", "detach", "one"]).ends_with("has no role"));

    // What was handed out is nowhere on the disk.
    let grep = Command::new("grep").args(["-rqaF", secret]).arg(bench.state_dir()).status().unwrap();
    assert_eq!(grep.code(), Some(1), "the secret is in the state directory");
    running.end();
    bench.succeed(&["role", "rm", "web", "db"]);
    assert_eq!(bench.succeed(&["role", "ls", "--json"]).trim(), "[]");
    bench.assert_no_instance();
}

#[test]
fn options_and_tags_change_while_the_instance_runs() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    let running = Running::start(&bench, &["--tag", "colour=blue"]);
    let tag = ["metadata", &running.id, "meta-data/tags/instance/colour"];
    bench.fail(&tag);
    bench.succeed(&["metadata", &running.id, "--set", "instance-metadata-tags=enabled,hop-limit=3"]);
    assert_eq!(bench.succeed(&tag), "blue");
    bench.succeed(&["tag", &running.id, "colour=red", "a=b=c"]);
    assert_eq!(bench.succeed(&tag), "red");
    assert_eq!(running.metadata("meta-data/tags/instance/a"), "b=c");
    bench.succeed(&["tag", &running.id, "--remove", "colour"]);
    bench.fail(&tag);
    let refused = bench.fail(&["tag", &running.id, "a b=c"]);
    assert!(refused.contains("cannot be shown in instance metadata"), "{refused}");
    assert_eq!(running.metadata("meta-data/tags/instance/"), "a");

    let tree = bench.succeed(&["metadata", &running.id]);
    for path in ["meta-data/instance-id", "dynamic/instance-identity/rsa2048", "meta-data/tags/instance/a"] {
        assert!(tree.lines().any(|line| line == path), "no {path} in {tree}");
    }
    assert!(tree.lines().all(|line| !line.ends_with('/')), "{tree}");
    running.end();
}

#[test]
fn identity_is_checked_with_what_the_command_line_publishes() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    let running = Running::start(&bench, &[]);
    let identity = |name: &str| running.metadata(&format!("dynamic/instance-identity/{name}"));
    let document = bench.file("document", identity("document").as_bytes());
    let certificate = bench.file("certificate", bench.succeed(&["identity", "certificate"]).as_bytes());
    let structure = format!("-----BEGIN PKCS7-----\n{}\n-----END PKCS7-----\n", identity("rsa2048"));
    let structure = bench.file("rsa2048", structure.as_bytes());
    let output = Command::new("openssl")
        .args([
            "smime",
            "-verify",
            "-inform",
            "PEM",
            "-noverify",
            "-in",
            &structure,
            "-certfile",
            &certificate,
        ])
        .output();
    let Ok(output) = output else {
        println!("SKIPPED: no openssl");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, std::fs::read(document).unwrap());
    let keys: Value = serde_json::from_str(&bench.succeed(&["identity", "keys"])).unwrap();
    assert_eq!(keys["keys"][0]["crv"], "P-256");
    running.end();
}

#[test]
fn sources_that_fail_let_the_instance_boot_and_say_why() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    for (name, command, code, why) in [
        ("absent", "/nonexistent/program", "CredentialSourceFailed", "cannot be started"),
        ("failing", "sh -c 'echo no luck >&2; exit 3'", "CredentialSourceFailed", "exit status: 3: no luck"),
        ("rubbish", "echo rubbish", "CredentialSourceFailed", "not JSON"),
        (
            "expired",
            r#"echo '{"Version":1,"AccessKeyId":"A","SecretAccessKey":"s","Expiration":"2020-01-01T00:00:00Z"}'"#,
            "ExpiredCredentials",
            "expired at 2020-01-01T00:00:00Z",
        ),
    ] {
        bench.succeed(&["role", "create", name, "--source", &format!("process:{command}")]);
        let running = Running::start(&bench, &["--role", name]);
        let error = loop {
            let shown: Value =
                serde_json::from_str(&bench.succeed(&["role", "show", name, "--json"])).unwrap();
            let state = shown["instances"][0]["credentials"].clone();
            if state["failures"].as_u64().is_some_and(|failures| failures > 0) {
                break state["error"].as_str().unwrap().to_owned();
            }
        };
        assert!(error.contains(why), "{name}: {error}");
        let document = running.document(&format!("{CREDENTIALS}{name}"));
        assert_eq!(document["Code"], code, "{name}");
        assert!(!document.to_string().contains("luck"), "the host's words stay on the host");
        running.end();
    }
}

#[test]
fn password_of_a_windows_guest_is_found_in_its_console() {
    if !have_kvm() {
        return;
    }
    let bench = Bench::new();
    let log = bench.file("console", b"");
    let running = Running::start(&bench, &["--console-log", &log]);
    let nothing = bench.fail(&["password", &running.id]);
    assert!(nothing.contains("has reported no password"), "{nothing}");
    let report = "2024/05/07 09:12:44Z: Username: Administrator\r\n2024/05/07 09:12:44Z: Password: <Password>\r\n\
                  aGVsbG8=\r\n</Password>\r\n2024/05/07 09:12:44Z: Message: Windows is Ready to use\r\n";
    std::fs::write(&log, report).unwrap();
    assert_eq!(bench.succeed(&["password", &running.id]), "aGVsbG8=\n");
    running.end();
}

#[test]
fn mistakes_are_refused_with_a_remedy_and_change_nothing() {
    let bench = Bench::new();
    let image = bench.file("disk.raw", &disk(1));
    for (args, words) in [
        (&["role", "create", "a b"][..], "is no name for a role"),
        (&["role", "create", "x", "--lifetime", "15m"], "1 to 12 hours"),
        (&["role", "create", "x", "--source", "magic"], "is no credential source"),
        (&["role", "create", "x", "--source", "file:relative"], "must be absolute"),
        (&["role", "create", "x", "--sts-region", "r"], "need --source sts:"),
        (&["role", "create", "x", "--source", "sts:nonsense"], "is not the ARN of a role"),
        (&["role", "show", "x"], "there is no role \"x\""),
        (&["role", "rm", "x"], "there is no role \"x\""),
        (&["role", "attach", "i-00000000000000000", "x"], "there is no instance"),
        (&["metadata", "nobody"], "there is no instance"),
        (&["tag", "nobody", "x"], "KEY=VALUE"),
        (&["run", &image, "--tag", "aws:x=y"], "reserved"),
        (&["run", &image, "--tag", "a=1", "--tag", "a=2"], "given twice"),
        (&["run", &image, "--metadata-options", "hop-limit=65"], "hop-limit"),
    ] {
        let line = bench.fail(args);
        assert!(line.contains(words), "{args:?}: {line}");
    }
    if have_kvm() {
        let mut run = bench.kiln(&["run", &image, "--no-network", "--role", "nobody"]);
        run.env("KILN_VMM", "/bin/true").env("KILN_ALLOW_SOFTWARE_KVM", "1");
        let line = cli_support::refusal(&run.output().unwrap());
        assert!(line.contains("there is no instance profile \"nobody\""), "{line}");
    }
    bench.assert_no_instance();
    assert_eq!(bench.succeed(&["role", "ls", "--json"]).trim(), "[]");
}
