//! Credentials from a program, by the `credential_process` convention of the AWS CLI: it prints one
//! JSON object and exits with 0.

use std::process::Stdio;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use zeroize::Zeroizing;

use super::source::FETCH_PATIENCE;
use super::{CredentialSource, Credentials, Fetch, ParseSourceError, SourceError, Subject, json};
use crate::printable;

/// How much of what a failed program says is kept, for people.
const MAX_WORDS: usize = 4 << 10;

/// The program and its arguments.
pub(super) fn split(command: &str) -> Result<Vec<String>, ParseSourceError> {
    let words = shlex::split(command).ok_or(ParseSourceError::Command("badly quoted"))?;
    if words.first().is_none_or(String::is_empty) {
        return Err(ParseSourceError::Command("empty"));
    }
    Ok(words)
}

/// Runs a program at each fetch. No shell is involved.
pub(super) struct ProcessSource {
    command: String,
}

/// The process group of a running program: it ends with this value, children included.
struct Group(rustix::process::Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // No such group: the program and all its children have ended.
        let _ = rustix::process::kill_process_group(self.0, rustix::process::Signal::KILL);
    }
}

fn failed(detail: impl Into<String>) -> SourceError {
    SourceError::Process { detail: detail.into() }
}

impl ProcessSource {
    pub(super) fn new(command: String) -> Self {
        ProcessSource { command }
    }

    async fn run(&self, subject: &Subject, now: u64) -> Result<Credentials, SourceError> {
        let words = split(&self.command).map_err(|e| failed(e.to_string()))?;
        let (program, arguments) = words.split_first().ok_or_else(|| failed("there is no command"))?;
        let mut child = Command::new(program)
            .args(arguments)
            .env("KILN_ROLE_ARN", &subject.role_arn)
            .env("KILN_INSTANCE_ID", &subject.session_name)
            .env("KILN_DURATION_SECONDS", subject.lifetime.seconds().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(format!("{program} cannot be started: {e}")))?;
        let group = child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
        let group = group.map(Group);
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (out, err) = tokio::join!(bounded(out, json::MAX_BYTES), bounded(err, MAX_WORDS));
            // What was too much is left unread; the program would wait for a reader for ever.
            if out.len() > json::MAX_BYTES {
                return Err(SourceError::Malformed { detail: "more than 64 KiB came".into() });
            }
            let status = child.wait().await.map_err(|e| failed(e.to_string()))?;
            Ok((status, out, err))
        };
        let ended = tokio::time::timeout(FETCH_PATIENCE, work).await;
        drop(group);
        let (status, out, err) = ended.map_err(|_| SourceError::Timeout)??;
        if !status.success() {
            let text = String::from_utf8_lossy(&err);
            let last = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("no message");
            return Err(failed(format!("{program} ended with {status}: {}", printable(last))));
        }
        json::parse(&out, subject, now)
    }
}

/// Everything that comes, but little more than `limit` bytes.
async fn bounded(stream: Option<impl AsyncRead + Unpin>, limit: usize) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::new());
    if let Some(stream) = stream {
        // An error ends the text like its end; it shows in what is made of it.
        let _ = stream.take(limit as u64 + 1).read_to_end(&mut bytes).await;
    }
    bytes
}

impl CredentialSource for ProcessSource {
    fn fetch<'a>(&'a self, subject: &'a Subject, now: u64) -> Fetch<'a> {
        Box::pin(self.run(subject, now))
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::tests::subject;
    use super::*;

    fn fetch(command: &str, paused: bool) -> Result<Credentials, SourceError> {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().start_paused(paused).build().unwrap();
        runtime.block_on(ProcessSource::new(command.to_owned()).run(&subject(), 0))
    }

    #[test]
    fn what_the_program_prints_is_taken() {
        let text = r#"{"Version":1,"AccessKeyId":"'$KILN_INSTANCE_ID'","SecretAccessKey":"s"}"#;
        let set = fetch(&format!("sh -c \"echo '{}'\"", text.replace('"', "\\\"")), false).unwrap();
        assert_eq!(set.access_key_id, "i-0123456789abcdef0");
    }

    #[test]
    fn programs_that_fail_or_talk_rubbish_are_one_clear_error() {
        let error = |command: &str| fetch(command, false).unwrap_err().to_string();
        let text = error("sh -c 'echo first >&2; echo no such user >&2; exit 3'");
        assert_eq!(text, "the credential process failed: sh ended with exit status: 3: no such user");
        assert!(error("/nonexistent/x").contains("/nonexistent/x cannot be started: No such file"));
        assert!(error("echo hello").contains("not JSON"));
        assert!(error("true").contains("not JSON"));
        assert!(error("cat /dev/zero").contains("64 KiB"));
        assert!(error("sh -c 'kill -9 $$'").contains("signal: 9"));
    }

    #[test]
    fn program_that_hangs_is_given_up_with_its_children() {
        let temp = tempfile::tempdir().unwrap();
        let pid = temp.path().join("pid");
        // Time is skipped as soon as everything waits, so the pid may not be written yet.
        let command = format!("sh -c 'sleep 1000 & echo $! > {}; wait'", pid.display());
        assert!(matches!(fetch(&command, true), Err(SourceError::Timeout)));
        if let Some(pid) = std::fs::read_to_string(&pid).ok().and_then(|text| text.trim().parse::<i32>().ok())
        {
            let proc = format!("/proc/{pid}/stat");
            let lives = || std::fs::read_to_string(&proc).is_ok_and(|stat| !stat.contains(") Z "));
            while lives() {
                std::thread::yield_now();
            }
        }
    }
}
