//! The service on a real store, with a fabric that only remembers.

mod routing;

use std::sync::Mutex;

use kiln_model::security::{AclEntry, Direction, NetworkPolicy, Peer};
use kiln_model::{InstanceId, InterfaceId, VpcId};

use kiln_hostnet::OneToOne;

use super::*;
use crate::state::{SqliteStore, Store, StoreError, transact};

/// Remembers the last policy of all.
#[derive(Default)]
struct Fake(Mutex<NetworkPolicy>);

impl NetworkFabric for Fake {
    fn attach(&self, _: &NicRequest, _: &PolicySource<'_>) -> Result<Attached, FabricError> {
        unreachable!("nothing is launched here")
    }

    fn apply(&self, _: VpcId, policy: &PolicySource<'_>) -> Result<(), FabricError> {
        *self.0.lock().unwrap() = policy().map_err(FabricError)?;
        Ok(())
    }

    fn set_public(
        &self,
        _: InterfaceId,
        _: std::net::Ipv4Addr,
        address: Option<std::net::Ipv4Addr>,
    ) -> Result<Option<std::net::Ipv4Addr>, FabricError> {
        Ok(address)
    }

    fn counters(&self, _: VpcId) -> Result<Counters, FabricError> {
        Ok(Counters::default())
    }

    fn detach(&self, _: InterfaceId) -> Result<(), FabricError> {
        Ok(())
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    store: SqliteStore,
    fabric: Fake,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("kiln.db")).unwrap();
        Bench { _dir: dir, store, fabric: Fake::default() }
    }

    fn networks(&self) -> Networks<'_> {
        Networks { store: &self.store, fabric: &self.fabric, range: "10.50.0.0/16".parse().unwrap() }
    }

    fn vpc(&self) -> VpcId {
        self.networks().default_subnet().unwrap().vpc
    }

    fn group(&self, name: &str) -> SecurityGroup {
        self.networks().create_group(self.vpc(), name, "for a test").unwrap()
    }

    fn place(&self, instance: u64, groups: &[&str], allow: &[&str]) -> Result<Interface, NetworkError> {
        let subnet = self.networks().default_subnet()?;
        let placement = Placement {
            groups: groups.iter().map(ToString::to_string).collect(),
            allow: allow.iter().map(|rule| rule.parse().unwrap()).collect(),
            ..Placement::default()
        };
        let id = InstanceId::from_bits(instance);
        transact(&self.store, |tx| Networks::place_all(tx, &subnet, id, &placement, &[]))
            .map(|(first, _)| first)
    }

    fn policy(&self) -> NetworkPolicy {
        self.fabric.0.lock().unwrap().clone()
    }
}

fn rules(texts: &[&str]) -> Vec<RuleSpec> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn code<T>(result: Result<T, NetworkError>) -> &'static str {
    result.err().map_or("no error", |error| error.code())
}

const IN: Direction = Direction::Ingress;

#[test]
fn new_group_lets_everything_out_and_nothing_in() {
    let bench = Bench::new();
    let group = bench.group("web");
    let shown: Vec<_> = group.rules.iter().map(|rule| format!("{} {rule}", rule.direction)).collect();
    assert_eq!(shown, ["egress all:0.0.0.0/0"]);
    let default = bench.networks().find_group(bench.vpc(), "default").unwrap();
    let shown: Vec<_> = default.rules.iter().map(|rule| format!("{} {rule}", rule.direction)).collect();
    assert_eq!(shown, [format!("ingress all:{}", default.id), "egress all:0.0.0.0/0".into()]);
}

#[test]
fn rules_are_in_force_when_the_call_returns() {
    let bench = Bench::new();
    let group = bench.group("web");
    let added = bench.networks().authorize(group.id, IN, &rules(&["tcp:80:0.0.0.0/0"])).unwrap();
    assert!(bench.policy().groups[&group.id].contains(&added[0]));
    bench.networks().revoke_ids(group.id, &[added[0].id]).unwrap();
    assert!(!bench.policy().groups[&group.id].contains(&added[0]));
}

#[test]
fn modified_rule_keeps_its_id_and_is_in_force() {
    let bench = Bench::new();
    let networks = bench.networks();
    let group = bench.group("web");
    let added = networks.authorize(group.id, IN, &rules(&["tcp:80:0.0.0.0/0", "tcp:81:0.0.0.0/0"])).unwrap();
    let modify = |text: &str| networks.modify_rules(group.id, &[(added[0].id, text.parse().unwrap())]);
    assert_eq!(code(modify("tcp:81:0.0.0.0/0")), "InvalidPermission.Duplicate");
    modify("tcp:80:10.0.0.0/8").unwrap();
    let rule = bench.policy().groups[&group.id].iter().find(|rule| rule.id == added[0].id).cloned().unwrap();
    assert_eq!(format!("{} {rule}", rule.direction), "ingress tcp:80:10.0.0.0/8");
}

#[test]
fn refusals_have_the_codes_of_ec2_and_change_nothing() {
    let bench = Bench::new();
    let networks = bench.networks();
    let (web, ssh) = (bench.group("web"), bench.group("ssh"));
    networks.authorize(web.id, IN, &rules(&["tcp:80:0.0.0.0/0"])).unwrap();
    networks.authorize(ssh.id, IN, &rules(&["tcp:22:web"])).unwrap();
    let before = networks.groups().unwrap();

    let create = |name: &str| code(networks.create_group(bench.vpc(), name, "x"));
    assert_eq!(create("web"), "InvalidGroup.Duplicate");
    assert_eq!(create("default"), "InvalidGroup.Duplicate");
    for name in ["", "sg-web", "a\nb", &"x".repeat(256), "é"] {
        assert_eq!(create(name), "InvalidParameterValue", "{name:?}");
    }
    let authorize = |texts: &[&str]| code(networks.authorize(web.id, IN, &rules(texts)));
    // All or none.
    assert_eq!(authorize(&["tcp:81:0.0.0.0/0", "tcp:80:0.0.0.0/0"]), "InvalidPermission.Duplicate");
    assert_eq!(authorize(&["tcp:81:wbe"]), "InvalidGroup.NotFound");
    assert_eq!(authorize(&["tcp:81:pl-00000000000000001"]), "InvalidPrefixListID.NotFound");
    assert_eq!(code(networks.revoke(web.id, IN, &rules(&["tcp:8:0.0.0.0/0"]))), "InvalidPermission.NotFound");
    assert_eq!(code(networks.delete_group(web.id)), "DependencyViolation", "ssh refers to it");
    let default = networks.find_group(bench.vpc(), "default").unwrap();
    assert_eq!(code(networks.delete_group(default.id)), "CannotDelete");
    assert_eq!(code(networks.find_group(bench.vpc(), "wbe")), "InvalidGroup.NotFound");
    let error = networks.find_group(bench.vpc(), "wbe").unwrap_err().to_string();
    assert!(error.contains("did you mean web?"), "{error}");
    assert_eq!(networks.groups().unwrap(), before);
}

#[test]
fn quotas_end_with_one_clear_error() {
    let bench = Bench::new();
    let networks = bench.networks();
    let group = bench.group("web");
    let many: Vec<_> = (0..MAX_RULES).map(|n| format!("tcp:{n}:0.0.0.0/0")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    networks.authorize(group.id, IN, &rules(&many)).unwrap();
    assert_eq!(
        code(networks.authorize(group.id, IN, &rules(&["udp:1:0.0.0.0/0"]))),
        "RulesPerSecurityGroupLimitExceeded"
    );
    // The other family and the other direction are counted apart.
    networks.authorize(group.id, IN, &rules(&["udp:1:::/0"])).unwrap();
    networks.authorize(group.id, Direction::Egress, &rules(&["udp:1:10.0.0.0/8"])).unwrap();

    let list = networks.create_prefix_list("offices", 61, &["10.0.0.0/8".parse().unwrap()]).unwrap();
    let reference = format!("tcp:1:{}", list.id);
    assert_eq!(
        code(networks.authorize(group.id, Direction::Egress, &rules(&[&reference]))),
        "RulesPerSecurityGroupLimitExceeded",
        "a prefix list counts as all that it may hold"
    );
    for n in 0..6 {
        bench.group(&format!("g{n}"));
    }
    assert_eq!(
        code(bench.place(1, &["g0", "g1", "g2", "g3", "g4", "g5"], &[])),
        "SecurityGroupsPerInterfaceLimitExceeded"
    );
    assert_eq!(
        code(bench.place(1, &["g0", "g1", "g2", "g3", "g4"], &["tcp:22:host"])),
        "SecurityGroupsPerInterfaceLimitExceeded"
    );
    assert!(networks.memberships().unwrap().is_empty());
}

#[test]
fn group_with_members_stays_until_they_are_gone() {
    let bench = Bench::new();
    let group = bench.group("web");
    let interface = bench.place(1, &["web"], &[]).unwrap();
    assert_eq!(code(bench.networks().delete_group(group.id)), "DependencyViolation");
    bench.networks().set_groups(interface.id, &["default".to_owned()]).unwrap();
    bench.networks().delete_group(group.id).unwrap();
    assert_eq!(code(bench.networks().set_groups(interface.id, &["web".into()])), "InvalidGroup.NotFound");
    assert_eq!(
        code(bench.networks().set_groups(interface.id, &[])),
        "SecurityGroupsPerInterfaceLimitExceeded"
    );
}

#[test]
fn rules_of_one_instance_live_and_end_with_it() {
    let bench = Bench::new();
    let interface = bench.place(7, &[], &["tcp:22:10.50.2.133/32"]).unwrap();
    let row = bench.networks().memberships().unwrap().remove(0);
    assert!(!row.host_access, "whoever says what may come in means nothing else");
    let own = *row.groups.first().unwrap();
    assert_eq!(code(bench.place(8, &[&own.to_string()], &[])), "InvalidGroup.InUse");
    assert_eq!(code(bench.networks().delete_group(own)), "InvalidGroup.InUse");
    transact(&bench.store, |tx| Networks::give_back(tx, &interface)).unwrap();
    assert!(bench.networks().groups().unwrap().iter().all(|group| group.id != own));
    assert_eq!(bench.place(9, &[], &[]).unwrap().address, interface.address);
    assert!(bench.networks().memberships().unwrap().remove(0).host_access);
}

#[test]
fn ranges_of_networks_are_checked() {
    let bench = Bench::new();
    let networks = bench.networks();
    let cidr = |text: &str| text.parse().unwrap();
    for range in ["10.0.0.0/15", "10.0.0.0/29"] {
        assert_eq!(code(networks.create_vpc(cidr(range), None, None)), "InvalidVpc.Range");
    }
    let vpc = networks.create_vpc(cidr("10.50.0.0/16"), None, Some("blue")).unwrap();
    let twin = networks.create_vpc(cidr("10.50.0.0/16"), None, Some("green")).unwrap();
    let subnet = networks.create_subnet(vpc.id, cidr("10.50.2.0/24"), None, Some("blue-2")).unwrap();
    networks.create_subnet(twin.id, cidr("10.50.2.0/24"), None, None).unwrap();
    let create = |range: &str| code(networks.create_subnet(vpc.id, cidr(range), None, None));
    assert_eq!(create("10.50.2.128/25"), "InvalidSubnet.Conflict");
    assert_eq!(create("10.50.0.0/16"), "InvalidSubnet.Conflict");
    assert_eq!(create("10.51.0.0/24"), "InvalidSubnet.Range");
    assert_eq!(create("10.50.3.0/29"), "InvalidSubnet.Range");
    assert_eq!(code(networks.delete_vpc(vpc.id)), "DependencyViolation");
    assert_eq!(code(networks.find_vpc(Some("red"))), "InvalidVpcID.NotFound");

    // Groups of one VPC mean nothing in another.
    networks.create_group(twin.id, "web", "x").unwrap();
    let placement =
        Placement { subnet: Some("blue-2".into()), groups: vec!["web".into()], ..Placement::default() };
    let default = networks.default_subnet().unwrap();
    let place = |placement: &Placement| {
        transact(&bench.store, |tx| {
            Networks::place(tx, &default, (InstanceId::from_bits(1), 0), placement, false)
        })
    };
    assert_eq!(code(place(&placement)), "InvalidGroup.NotFound");
    let address = Some([10, 50, 2, 133].into());
    let placed = place(&Placement { groups: vec![], address, ..placement.clone() }).unwrap();
    assert_eq!((placed.address.octets(), placed.subnet.id), ([10, 50, 2, 133], subnet.id));
    assert_eq!(code(networks.delete_subnet("blue-2")), "DependencyViolation");
    assert_eq!(code(place(&Placement { subnet: Some("x".into()), ..placement })), "InvalidSubnetID.NotFound");
    transact(&bench.store, |tx| Networks::give_back(tx, &placed)).unwrap();
    networks.delete_subnet("blue-2").unwrap();
    networks.delete_vpc(vpc.id).unwrap();
    assert_eq!(networks.vpcs().unwrap().len(), 2);
}

#[test]
fn interfaces_of_one_instance_are_in_one_vpc_each_with_its_own_groups() {
    let bench = Bench::new();
    let networks = bench.networks();
    let subnet = networks.default_subnet().unwrap();
    let second = networks.create_subnet(subnet.vpc, "10.50.99.0/24".parse().unwrap(), None, None).unwrap();
    let web = bench.group("web");
    let place = |more: &[Placement]| {
        let (id, primary) = (InstanceId::from_bits(1), Placement::default());
        transact(&bench.store, |tx| Networks::place_all(tx, &subnet, id, &primary, more))
    };
    let there = Placement {
        subnet: Some(second.id.to_string()),
        address: Some([10, 50, 99, 9].into()),
        groups: vec!["web".into()],
        ..Placement::default()
    };
    let (first, others) = place(&[Placement::default(), there.clone()]).unwrap();
    let addresses: Vec<_> = others.iter().map(|own| (own.subnet.id, own.address)).collect();
    assert_eq!(addresses[0].0, first.subnet.id);
    assert_eq!(addresses[1], (second.id, [10, 50, 99, 9].into()));
    let rows = networks.memberships().unwrap();
    let row = rows.iter().find(|row| row.interface.id == others[1].id).unwrap();
    assert_eq!(row.groups, [web.id].into());
    // Something was said, so that is what holds for all of them.
    assert!(rows.iter().all(|row| !row.host_access));
    assert_eq!((row.device, rows.iter().map(|row| row.device).sum::<u32>()), (2, 3));
    let elastic = networks.allocate_address().unwrap().address;
    let (_, moved) = networks.associate_address(elastic, others[1].id, None, false).unwrap();
    assert_eq!(moved, [], "the instance shows the public address of its primary interface");
    let (association, moved) = networks.associate_address(elastic, first.id, None, true).unwrap();
    assert_eq!(moved, [(association.instance.unwrap(), Some(elastic))]);
    assert_eq!(code(place(&[there])), "InvalidIPAddress.InUse");
    assert_eq!(code(place(&vec![Placement::default(); 8])), "AttachmentLimitExceeded");
    assert_eq!(networks.memberships().unwrap().len(), 3, "all of them or none");
    let vpc = networks.create_vpc("10.51.0.0/16".parse().unwrap(), None, None).unwrap();
    let foreign = networks.create_subnet(vpc.id, "10.51.0.0/24".parse().unwrap(), None, None).unwrap();
    let foreign = Placement { subnet: Some(foreign.id.to_string()), ..Placement::default() };
    assert_eq!(code(place(&[foreign])), "InvalidParameterCombination");
}

#[test]
fn ipv6_ranges_and_addresses_are_chosen_or_checked() {
    let bench = Bench::new();
    let networks = bench.networks();
    let cidr = |text: &str| text.parse().unwrap();
    let range = |text: &str| Some(Some(text.parse().unwrap()));
    let create_vpc = |ipv6| networks.create_vpc(cidr("10.50.0.0/16"), ipv6, None);
    assert!(create_vpc(Some(None)).unwrap().ipv6.unwrap().is_unique_local());
    assert_eq!(code(create_vpc(range("fe80::/56"))), "InvalidVpc.Range");
    let vpc = create_vpc(range("2001:db8:31::/56")).unwrap();
    let mut third = 0..;
    let mut create = |ipv6| {
        let cidr = cidr(&format!("10.50.{}.0/24", third.next().unwrap()));
        networks.create_subnet(vpc.id, cidr, ipv6, None)
    };
    let text = |subnet: &Subnet| subnet.ipv6.unwrap().to_string();
    assert_eq!(text(&create(range("2001:db8:31:1::/64")).unwrap()), "2001:db8:31:1::/64");
    let subnet = create(Some(None)).unwrap();
    assert_eq!(text(&subnet), "2001:db8:31::/64");
    assert_eq!(text(&create(Some(None)).unwrap()), "2001:db8:31:2::/64");
    assert_eq!(code(create(range("2001:db8:31:1::/64"))), "InvalidSubnet.Conflict");
    assert_eq!(code(create(range("2001:db8:31::/63"))), "InvalidSubnet.Range");
    assert_eq!(code(create(range("2001:db8:31:100::/64"))), "InvalidSubnet.Range");
    let plain = create(None).unwrap();

    let default = networks.default_subnet().unwrap();
    let place = |subnet: &Subnet, ipv6| {
        let placement = Placement { subnet: Some(subnet.id.to_string()), ipv6, ..Placement::default() };
        transact(&bench.store, |tx| {
            Networks::place(tx, &default, (InstanceId::from_bits(1), 0), &placement, true)
        })
    };
    let at = |address: &str| Ipv6Wish::Address(address.parse().unwrap());
    let first = place(&subnet, Ipv6Wish::Any).unwrap();
    assert_eq!(first.ipv6.unwrap().to_string(), "2001:db8:31::4", "as its IPv4 address");
    assert_eq!(place(&subnet, at("2001:db8:31::5")).unwrap().ipv6, Some("2001:db8:31::5".parse().unwrap()));
    assert_eq!(place(&subnet, Ipv6Wish::None).unwrap().ipv6, None);
    assert_eq!(code(place(&subnet, at("2001:db8:31::5"))), "InvalidIPAddress.InUse");
    for address in ["2001:db8:31::3", "2001:db8:31:1::9", "::1"] {
        assert_eq!(code(place(&subnet, at(address))), "InvalidParameterValue", "{address}");
    }
    assert_eq!(code(place(&plain, Ipv6Wish::Any)), "InvalidParameterValue", "no range");
    transact(&bench.store, |tx| Networks::give_back(tx, &first)).unwrap();
    assert_eq!(place(&subnet, at("2001:db8:31::4")).unwrap().ipv6, first.ipv6);

    networks.apply(vpc.id).unwrap();
    let policy = bench.policy();
    assert!(policy.member_at("2001:db8:31::5".parse().unwrap()).is_some());
    let member = policy.interfaces.values().find(|member| !member.ipv6.is_empty()).unwrap();
    assert_eq!(member.host_ipv6, Some("2001:db8:31::3".parse().unwrap()));
}

#[test]
fn ipv6_that_comes_later_lets_out_what_ipv4_does_unless_somebody_has_changed_that() {
    let bench = Bench::new();
    let networks = bench.networks();
    let vpc = bench.vpc();
    let (open, narrow) = (bench.group("open"), bench.group("narrow"));
    let all_out = "all:0.0.0.0/0".parse().unwrap();
    networks.revoke(narrow.id, Direction::Egress, &[all_out]).unwrap();
    assert_eq!(
        code(networks.add_ipv6_to_subnet(&networks.default_subnet().unwrap().id.to_string(), None)),
        "InvalidParameterValue"
    );
    networks.add_ipv6_to_vpc(vpc, None).unwrap();
    assert_eq!(code(networks.add_ipv6_to_vpc(vpc, None)), "InvalidParameterValue");
    let egress = |id| {
        let group = networks.groups().unwrap().into_iter().find(|group| group.id == id).unwrap();
        let rules = group.rules.iter().filter(|rule| rule.direction == Direction::Egress);
        rules.map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(egress(open.id), ["all:0.0.0.0/0", "all:::/0"]);
    assert_eq!(egress(narrow.id), [""; 0]);
    assert_eq!(egress(bench.group("later").id), ["all:0.0.0.0/0", "all:::/0"]);
    let subnet = networks.default_subnet().unwrap();
    let subnet = networks.add_ipv6_to_subnet(&subnet.id.to_string(), None).unwrap();
    let placement = Placement { ipv6: Ipv6Wish::Any, ..Placement::default() };
    let placed = transact(&bench.store, |tx| {
        Networks::place(tx, &networks.default_subnet()?, (InstanceId::from_bits(1), 0), &placement, true)
    });
    assert!(subnet.ipv6.unwrap().contains(placed.unwrap().ipv6.unwrap()));
}

#[test]
fn group_deleted_while_it_is_put_to_use_is_one_or_the_other() {
    let bench = Bench::new();
    for round in 0..8 {
        let group = bench.group("web");
        let (deleted, placed) = std::thread::scope(|scope| {
            let delete = scope.spawn(|| bench.networks().delete_group(group.id).is_ok());
            let place = scope.spawn(|| bench.place(round, &["web"], &[]).ok());
            (delete.join().unwrap(), place.join().unwrap())
        });
        assert_ne!(deleted, placed.is_some());
        if let Some(interface) = placed {
            transact(&bench.store, |tx| Networks::give_back(tx, &interface)).unwrap();
            bench.networks().delete_group(group.id).unwrap();
        }
    }
    let touches = bench.store.list("touch/").unwrap();
    assert!(touches.iter().all(|entry| !entry.key.contains("sg-")), "{touches:?}");
}

#[test]
fn prefix_list_in_use_is_not_deleted_and_changes_at_once() -> Result<(), StoreError> {
    let bench = Bench::new();
    let networks = bench.networks();
    let list = networks.create_prefix_list("offices", 2, &["10.0.0.0/8".parse().unwrap()]).unwrap();
    let group = bench.group("web");
    networks.authorize(group.id, IN, &rules(&[&format!("tcp:22:{}", list.id)])).unwrap();
    assert_eq!(code(networks.delete_prefix_list(list.id)), "DependencyViolation");
    let ranges = ["10.0.0.0/8", "192.0.2.0/24", "198.51.100.0/24"].map(|range| range.parse().unwrap());
    assert_eq!(code(networks.set_prefix_list(list.id, &ranges)), "PrefixListMaxEntriesExceeded");
    networks.set_prefix_list(list.id, &ranges[..2]).unwrap();
    assert_eq!(bench.policy().prefix_lists[&list.id], ranges[..2]);
    Ok(())
}

#[test]
fn elastic_address_moves_and_stays_when_its_instance_is_gone() {
    let bench = Bench::new();
    let networks = bench.networks();
    let (one, two) = (bench.place(1, &[], &[]).unwrap(), bench.place(2, &[], &[]).unwrap());
    let elastic = networks.allocate_address().unwrap();
    let address = elastic.address;
    let id = |n| InstanceId::from_bits(n);
    let (_, moved) = networks.associate_address(address, one.id, None, false).unwrap();
    assert_eq!(moved, [(id(1), Some(address))]);
    assert_eq!(elastic_of(&bench.store, &one).unwrap().primary, Some(address));
    assert_eq!(code(networks.associate_address(address, two.id, None, false)), "InvalidIPAddress.InUse");
    assert_eq!(code(networks.release_address(address)), "InvalidIPAddress.InUse");
    let (_, moved) = networks.associate_address(address, two.id, None, true).unwrap();
    assert_eq!(moved, [(id(1), None), (id(2), Some(address))]);

    // One interface has one: the other leads to nobody from then on.
    let other = networks.allocate_address().unwrap().address;
    networks.associate_address(other, two.id, None, false).unwrap();
    assert_eq!(networks.find_elastic(&elastic.id.to_string()).unwrap().association, None);
    transact(&bench.store, |tx| Networks::give_back(tx, &two)).unwrap();
    assert_eq!(networks.find_elastic(&other.to_string()).unwrap().association, None);
    assert_eq!(
        code(networks.associate_address(other, two.id, None, false)),
        "InvalidNetworkInterfaceID.NotFound"
    );
    networks.release_address(other).unwrap();
    assert_eq!(code(networks.find_elastic(&other.to_string())), "InvalidAllocationID.NotFound");
    for _ in 0..4 {
        networks.allocate_address().unwrap();
    }
    assert_eq!(code(networks.allocate_address()), "AddressLimitExceeded");
}

#[test]
fn elastic_address_of_a_secondary_address_goes_where_that_goes() {
    let bench = Bench::new();
    let networks = bench.networks();
    let (one, two) = (bench.place(1, &[], &[]).unwrap(), bench.place(2, &[], &[]).unwrap());
    let [first, second] = [(); 2].map(|()| networks.allocate_address().unwrap().address);
    let private = networks.assign_addresses(one.id, &Secondary::Any(1), false).unwrap()[0];
    let of = |interface| elastic_of(&bench.store, interface).unwrap();
    let pair = |private, public| vec![OneToOne { private, public }];
    networks.associate_address(first, one.id, None, false).unwrap();
    let (association, moved) = networks.associate_address(second, one.id, Some(private), false).unwrap();
    assert_eq!(moved, [], "the instance's own public address is that of the primary");
    assert_eq!(association.secondary, Some(private));
    assert_eq!(of(&one), OwnElastic { primary: Some(first), secondary: pair(private, second) });

    // The primary address is none of them, and another's is refused.
    networks.associate_address(first, one.id, Some(one.address), false).unwrap();
    assert_eq!(of(&one).primary, Some(first));
    let foreign = networks.associate_address(second, two.id, Some(private), true);
    assert_eq!(code(foreign), "InvalidParameterValue");
    // Elsewhere on the same interface is elsewhere.
    let to_primary = |reassociate| networks.associate_address(second, one.id, None, reassociate);
    assert_eq!(code(to_primary(false)), "InvalidIPAddress.InUse");

    let assign = |reassign| networks.assign_addresses(two.id, &Secondary::These(vec![private]), reassign);
    assert_eq!(code(assign(false)), "InvalidIPAddress.InUse");
    assert_eq!(assign(true).unwrap(), [private]);
    assert_eq!(of(&one), OwnElastic { primary: Some(first), secondary: Vec::new() });
    assert_eq!(of(&two), OwnElastic { primary: None, secondary: pair(private, second) });
    let now = networks.find_elastic(&second.to_string()).unwrap().association.unwrap();
    assert_eq!((now.id, now.instance), (association.id, Some(InstanceId::from_bits(2))));
    assert_eq!(bench.policy().interfaces[&one.id].addresses, [one.address]);
    // A primary address stays where it is.
    let steal = networks.assign_addresses(two.id, &Secondary::These(vec![one.address]), true);
    assert_eq!(code(steal), "InvalidIPAddress.InUse");

    networks.unassign_addresses(two.id, &[private]).unwrap();
    assert_eq!(networks.find_elastic(&second.to_string()).unwrap().association, None);
    assert_eq!(of(&two), OwnElastic::default());
}

fn acl_entry(number: u16, allow: bool, rule: &str) -> AclEntry {
    let spec: RuleSpec = rule.parse().unwrap();
    let PeerSpec::Known(Peer::Ipv4(range)) = spec.peer else { panic!("{rule}") };
    AclEntry { number, direction: IN, allow, traffic: spec.traffic, range: range.into() }
}

#[test]
fn network_acls_are_in_force_where_they_say_something() {
    let bench = Bench::new();
    let networks = bench.networks();
    let subnet = networks.default_subnet().unwrap();
    let default = networks.default_acl(bench.vpc()).unwrap();
    networks.apply(bench.vpc()).unwrap();
    assert!(bench.policy().subnets.is_empty(), "everything passes");
    let deny = acl_entry(7, false, "tcp:22:0.0.0.0/0");
    networks.set_acl_entry(default.id, &deny, false).unwrap();
    assert_eq!(bench.policy().subnets[&subnet.id].entries.len(), 3);
    // One that is made denies everything until it says otherwise.
    let own = networks.create_acl(bench.vpc(), Some("own"), &mut |_, _| Ok(())).unwrap();
    networks.associate_acl(own.id, &subnet.id.to_string()).unwrap();
    assert_eq!(bench.policy().subnets[&subnet.id].entries, []);
    assert_eq!(code(networks.delete_acl(own.id)), "DependencyViolation");
    networks.associate_acl(default.id, &subnet.id.to_string()).unwrap();
    networks.delete_acl(own.id).unwrap();
    networks.remove_acl_entry(default.id, IN, 7).unwrap();
    assert!(bench.policy().subnets.is_empty());
}

#[test]
fn refused_acl_entries_change_nothing() {
    let bench = Bench::new();
    let networks = bench.networks();
    let acl = networks.create_acl(bench.vpc(), Some("own"), &mut |_, _| Ok(())).unwrap();
    let deny = |number| acl_entry(number, false, "tcp:22:0.0.0.0/0");
    networks.set_acl_entry(acl.id, &deny(5), false).unwrap();
    let before = networks.network_acls().unwrap();
    let set = |entry: &AclEntry, replace| code(networks.set_acl_entry(acl.id, entry, replace));
    assert_eq!(set(&deny(5), false), "NetworkAclEntryAlreadyExists");
    assert_eq!(set(&deny(6), true), "InvalidNetworkAclEntry.NotFound");
    for number in [0, 32767, 65535] {
        assert_eq!(set(&deny(number), false), "InvalidParameterValue");
    }
    assert_eq!(code(networks.remove_acl_entry(acl.id, IN, 9)), "InvalidNetworkAclEntry.NotFound");
    let default = networks.default_acl(bench.vpc()).unwrap();
    assert_eq!(code(networks.delete_acl(default.id)), "InvalidParameterValue");
    assert_eq!(
        code(networks.create_acl(bench.vpc(), Some("own"), &mut |_, _| Ok(()))),
        "InvalidParameterValue"
    );
    assert_eq!(code(networks.associate_acl(acl.id, "nowhere")), "InvalidSubnetID.NotFound");
    assert_eq!(networks.network_acls().unwrap(), before);
    assert_eq!(set(&acl_entry(5, true, "tcp:22:0.0.0.0/0"), true), "no error");
    for number in 6..25 {
        networks.set_acl_entry(acl.id, &deny(number), false).unwrap();
    }
    assert_eq!(set(&deny(30), false), "NetworkAclEntryLimitExceeded");
}

#[test]
fn vpc_goes_with_its_default_acl_and_not_with_others() {
    let bench = Bench::new();
    let networks = bench.networks();
    let vpc = networks.create_vpc("10.9.0.0/16".parse().unwrap(), None, None).unwrap().id;
    let acl = networks.create_acl(vpc, Some("own"), &mut |_, _| Ok(())).unwrap();
    assert_eq!(code(networks.delete_vpc(vpc)), "DependencyViolation");
    networks.delete_acl(acl.id).unwrap();
    networks.delete_vpc(vpc).unwrap();
    assert!(networks.network_acls().unwrap().iter().all(|acl| acl.vpc != vpc));
}

#[test]
fn secondary_addresses_are_taken_and_given_back() {
    let bench = Bench::new();
    let networks = bench.networks();
    let interface = bench.place(1, &[], &[]).unwrap();
    let wanted = std::net::Ipv4Addr::new(10, 50, 0, 77);
    assert_eq!(
        networks.assign_addresses(interface.id, &Secondary::These(vec![wanted]), false).unwrap(),
        [wanted]
    );
    let free = networks.assign_addresses(interface.id, &Secondary::Any(2), false).unwrap();
    let all = [vec![interface.address, wanted], free.clone()].concat();
    assert_eq!(bench.policy().interfaces[&interface.id].addresses, all);
    let assign = |address: [u8; 4]| {
        code(networks.assign_addresses(interface.id, &Secondary::These(vec![address.into()]), false))
    };
    assert_eq!(assign([10, 50, 0, 77]), "InvalidIPAddress.InUse");
    assert_eq!(assign([10, 50, 0, 2]), "InvalidParameterValue");
    assert_eq!(assign([10, 51, 0, 9]), "InvalidParameterValue");
    assert_eq!(
        code(networks.assign_addresses(interface.id, &Secondary::Any(MAX_ADDRESSES), false)),
        "PrivateIpAddressLimitExceeded"
    );
    let unassign = |address| networks.unassign_addresses(interface.id, &[address]);
    assert_eq!(code(unassign(interface.address)), "InvalidParameterValue", "the primary stays");
    unassign(wanted).unwrap();
    assert_eq!(bench.policy().interfaces[&interface.id].addresses.len(), 3);
    // What is left goes with the interface.
    transact(&bench.store, |tx| Networks::give_back(tx, &interface)).unwrap();
    let next = bench.place(2, &[], &[]).unwrap();
    assert_eq!(networks.assign_addresses(next.id, &Secondary::These(free.clone()), false).unwrap(), free);
}

#[test]
fn source_check_and_descriptions_change_in_place() {
    let bench = Bench::new();
    let networks = bench.networks();
    let interface = bench.place(1, &[], &[]).unwrap();
    networks.set_source_dest_check(interface.id, false).unwrap();
    assert!(!bench.policy().interfaces[&interface.id].source_dest_check);
    networks.set_source_dest_check(interface.id, true).unwrap();
    assert!(bench.policy().interfaces[&interface.id].source_dest_check);
    let web = bench.group("web");
    let rule = networks.authorize(web.id, IN, &rules(&["tcp:80:0.0.0.0/0"])).unwrap().remove(0);
    networks.describe_rules(web.id, &[(rule.id, Some("for all".to_owned()))]).unwrap();
    let shown = networks.find_group(bench.vpc(), "web").unwrap();
    let shown = shown.rules.iter().find(|other| other.id == rule.id).unwrap();
    assert_eq!((shown.description.as_deref(), shown.same_meaning(&rule)), (Some("for all"), true));
    let bad = networks.describe_rules(web.id, &[(rule.id, Some("\n".to_owned()))]);
    assert_eq!(code(bad), "InvalidParameterValue");
    let gone = kiln_model::SecurityGroupRuleId::from_bits(9);
    assert_eq!(code(networks.describe_rules(web.id, &[(gone, None)])), "InvalidSecurityGroupRuleId.NotFound");
}
