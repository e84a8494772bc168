//! `kiln sg`, `vpc` and `subnet` on a state directory: what is printed, and what is refused.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod cli_support;

use cli_support::Bench;

fn words(bench: &Bench, line: &str) -> String {
    bench.succeed(&line.split(' ').collect::<Vec<_>>())
}

fn refused(bench: &Bench, line: &str) -> String {
    bench.fail(&line.split(' ').collect::<Vec<_>>())
}

#[test]
fn groups_are_made_filled_shown_and_removed() {
    let bench = Bench::new();
    assert!(words(&bench, "sg create web --description for-http").starts_with("sg-0"));
    words(&bench, "sg create ssh");
    let rule =
        words(&bench, "sg authorize ssh --allow tcp:22:web --allow icmp:8:10.0.0.0/8 --description jump");
    assert_eq!(rule.matches("sgr-0").count(), 2);
    let shown = words(&bench, "sg show ssh");
    for part in ["ingress    tcp:22:web", "icmp:8:10.0.0.0/8", "egress     all:0.0.0.0/0", "jump"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let list = words(&bench, "sg ls");
    assert!(list.contains("for-http") && list.contains("default VPC security group"), "{list}");

    // A name, an id of the group and an id of the rule all do.
    let id = rule.lines().next().unwrap();
    words(&bench, &format!("sg revoke ssh --rule {id}"));
    words(&bench, "sg revoke ssh --egress --allow all:0.0.0.0/0");
    assert!(!words(&bench, "sg show ssh").contains("egress"));
    words(&bench, "sg rm web ssh");
    assert_eq!(words(&bench, "sg ls --json").matches("\"owner\"").count(), 1, "the default group stays");
}

#[test]
fn what_cannot_be_is_refused_with_one_line_and_changes_nothing() {
    let bench = Bench::new();
    words(&bench, "sg create web");
    words(&bench, "sg create ssh");
    words(&bench, "sg authorize ssh --allow tcp:22:web");
    words(&bench, "vpc create 10.50.0.0/16 --name blue");
    words(&bench, "subnet create blue 10.50.2.0/24 --name blue-2");
    let before = words(&bench, "sg ls --json");
    for (line, word) in [
        ("sg create web", "exists already"),
        ("sg create sg-web", "taken for ids"),
        ("sg rm web", "in use by a rule of ssh"),
        ("sg rm default", "cannot be deleted"),
        ("sg rm wbe", "did you mean web?"),
        ("sg show nobody", "there is no security group"),
        ("sg authorize ssh --allow tcp:22:web", "exists already in ssh"),
        ("sg authorize ssh --allow tcp:65536:web", "65536 is not a port"),
        ("sg authorize ssh --allow tcp:23-22:web", "wrong way round"),
        ("sg authorize ssh --allow tcp:22:10.0.0.0/33", "not an IPv4 network"),
        ("sg authorize ssh --allow tcp:22:10.0.0.1/8", "did you mean 10.0.0.0/8"),
        ("sg authorize ssh --allow tcp:22:10.0.0.1", "write 10.0.0.1/32"),
        ("sg authorize ssh --allow tcp:22:nobody", "there is no security group \"nobody\""),
        ("sg revoke ssh --allow tcp:23:web", "there is no rule tcp:23:web in ssh"),
        ("sg revoke ssh --rule sgr-00000000000000001", "there is no security group rule"),
        ("sg explain nobody 10.0.0.1 22", "there is no instance"),
        ("vpc create 10.0.0.0/8", "expected /16 to /28"),
        ("vpc create 10.0.0.1/16", "host bits"),
        ("vpc rm blue", "in use by subnet-"),
        ("subnet create blue 10.50.2.128/25", "overlaps"),
        ("subnet create blue 10.51.0.0/24", "inside of 10.50.0.0/16"),
        ("subnet create red 10.51.0.0/24", "there is no VPC \"red\""),
        ("run x --allow tcp", "no peer"),
        ("run x --publish 80", "expected such as 8080:80"),
        ("run x --private-ip 10.50.2", "invalid value"),
        ("run x --no-network --allow all:host", "cannot be used with"),
    ] {
        let told = refused(&bench, line);
        assert!(told.contains(word), "{line}: {told:?} does not say {word:?}");
    }
    assert_eq!(words(&bench, "sg ls --json"), before);
    words(&bench, "subnet rm blue-2");
    words(&bench, "vpc rm blue");
}

#[test]
fn instances_that_cannot_be_placed_are_refused_before_anything_is_made() {
    let bench = Bench::new();
    if !cli_support::have_kvm() {
        return;
    }
    let image = bench.file("disk.raw", &cli_support::disk(1));
    words(&bench, "vpc create 10.50.0.0/16 --name blue");
    words(&bench, "subnet create blue 10.50.2.0/24 --name blue-2");
    for (options, word) in [
        ("--security-group nobody", "there is no security group \"nobody\""),
        ("--subnet nowhere", "there is no subnet \"nowhere\""),
        ("--subnet blue-2 --private-ip 10.50.2.3", "is reserved"),
        ("--subnet blue-2 --private-ip 10.50.2.255", "is reserved"),
        ("--subnet blue-2 --private-ip 10.50.3.4", "is outside of subnet"),
        ("--allow tcp:22:nobody", "there is no security group \"nobody\""),
    ] {
        let mut command = bench.kiln(&["run", &image, "--memory", "64"]);
        let output = command.args(options.split(' ')).env("KILN_ALLOW_SOFTWARE_KVM", "1").output().unwrap();
        let told = cli_support::refusal(&output);
        assert!(told.contains(word), "{options}: {told}");
        bench.assert_no_instance();
    }
}

#[test]
fn network_acls_are_made_filled_given_to_subnets_and_removed() {
    let bench = Bench::new();
    words(&bench, "vpc create 10.50.0.0/16 --name blue");
    words(&bench, "subnet create blue 10.50.2.0/24 --name blue-2");
    assert!(words(&bench, "acl create edge --vpc blue").starts_with("acl-0"));
    words(&bench, "acl add edge 100 allow tcp:22:10.0.0.0/8 --vpc blue");
    words(&bench, "acl add edge 90 deny all:0.0.0.0/0 --egress --vpc blue");
    words(&bench, "acl add edge 91 allow icmpv6:2001:db8::/32 --egress --vpc blue");
    words(&bench, "acl associate edge blue-2 --vpc blue");
    let list = words(&bench, "acl ls");
    for part in
        ["all other subnets", "ingress    100     allow   tcp:22:10.0.0.0/8", "egress     90      deny"]
    {
        assert!(list.contains(part), "{part} is not in {list}");
    }
    let before = words(&bench, "acl ls --json");
    for (line, word) in [
        ("acl add edge 100 allow all:0.0.0.0/0 --vpc blue", "--replace"),
        ("acl add edge 0 allow all:0.0.0.0/0 --vpc blue", "expected 1 to 32766"),
        ("acl add edge 7 allow all:web --vpc blue", "about a range"),
        ("acl add edge 7 permit all:0.0.0.0/0 --vpc blue", "invalid value"),
        ("acl add edge 7 allow all:0.0.0.0/0", "there is no network ACL edge"),
        ("acl remove edge 8 --vpc blue", "has no entry 8"),
        ("acl rm edge --vpc blue", "in use by subnet-"),
        ("acl rm default --vpc blue", "cannot be removed"),
        ("acl create edge --vpc blue", "already"),
    ] {
        let told = refused(&bench, line);
        assert!(told.contains(word), "{line}: {told:?} does not say {word:?}");
    }
    assert_eq!(words(&bench, "acl ls --json"), before);
    words(&bench, "acl add edge 100 deny all:0.0.0.0/0 --replace --vpc blue");
    words(&bench, "acl remove edge 100 --vpc blue");
    words(&bench, "acl associate default blue-2 --vpc blue");
    words(&bench, "acl rm edge --vpc blue");
}

#[test]
fn prefix_lists_stand_for_ranges_in_rules() {
    let bench = Bench::new();
    let id = words(&bench, "prefix-list create offices 10.1.0.0/16 10.2.0.0/16 --max-entries 3");
    let id = id.trim_end();
    words(&bench, "sg create web");
    words(&bench, &format!("sg authorize web --allow tcp:22:{id}"));
    assert!(words(&bench, "sg show web").contains(&format!("tcp:22:{id}")));
    words(&bench, "prefix-list set offices 10.3.0.0/16");
    assert!(words(&bench, "prefix-list ls").contains("10.3.0.0/16"));
    for (line, word) in [
        (
            "prefix-list set offices 10.0.0.0/16 10.1.0.0/16 10.2.0.0/16 10.3.0.0/16",
            "as many as there may be",
        ),
        ("prefix-list set nobody 10.0.0.0/16", "there is no prefix list"),
        ("prefix-list rm offices", "in use by a rule of web"),
        ("sg authorize web --allow tcp:22:pl-00000000000000001", "there is no prefix list"),
    ] {
        let told = refused(&bench, line);
        assert!(told.contains(word), "{line}: {told:?} does not say {word:?}");
    }
    words(&bench, "sg rm web");
    words(&bench, "prefix-list rm offices");
}

#[test]
fn descriptions_of_rules_change_where_they_are() {
    let bench = Bench::new();
    words(&bench, "sg create web");
    let rule = words(&bench, "sg authorize web --allow tcp:80:0.0.0.0/0 --description old");
    words(&bench, &format!("sg describe web {} new", rule.trim_end()));
    let shown = words(&bench, "sg show web");
    assert!(shown.contains("new") && !shown.contains("old") && shown.contains(rule.trim_end()), "{shown}");
}

#[test]
fn elastic_addresses_are_kept_until_given_back() {
    let bench = Bench::new();
    let first = words(&bench, "address allocate");
    let second = words(&bench, "address allocate");
    assert!(first.starts_with("198.19.") && second.starts_with("198.19.") && first != second);
    let list = words(&bench, "address ls");
    assert!(list.contains(first.trim_end()) && list.contains("eipalloc-0"), "{list}");
    for (line, word) in [
        (format!("address associate {} nobody", first.trim_end()), "there is no instance"),
        ("address release 198.19.255.255".to_owned(), "198.19.255.255"),
        ("address disassociate eipalloc-00000000000000001".to_owned(), "eipalloc-00000000000000001"),
    ] {
        let told = refused(&bench, &line);
        assert!(told.contains(word), "{line}: {told:?} does not say {word:?}");
    }
    words(&bench, &format!("address release {}", first.trim_end()));
    assert!(!words(&bench, "address ls").contains(first.trim_end()));
    assert!(words(&bench, "address ls --json").contains(second.trim_end()));
}
