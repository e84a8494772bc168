//! `kiln events`: what happens, as `kilnd` tells it.

use std::path::Path;

use kiln_controlplane::state::dir::EVENTS;
use kiln_model::Utc;
use serde_json::Value;

use crate::daemon::Daemon;
use crate::error::Failure;
use crate::instance_args::EventsArgs;
use crate::open;

/// Shows events until `kilnd` ends or nobody reads any more.
pub fn events(state_dir: &Path, args: &EventsArgs) -> Result<(), Failure> {
    let daemon = Daemon::need(&open(state_dir)?, "show events")?;
    let mut failed = None;
    let since = args.since.map_or_else(String::new, |number| format!("?since={number}"));
    daemon.follow(&format!("{EVENTS}{since}"), |line| {
        let text = if args.json { line.to_owned() } else { sentence(line) };
        failed = crate::print(&format!("{text}\n")).err();
        failed.is_none()
    })?;
    match failed {
        Some(failure) => Err(failure),
        None => Err(Failure::new("kilnd has ended, or these events were not read fast enough")),
    }
}

/// `2026-11-24T05:16:38Z instance-state instance=i-1 state=running`: a notice for people.
fn sentence(line: &str) -> String {
    let Ok(Value::Object(mut fields)) = serde_json::from_str(line) else {
        return kiln_controlplane::printable(line);
    };
    let time = fields.remove("time").and_then(|time| time.as_u64()).unwrap_or_default();
    let event =
        fields.remove("event").and_then(|event| event.as_str().map(str::to_owned)).unwrap_or_default();
    fields.remove("sequence");
    let rest = fields.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!(" {name}={}", kiln_controlplane::printable(&text))
    });
    format!("{} {event}{}", Utc::from_unix(time).rfc3339(), rest.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_read_as_lines() {
        let line = r#"{"sequence":1,"time":0,"event":"instance-state","instance":"i-1","state":"running","reason":null}"#;
        assert_eq!(sentence(line), "1970-01-01T00:00:00Z instance-state instance=i-1 state=running");
        assert_eq!(sentence("no \u{1b} json"), "no ? json");
    }
}
