//! A guest that is the kernel of this host: a network namespace whose `eth0` is a [`Link`].

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use kiln_linklocal::Counters;
use kiln_model::MacAddr;
use kiln_vmspec::{LinkLocalIpv6, LinkLocalSpec, MetadataSnapshot};

use crate::link::{Link, MTU};
use crate::programs::{ip, report};

pub const MAC: MacAddr = MacAddr::new([2, 0, 0x0a, 0, 1, 0x0a]);
pub const IMDS: &str = "169.254.169.254";

/// The interface that all tests are about.
pub fn spec() -> LinkLocalSpec {
    LinkLocalSpec {
        private_ipv4: [10, 0, 1, 10].into(),
        prefix_len: 24,
        router: [10, 0, 1, 1].into(),
        router_mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
        dns: vec![[10, 0, 0, 2].into()],
        resolver: Some([10, 0, 0, 2].into()),
        host_name: "ip-10-0-1-10".into(),
        domain_name: "ec2.internal".into(),
        ipv6: None,
    }
}

/// The instance of `instance.json`, which is what the control plane builds.
pub fn metadata() -> MetadataSnapshot {
    let snapshot: MetadataSnapshot = serde_json::from_str(include_str!("instance.json")).unwrap();
    snapshot.check().unwrap();
    snapshot
}

/// A namespace with an interface. Both go away with it.
pub struct Guest {
    pub namespace: String,
    link: Option<Link>,
}

impl Guest {
    /// A guest whose interface is up and has no address; `None`, with a note, where this host cannot.
    pub fn unconfigured(metadata: MetadataSnapshot) -> Option<Self> {
        Self::on(&spec(), metadata)
    }

    /// As [`Guest::unconfigured`], with IPv6.
    pub fn dual_stack(metadata: MetadataSnapshot) -> Option<Self> {
        let ipv6 = LinkLocalIpv6 { address: [0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10].into(), prefix_len: 64 };
        Self::on(&LinkLocalSpec { ipv6: Some(ipv6), ..spec() }, metadata)
    }

    fn on(spec: &LinkLocalSpec, metadata: MetadataSnapshot) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !Link::is_possible() {
            return None;
        }
        let namespace = format!("kll{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &namespace]);
        // `ip netns exec` shows this in place of the host's.
        let etc = format!("/etc/netns/{namespace}");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(format!("{etc}/resolv.conf"), "nameserver 10.0.0.2\nsearch ec2.internal\n").unwrap();
        let mut guest = Guest { namespace, link: None };
        guest.link = Some(Link::start(&guest.namespace, spec, MAC, metadata));
        guest.ip(&["link", "set", "lo", "up"]);
        guest.ip(&["link", "set", "eth0", "address", &MAC.to_string(), "mtu", &MTU.to_string(), "up"]);
        Some(guest)
    }

    /// A guest with its address and its default route.
    pub fn new(metadata: MetadataSnapshot) -> Option<Self> {
        let guest = Self::unconfigured(metadata)?;
        guest.ip(&["address", "add", "10.0.1.10/24", "dev", "eth0"]);
        guest.ip(&["route", "add", "default", "via", "10.0.1.1"]);
        Some(guest)
    }

    /// Runs `ip` on the guest's interfaces.
    pub fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.namespace], arguments].concat());
    }

    /// A program inside the guest, with the directories of `KILN_TEST_CLIENTS` in front of its path.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        // Nothing of this host's own configuration.
        command.env_remove("http_proxy").env_remove("HTTP_PROXY").env("LC_ALL", "C");
        if let Some(extra) = std::env::var_os("KILN_TEST_CLIENTS") {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let mut joined = extra;
            joined.push(":");
            joined.push(path);
            command.env("PATH", joined);
        }
        command
    }

    /// Runs a program inside the guest and gives its standard output, as far as that is text.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", report(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn link(&self) -> &Link {
        self.link.as_ref().unwrap()
    }

    pub fn counters(&self) -> Counters {
        self.link().counters()
    }

    pub fn update_metadata(&self, metadata: MetadataSnapshot) {
        self.link().update_metadata(metadata);
    }

    /// Holds that nothing for the link went to the tap.
    pub fn assert_nothing_leaked(&self) {
        self.link().assert_nothing_leaked();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.link = None;
        ip(&["netns", "delete", &self.namespace]);
        let _ = std::fs::remove_dir_all(format!("/etc/netns/{}", self.namespace));
        let _ = std::fs::remove_dir("/etc/netns");
    }
}
