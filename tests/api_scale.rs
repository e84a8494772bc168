//! Many instances and many requests: what an answer costs does not grow with what it is not about, nothing
//! grows with the number of answers, and launches beside each other never hang.
//!
//! The VMM is a stand-in. What is asserted are counts; `scripts/bench api` prints the times.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod api_support;
mod cli_support;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use api_support::wire::{Answer, Endpoint};
use api_support::{Daemon, own_host};
use cli_support::fake_vmm;
use kiln_controlplane::state::{Commit, Outcome, SqliteStore, Store, Write};
use serde_json::Value;

const FIGURES: &str = "KILN_TEST_FIGURES";
/// Rows in one commit.
const BATCH: usize = 2000;
/// Launches beside each other.
const LAUNCHES: usize = 100;

#[test]
#[ignore = "the VMM of the other tests"]
fn fake_vmm() {
    fake_vmm::play();
}

#[test]
fn cost_of_an_answer_is_its_own() {
    own_host::run_inside();
}

#[test]
#[ignore = "a measurement: scripts/bench api"]
fn figures() {
    // The figures of the test inside.
    let text = own_host::run_inside_with(&[(FIGURES, "1")]);
    text.lines().filter(|line| line.starts_with('|')).for_each(|line| println!("{line}"));
}

#[test]
#[ignore = "runs on a host of its own, made by the tests above"]
fn inside() {
    if !own_host::is_inside() {
        return;
    }
    let vmms = cli_support::Bench::new();
    let vmm = fake_vmm::program(&vmms, "serve");
    let mut world = World::new(&vmm);
    if std::env::var_os(FIGURES).is_some() {
        return world.print_figures();
    }
    world.launches_beside_each_other();
    let few = world.costs();
    world.grow(1000);
    let many = world.costs();
    assert_eq!(few, many, "rows read for the same answers with few instances and with many");
    world.pages();
    world.memory(3000);
}

/// A daemon with one stopped instance and, by and by, many copies of it.
struct World {
    daemon: Daemon,
    endpoint: Endpoint,
    instance: String,
    image: String,
    copies: u32,
}

impl World {
    fn new(vmm: &Path) -> Self {
        let daemon = Daemon::new_with(&own_host::variables(vmm));
        let endpoint = Endpoint::of(&daemon);
        let image = daemon.path("disk.raw");
        std::fs::write(&image, cli_support::disk(7)).unwrap();
        let image = endpoint.register(&image);
        let mut world = World { daemon, endpoint, instance: String::new(), image, copies: 0 };
        world.instance = world.launch().all("instanceId").remove(0);
        world.until(|states| states == ["running"]);
        assert_eq!(world.ask(&format!("Action=StopInstances&InstanceId.1={}", world.instance)).status, 200);
        world.until(|states| states == ["stopped"]);
        world
    }

    fn ask(&self, parameters: &str) -> Answer {
        self.endpoint.ask(parameters)
    }

    fn launch(&self) -> Answer {
        // A type with one vCPU, so that some fit.
        let wish = "Action=RunInstances&InstanceType=t2.nano&MinCount=1&MaxCount=1&TagSpecification.1.ResourceType=\
                    instance&TagSpecification.1.Tag.1.Key=kind&TagSpecification.1.Tag.1.Value=test";
        self.ask(&format!("{wish}&ImageId={}", self.image))
    }

    /// Waits until the instances that are not terminated have these states.
    fn until(&self, enough: impl Fn(&[String]) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let answer = self.ask("Action=DescribeInstances");
            let states = answer.all("instanceState").iter().map(|state| name_of(state)).collect::<Vec<_>>();
            let living: Vec<_> = states.into_iter().filter(|state| state != "terminated").collect();
            if enough(&living) {
                return;
            }
            assert!(Instant::now() < deadline, "they are {living:?}");
            // Lets others work; nothing depends on how long.
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Makes it `total` stopped instances: rows with ids and addresses of their own.
    fn grow(&mut self, total: u32) {
        assert!(self.daemon.stop().success());
        let store = SqliteStore::open(&self.daemon.state_dir().join("kiln.db")).unwrap();
        let row = store.read(&format!("instance/{}", self.instance)).unwrap().unwrap();
        let instance: Value = serde_json::from_str(&row.value).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let (interface, volume) = (text(&instance["interface"]["id"]), text(&instance["root"]["id"]));
        let (address, reservation) =
            (text(&instance["interface"]["address"]), text(&instance["reservation"]));
        let membership = store.read(&format!("interface/{interface}")).unwrap().unwrap();
        let disk = store.read(&format!("volume/{volume}")).unwrap().unwrap();
        let mut writes = Vec::new();
        while self.copies + 1 < total {
            self.copies += 1;
            let n = self.copies;
            let id = |old: &str| {
                format!("{}-{:017x}", old.split('-').next().unwrap(), 0x00ff_0000_0000 + u64::from(n))
            };
            let [_, _, c, d] = n.to_be_bytes();
            for entry in [&row, &membership, &disk] {
                let mut copy = format!("{}\n{}", entry.key, entry.value);
                for old in [&self.instance, &interface, &volume, &reservation] {
                    copy = copy.replace(old.as_str(), &id(old));
                }
                let copy = copy.replace(&format!("\"{address}\""), &format!("\"10.77.{c}.{d}\""));
                let (key, value) = copy.split_once('\n').unwrap();
                writes.push(Write { key: key.to_owned(), value: Some(value.to_owned()) });
            }
        }
        for writes in writes.chunks(BATCH) {
            let commit = Commit { checks: Vec::new(), writes: writes.to_vec() };
            assert!(matches!(store.commit(&commit).unwrap(), Outcome::Done(_)));
        }
        drop(store);
        self.daemon.start();
        self.endpoint = Endpoint::of(&self.daemon);
    }

    /// Rows read from the store for some requests, when nothing has changed and when one row has.
    fn costs(&self) -> Vec<(&'static str, [u64; 2])> {
        let id = &self.instance;
        let requests = [
            ("one", format!("Action=DescribeInstances&InstanceId.1={id}")),
            (
                "one by filter",
                format!("Action=DescribeInstances&Filter.1.Name=instance-id&Filter.1.Value.1={id}"),
            ),
            ("all", "Action=DescribeInstances&MaxResults=5".to_owned()),
            ("status", format!("Action=DescribeInstanceStatus&InstanceId.1={id}&IncludeAllInstances=true")),
            ("attribute", format!("Action=DescribeInstanceAttribute&InstanceId={id}&Attribute=groupSet")),
            ("interfaces", "Action=DescribeNetworkInterfaces&MaxResults=5".to_owned()),
            ("volumes", "Action=DescribeVolumes&MaxResults=5".to_owned()),
            ("tags", "Action=DescribeTags&MaxResults=5".to_owned()),
        ];
        let read = |request: &str| {
            let before = self.endpoint.counter("kiln_store_rows_read_total");
            assert_eq!(self.ask(request).status, 200, "{request}");
            self.endpoint.counter("kiln_store_rows_read_total") - before
        };
        let cost = |(name, request): (&'static str, String)| {
            read(&request);
            let again = read(&request);
            // By another process.
            assert!(self.daemon.kiln(&["tag", id, "colour=red"]).status.success());
            read("Action=DescribeTags");
            assert!(self.daemon.kiln(&["tag", id, "colour=blue"]).status.success());
            let changed = read(&request);
            (name, [again, changed])
        };
        let costs: Vec<_> = requests.into_iter().map(cost).collect();
        assert!(costs.iter().all(|(_, [again, changed])| *again <= 1 && *changed <= 3), "{costs:?}");
        let one = self.ask(&format!("Action=DescribeInstances&InstanceId.1={id}"));
        assert!(one.body.contains("blue"), "the change is seen");
        costs
    }

    /// All instances are seen once, page by page, and by the filters that are used most.
    fn pages(&self) {
        let (mut seen, mut token, mut pages) = (BTreeSet::new(), String::new(), 0);
        loop {
            let answer = self.ask(&format!(
                "Action=DescribeInstances&MaxResults=300&Filter.1.Name=instance-state-name&\
                 Filter.1.Value.1=stopped&Filter.2.Name=tag%3Akind&Filter.2.Value.1=te%2A{token}"
            ));
            answer.all("instanceId").into_iter().for_each(|id| assert!(seen.insert(id), "shown twice"));
            pages += 1;
            let Some(next) = answer.all("nextToken").pop() else { break };
            token = format!("&NextToken={next}");
        }
        assert_eq!((seen.len(), pages), (1000, 4));
        let last = seen.last().unwrap();
        let one = self.ask(&format!("Action=DescribeInstances&InstanceId.1={last}"));
        for (filter, value, count) in [
            ("private-ip-address", one.all("privateIpAddress").remove(0), 1),
            ("network-interface.network-interface-id", one.all("networkInterfaceId").remove(0), 1),
            ("subnet-id", one.all("subnetId").remove(0), 1000),
            ("vpc-id", "vpc-0".to_owned(), 0),
            ("instance-id", last.clone(), 1),
            ("instance-id", "i-%2A".to_owned(), 1000),
            ("instance-id", last.to_uppercase(), 0),
        ] {
            let answer = self
                .ask(&format!("Action=DescribeInstances&Filter.1.Name={filter}&Filter.1.Value.1={value}"));
            assert_eq!(answer.all("instanceId").len(), count, "{filter}");
        }
    }

    /// Answers leave nothing behind: small ones next to nothing, however many; long ones what the allocator
    /// keeps of one for each thread, and not one for each answer.
    fn memory(&self, answers: usize) {
        let one = format!("Action=DescribeInstances&InstanceId.1={}", self.instance);
        let (one, all) = (self.endpoint.request(&one), self.endpoint.request("Action=DescribeInstances"));
        let ask = |request: &[u8], count: usize| {
            let mut connection = self.endpoint.connect();
            (0..count).for_each(|_| assert_eq!(connection.exchange(request).status, 200));
        };
        ask(&one, answers / 5);
        let before = self.resident();
        ask(&one, answers);
        let grown = self.resident().saturating_sub(before);
        assert!(grown < 8 << 20, "{answers} answers left {grown} bytes");
        ask(&all, 40);
        assert!(self.resident() < 512 << 20, "{} bytes after 40 long answers", self.resident());
    }

    /// Resident memory of the daemon in bytes.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Each launch gets an instance of its own or is refused for want of room, and what runs can be ended.
    fn launches_beside_each_other(&self) {
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..LAUNCHES).map(|_| scope.spawn(|| self.launch())).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (good, bad): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
        for answer in bad {
            assert_eq!(answer.all("Code"), ["InsufficientInstanceCapacity"], "{}", answer.body);
        }
        let processors = std::thread::available_parallelism().unwrap().get();
        let room = LAUNCHES.min(8 * processors);
        assert!((1..=room).contains(&good.len()), "{} of {LAUNCHES} launches", good.len());
        let unique = |element: &str| -> BTreeSet<String> {
            let all: Vec<_> = good.iter().map(|answer| answer.all(element).remove(0)).collect();
            let set: BTreeSet<_> = all.iter().cloned().collect();
            assert_eq!(set.len(), all.len(), "{element}: {all:?}");
            set
        };
        let ids = unique("instanceId");
        unique("privateIpAddress");
        unique("networkInterfaceId");
        // The stopped one is of before.
        self.until(|states| {
            states.len() == ids.len() + 1 && states.iter().all(|s| s == "running" || s == "stopped")
        });
        let named: String = (1..).zip(&ids).map(|(n, id)| format!("&InstanceId.{n}={id}")).collect();
        assert_eq!(self.ask(&format!("Action=TerminateInstances{named}")).status, 200);
        self.until(|states| states == ["stopped"]);
    }

    fn print_figures(&mut self) {
        println!(
            "| instances | describe one | one by filter | status of one | all, each | 4 clients, one each |"
        );
        println!("|---|---|---|---|---|---|");
        let mut first = None;
        for total in [10, 1000, 10_000] {
            self.grow(total);
            let id = self.instance.clone();
            let time = |request: &str, count: u32| {
                let request = self.endpoint.request(request);
                let mut connection = self.endpoint.connect();
                let mut best = Duration::MAX;
                for round in 0..=5 {
                    let started = Instant::now();
                    (0..count).for_each(|_| assert_eq!(connection.exchange(&request).status, 200));
                    // The first fills what is kept.
                    best = if round == 0 { best } else { best.min(started.elapsed() / count) };
                }
                best.as_secs_f64() * 1e6
            };
            let one = time(&format!("Action=DescribeInstances&InstanceId.1={id}"), 500);
            let filter = time(
                &format!("Action=DescribeInstances&Filter.1.Name=instance-id&Filter.1.Value.1={id}"),
                20,
            );
            let status = time(
                &format!("Action=DescribeInstanceStatus&IncludeAllInstances=true&InstanceId.1={id}"),
                500,
            );
            let all = time("Action=DescribeInstances", 2) / f64::from(total.min(1000));
            let clients = self.together(4, 1000);
            let base = *first.get_or_insert([one, filter, status, all, clients]);
            let shown: Vec<_> = [one, filter, status, all, clients]
                .iter()
                .zip(base)
                .map(|(value, base)| format!("{value:.0} µs ({:.2})", value / base))
                .collect();
            println!("| {total} | {} |", shown.join(" | "));
        }
        let before = self.resident();
        let clients = self.together(4, 12_500);
        let grown = self.resident().saturating_sub(before);
        println!(
            "| 50 000 more | {:.0} in a second | memory {} MiB, {} KiB more | | | |",
            1e6 / clients,
            before >> 20,
            grown >> 10
        );
    }

    /// Microseconds for each answer with so many clients at once.
    fn together(&self, clients: u32, each: u32) -> f64 {
        let request =
            self.endpoint.request(&format!("Action=DescribeInstances&InstanceId.1={}", self.instance));
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..clients {
                scope.spawn(|| {
                    let mut connection = self.endpoint.connect();
                    (0..each).for_each(|_| assert_eq!(connection.exchange(&request).status, 200));
                });
            }
        });
        started.elapsed().as_secs_f64() * 1e6 / f64::from(clients * each)
    }
}

/// The name in an `instanceState`.
fn name_of(state: &str) -> String {
    state.split("<name>").nth(1).unwrap().split('<').next().unwrap().to_owned()
}
