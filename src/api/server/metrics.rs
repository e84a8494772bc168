//! Counters in the text format of Prometheus.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kiln_controlplane::instances::{Supervisor, SupervisorError};
use kiln_model::InstanceState;

/// Service, action and code: all of them words of ours, so their number is bounded.
type Key = (&'static str, &'static str, String);

/// What was answered so far.
#[derive(Debug, Default)]
pub(super) struct Metrics(Mutex<BTreeMap<Key, (u64, Duration)>>);

impl Metrics {
    pub(super) fn count(&self, service: &'static str, action: &'static str, code: &str, took: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = all.entry((service, action, code.to_owned())).or_default();
        *entry = (entry.0.saturating_add(1), entry.1.saturating_add(took));
    }

    /// Everything there is to say. Blocks.
    pub(super) fn text(&self, supervisor: &Supervisor) -> Result<String, SupervisorError> {
        let mut text = String::from(
            "# HELP kiln_api_requests_total Requests answered.\n# TYPE kiln_api_requests_total counter\n",
        );
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let labels = |(service, action, code): &Key| {
            format!("{{service=\"{service}\",action=\"{action}\",code=\"{code}\"}}")
        };
        for (key, (count, _)) in &all {
            text.push_str(&format!("kiln_api_requests_total{} {count}\n", labels(key)));
        }
        text.push_str(
            "# HELP kiln_api_request_seconds_total Time spent on them.\n\
             # TYPE kiln_api_request_seconds_total counter\n",
        );
        for (key, (_, took)) in &all {
            text.push_str(&format!("kiln_api_request_seconds_total{} {}\n", labels(key), took.as_secs_f64()));
        }
        let counters = supervisor.counters()?;
        text.push_str("# HELP kiln_instances Instances by state.\n# TYPE kiln_instances gauge\n");
        for (state, count) in InstanceState::ALL.iter().zip(counters.instances) {
            text.push_str(&format!("kiln_instances{{state=\"{state}\"}} {count}\n"));
        }
        for (name, kind, help, value) in [
            ("instance_memory_bytes", "gauge", "Memory of instances with a machine.", counters.memory_bytes),
            ("instance_vcpus", "gauge", "vCPUs of instances with a machine.", counters.vcpus),
            ("launches_total", "counter", "Instances launched.", counters.launches),
            ("starts_total", "counter", "Stopped instances started.", counters.starts),
            (
                "failed_launches_total",
                "counter",
                "Launches and starts that failed.",
                counters.failed_launches,
            ),
            ("refused_total", "counter", "Launches refused for want of room.", counters.refused_for_capacity),
            ("failed_machines_total", "counter", "Machines that failed.", counters.failed_machines),
            ("adopted_total", "counter", "Machines of an earlier daemon taken over.", counters.adopted),
            ("credential_failures", "gauge", "Failed fetches of credentials.", counters.credential_failures),
            ("store_rows_read_total", "counter", "Rows read from the store.", counters.rows_read),
        ] {
            text.push_str(&format!(
                "# HELP kiln_{name} {help}\n# TYPE kiln_{name} {kind}\nkiln_{name} {value}\n"
            ));
        }
        Ok(text)
    }
}
