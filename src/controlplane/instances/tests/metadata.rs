//! What a running instance's metadata follow: roles, rotation, tags, options.

use std::path::Path;

use kiln_model::Tag;
use kiln_vmspec::{HttpTokens, MetadataOptions};
use serde_json::Value;

use super::*;
use crate::credentials::{Issuer, Lifetime, NewRole, SourceSpec};
use crate::instances::MetadataKeeper;
use crate::network::Secondary;

const HOUR: u64 = 3600;
const ROLE: &str = "meta-data/iam/security-credentials/web";

fn role(f: &Fixture, name: &str, source: SourceSpec) {
    let name = name.parse().unwrap();
    let wish = NewRole { name, description: String::new(), source, lifetime: Lifetime::default() };
    f.plane.roles().create_with_profile(&wish).unwrap();
}

fn leaf(snapshot: &MetadataSnapshot, path: &str) -> Option<String> {
    snapshot.leaves.get(path).map(|value| String::from_utf8(value.as_bytes().to_vec()).unwrap())
}

fn document(snapshot: &MetadataSnapshot, path: &str) -> Value {
    serde_json::from_str(&leaf(snapshot, path).unwrap()).unwrap()
}

/// An instance with its keeper at work.
struct Kept<'f> {
    f: &'f Fixture,
    run: RunningInstance,
    runtime: tokio::runtime::Runtime,
}

impl<'f> Kept<'f> {
    fn new(f: &'f Fixture, profile: Option<&str>) -> Self {
        let mut run = f.launch(|r| r.profile = profile.map(|p| p.parse().unwrap())).unwrap();
        // The keeper's looks come at once when there is nothing else to do.
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().start_paused(true).build().unwrap();
        let keeper: MetadataKeeper = run.keeper().unwrap();
        assert!(run.keeper().is_none(), "an instance has one keeper");
        runtime.spawn(keeper.run());
        Kept { f, run, runtime }
    }

    fn id(&self) -> kiln_model::InstanceId {
        self.run.instance().id
    }

    /// The snapshot of the start, or the last one sent since.
    fn metadata(&self) -> MetadataSnapshot {
        self.f.fake.world(|w| w.metadata.last().cloned().unwrap_or_else(|| w.specs[0].metadata.clone()))
    }

    /// Lets the keeper work until `done`.
    #[track_caller]
    fn until(&self, what: &str, done: impl Fn(&MetadataSnapshot) -> bool) -> MetadataSnapshot {
        self.runtime.block_on(async {
            for _ in 0..2000 {
                if done(&self.metadata()) {
                    return self.metadata();
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            panic!("never seen: {what}");
        })
    }

    fn applied(&self) -> bool {
        self.runtime.block_on(self.f.plane.metadata_applied(self.id(), Duration::from_secs(60))).unwrap()
    }

    fn pass(&self, seconds: u64) {
        self.f.clock.0.fetch_add(seconds, Ordering::Relaxed);
    }

    fn key(&self) -> Option<String> {
        leaf(&self.metadata(), ROLE)?;
        document(&self.metadata(), ROLE)["AccessKeyId"].as_str().map(str::to_owned)
    }
}

#[test]
fn credentials_of_the_issuer_are_there_from_the_first_instruction_on_and_hold() {
    let f = Fixture::new();
    role(&f, "web", SourceSpec::Issuer);
    let kept = Kept::new(&f, Some("web"));
    let first = f.fake.world(|w| w.specs[0].metadata.clone());
    let issuer = Issuer::new(f.plane.keys().unwrap());
    for (path, arn) in [
        (ROLE, "assumed-role/web"),
        (
            "meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
            "assumed-role/aws:ec2-instance",
        ),
    ] {
        let set = document(&first, path);
        let text = |name: &str| set[name].as_str().unwrap().to_owned();
        let session = issuer.verify(&text("AccessKeyId"), &text("Token"), 1_700_000_000).unwrap();
        assert_eq!(session.secret_access_key.expose(), &text("SecretAccessKey"));
        assert_eq!(session.principal.arn, format!("arn:aws:sts::000000000000:{arn}/{}", kept.id()));
    }
    let info = document(&first, "meta-data/iam/info");
    assert_eq!(info["InstanceProfileArn"], "arn:aws:iam::000000000000:instance-profile/web");
}

#[test]
fn sets_rotate_an_hour_early_and_the_old_ones_hold_until_they_expire() {
    let f = Fixture::new();
    role(&f, "web", SourceSpec::Issuer);
    let kept = Kept::new(&f, Some("web"));
    let issuer = Issuer::new(f.plane.keys().unwrap());
    let mut generation = kept.metadata().generation;
    for round in 1..=4 {
        let old = document(&kept.metadata(), ROLE);
        let text = |name: &str| old[name].as_str().unwrap().to_owned();
        kept.pass(5 * HOUR);
        let key = text("AccessKeyId");
        let new = kept.until("another set", |s| document(s, ROLE)["AccessKeyId"] != key);
        assert!(new.generation > generation, "round {round}");
        generation = new.generation;
        let now = f.clock.unix_seconds();
        assert!(issuer.verify(&key, &text("Token"), now + HOUR - 1).is_ok(), "the old set still holds");
        assert!(issuer.verify(&key, &text("Token"), now + HOUR).is_err());
        assert_eq!(document(&new, ROLE)["LastUpdated"], kiln_model::Utc::from_unix(now).rfc3339());
    }
    let status = &f.plane.credential_status().unwrap()[0];
    assert_eq!((status.code.as_str(), status.rotations, status.failures), ("Success", 5, 0));
    drop(kept);
    assert!(f.plane.credential_status().unwrap().is_empty(), "the state goes with the instance");
}

#[test]
fn role_is_attached_replaced_and_detached_while_the_instance_runs() {
    let f = Fixture::new();
    role(&f, "web", SourceSpec::Issuer);
    role(&f, "db", SourceSpec::Issuer);
    let kept = Kept::new(&f, None);
    assert_eq!(leaf(&kept.metadata(), "meta-data/iam/info"), None);

    let first = f.plane.associate_profile(kept.id(), "WEB").unwrap();
    assert!(kept.applied());
    assert!(kept.key().is_some());
    let again = f.plane.associate_profile(kept.id(), "db").unwrap_err();
    assert_eq!(again.code(), "IncorrectState");
    assert_eq!(f.plane.find_association(&first.id).unwrap().id, kept.id());

    f.plane.replace_profile(kept.id(), "db").unwrap();
    assert!(kept.applied());
    assert_eq!(kept.key(), None, "the old role's path is gone");
    assert_eq!(document(&kept.metadata(), "meta-data/iam/security-credentials/db")["Code"], "Success");
    assert_eq!(f.plane.find_association(&first.id).unwrap_err().code(), "InvalidAssociationID.NotFound");
    assert_eq!(f.plane.roles().delete_with_profile("db").unwrap_err().code(), "DeleteConflict");

    f.plane.disassociate_profile(kept.id()).unwrap();
    assert!(kept.applied());
    assert!(!kept.metadata().leaves.keys().any(|path| path.starts_with("meta-data/iam/")));
    assert_eq!(f.plane.disassociate_profile(kept.id()).unwrap_err().code(), "IncorrectState");
    f.plane.roles().delete_with_profile("db").unwrap();
    let unknown = f.plane.associate_profile(kept.id(), "db").unwrap_err();
    assert_eq!(unknown.code(), "InvalidParameterValue");
}

#[test]
fn role_taken_out_of_a_profile_is_taken_from_its_instances() {
    let f = Fixture::new();
    role(&f, "web", SourceSpec::Issuer);
    let kept = Kept::new(&f, Some("web"));
    f.plane.roles().remove_from_profile("web", "web").unwrap();
    kept.until("no role", |s| leaf(s, ROLE).is_none());
    f.plane.roles().add_to_profile("web", "web").unwrap();
    kept.until("a role", |s| leaf(s, ROLE).is_some());
}

fn write_set(path: &Path, key: &str, expiration: u64) {
    let end = kiln_model::Utc::from_unix(expiration).rfc3339();
    let text = format!(
        r#"{{"Version":1,"AccessKeyId":"{key}","SecretAccessKey":"s","SessionToken":"t","Expiration":"{end}"}}"#
    );
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(&fresh, path).unwrap();
}

#[test]
fn change_of_a_watched_file_reaches_the_guest() {
    let f = Fixture::new();
    let path = f.temp.path().join("set.json");
    write_set(&path, "AKIAONE", f.clock.unix_seconds() + 6 * HOUR);
    role(&f, "web", SourceSpec::File { path: path.clone() });
    let kept = Kept::new(&f, Some("web"));
    assert_eq!(kept.key().as_deref(), Some("AKIAONE"), "at once");
    for key in ["AKIATWO", "AKIATHREE"] {
        write_set(&path, key, f.clock.unix_seconds() + 6 * HOUR);
        kept.until(key, |s| document(s, ROLE)["AccessKeyId"] == key);
    }
}

#[test]
fn failing_source_boots_with_a_code_and_recovers() {
    let f = Fixture::new();
    let path = f.temp.path().join("set.json");
    role(&f, "web", SourceSpec::File { path: path.clone() });
    let kept = Kept::new(&f, Some("web"));
    assert_eq!(document(&kept.metadata(), ROLE)["Code"], "CredentialSourceFailed");
    kept.until("a status", |_| f.plane.credential_status().unwrap().len() == 1);
    let status = &f.plane.credential_status().unwrap()[0];
    assert!(status.error.as_ref().unwrap().contains("No such file"), "{status:?}");

    write_set(&path, "AKIAOLD", f.clock.unix_seconds() - 1);
    kept.until("expired", |s| document(s, ROLE)["Code"] == "ExpiredCredentials");
    write_set(&path, "AKIAGOOD", f.clock.unix_seconds() + 2 * HOUR);
    kept.until("good", |s| document(s, ROLE)["AccessKeyId"] == "AKIAGOOD");

    // The source dries up: the set serves until its end, and then there is none.
    std::fs::remove_file(&path).unwrap();
    kept.until("trouble", |_| f.plane.credential_status().unwrap()[0].error.is_some());
    kept.pass(2 * HOUR - 1);
    assert_eq!(document(&kept.metadata(), ROLE)["AccessKeyId"], "AKIAGOOD");
    kept.pass(1);
    let snapshot = kept.until("the end", |s| document(s, ROLE)["Code"] != "Success");
    assert!(!leaf(&snapshot, ROLE).unwrap().contains("AKIAGOOD"));
}

#[test]
fn process_that_fails_is_asked_again_and_its_answer_is_published() {
    let f = Fixture::new();
    let (flag, set) = (f.temp.path().join("flag"), f.temp.path().join("set"));
    write_set(&set, "AKIAPROC", f.clock.unix_seconds() + 6 * HOUR);
    let command = format!("sh -c 'test -e {} && cat {}'", flag.display(), set.display());
    role(&f, "web", SourceSpec::Process { command });
    let kept = Kept::new(&f, Some("web"));
    assert_eq!(document(&kept.metadata(), ROLE)["Code"], "CredentialsPending", "boot does not wait");
    kept.until("a failure", |s| document(s, ROLE)["Code"] == "CredentialSourceFailed");
    std::fs::write(&flag, "").unwrap();
    kept.pass(10);
    kept.until("success", |s| document(s, ROLE)["AccessKeyId"] == "AKIAPROC");
}

#[test]
fn tags_and_options_change_under_a_running_guest() {
    let f = Fixture::new();
    let kept = Kept::new(&f, None);
    let path = "meta-data/tags/instance/colour";
    let tag = |key: &str, value: &str| Tag::new(key, value).unwrap();
    let set = |tags: Vec<Tag>| f.plane.change_tags(kept.id(), &TagChange { set: tags, remove: vec![] });
    set(vec![tag("colour", "blue")]).unwrap();
    assert!(kept.applied());
    assert_eq!(leaf(&kept.metadata(), path), None, "not shown unless wanted");

    let shown =
        MetadataOptions { tags_enabled: true, tokens: HttpTokens::Required, ..kept.metadata().options };
    f.plane.modify_metadata_options(kept.id(), shown).unwrap();
    assert!(kept.applied());
    assert_eq!(leaf(&kept.metadata(), path).as_deref(), Some("blue"));
    assert_eq!(kept.metadata().options, shown);

    let refused = set(vec![tag("a b", "x")]).unwrap_err();
    assert_eq!(refused.code(), "InvalidParameterValue");
    set(vec![tag("colour", "red")]).unwrap();
    let change = TagChange { set: vec![], remove: vec!["Name".into(), "nothing".into()] };
    f.plane.change_tags(kept.id(), &change).unwrap();
    assert!(kept.applied());
    assert_eq!(leaf(&kept.metadata(), path).as_deref(), Some("red"));

    let hidden = MetadataOptions { tags_enabled: false, ..shown };
    f.plane.modify_metadata_options(kept.id(), hidden).unwrap();
    set(vec![tag("a b", "x")]).unwrap();
    let refused = f.plane.modify_metadata_options(kept.id(), shown).unwrap_err();
    assert_eq!(refused.code(), "InvalidParameterValue", "such a tag keeps the option off");
    assert_eq!(
        set((0..51).map(|n| tag(&n.to_string(), "")).collect()).unwrap_err().code(),
        "TagLimitExceeded"
    );
}

#[test]
fn nothing_is_sent_while_nothing_changes_for_the_guest() {
    let f = Fixture::new();
    let kept = Kept::new(&f, None);
    // Other instances and rows move the store's revision.
    role(&f, "web", SourceSpec::Issuer);
    f.plane.change_tags(kept.id(), &TagChange::default()).unwrap();
    assert!(kept.applied());
    assert_eq!(f.fake.world(|w| w.metadata.len()), 0);
}

#[test]
fn identity_is_signed_anew_at_each_start() {
    let f = Fixture::new();
    let mut run = f.launch(|r| r.keep = true).unwrap();
    let id = run.instance().id;
    let first = f.fake.world(|w| w.specs[0].metadata.clone());
    drive(&f, &mut run, [running(), VmmEvent::Exited(ExitReason::PowerOff)]);
    run.finish().unwrap();
    f.clock.0.fetch_add(60, Ordering::Relaxed);
    let run = f.plane.start(id).unwrap();
    let second = f.fake.world(|w| w.specs[1].metadata.clone());
    for name in ["document", "signature", "rsa2048", "pkcs7"] {
        let path = format!("dynamic/instance-identity/{name}");
        assert!(leaf(&first, &path).is_some() && leaf(&first, &path) != leaf(&second, &path), "{name}");
    }
    assert!(second.generation > first.generation);
    drop(run);
}

#[test]
fn groups_and_neighbours_of_a_running_instance_show_in_its_metadata() {
    let f = Fixture::new();
    let kept = Kept::new(&f, None);
    let groups = "meta-data/security-groups";
    assert_eq!(leaf(&kept.metadata(), groups).as_deref(), Some("default"));
    let vpc = kept.run.instance().interface.subnet.vpc;
    f.plane.networks().create_group(vpc, "web", "for the test").unwrap();
    let wanted = ["web".to_owned(), "default".to_owned()];
    f.plane.networks().set_groups(kept.run.instance().interface.id, &wanted).unwrap();
    let seen = kept.until("both groups", |s| leaf(s, groups).unwrap().lines().count() == 2);
    assert!(leaf(&seen, groups).unwrap().lines().any(|name| name == "web"));

    let neighbour = f.launch(|_| ()).unwrap();
    let name = crate::metadata::private_host_name(neighbour.instance().interface.address, Some("us-east-1"));
    let seen = kept.until("a neighbour", |s| s.host_names.contains_key(&name));
    assert_eq!(seen.host_names[&name], [std::net::IpAddr::V4(neighbour.instance().interface.address)]);
    drop(neighbour);
    kept.until("no neighbour", |s| !s.host_names.contains_key(&name));
}

#[test]
fn secondary_addresses_and_the_check_are_seen_while_it_runs() {
    let f = Fixture::new();
    let kept = Kept::new(&f, None);
    let interface = kept.run.instance().interface.clone();
    let path = format!("meta-data/network/interfaces/macs/{}/local-ipv4s", interface.mac);
    assert_eq!(leaf(&kept.metadata(), &path), Some(interface.address.to_string()));
    let second =
        f.plane.networks().assign_addresses(interface.id, &Secondary::Any(1), false).unwrap().remove(0);
    let both = format!("{}\n{second}", interface.address);
    let seen = kept.until("both addresses", |m| leaf(m, &path).as_ref() == Some(&both));
    assert!(seen.interfaces[&interface.mac].addresses.contains(&second.into()));
    let networks = f.plane.networks();
    let elastic = networks.allocate_address().unwrap().address;
    networks.associate_address(elastic, interface.id, Some(second), false).unwrap();
    let of = format!("meta-data/network/interfaces/macs/{}/ipv4-associations/{elastic}", interface.mac);
    kept.until("its public address", |m| leaf(m, &of) == Some(second.to_string()));
    f.plane.networks().set_source_dest_check(interface.id, false).unwrap();
    kept.until("no check", |m| !m.interfaces[&interface.mac].source_dest_check);
    f.plane.networks().unassign_addresses(interface.id, &[second]).unwrap();
    let seen = kept.until("one address", |m| leaf(m, &path) == Some(interface.address.to_string()));
    assert_eq!(leaf(&seen, &of), None);
}
