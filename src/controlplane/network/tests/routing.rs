//! Route tables, gateways, and interfaces by themselves.

use std::net::Ipv4Addr;

use kiln_model::security::{Route, TableNumber, Way};
use kiln_model::{InternetGatewayId, Ipv4Cidr, RouteTableId, SubnetId};

use super::*;

const NOTHING: fn(&mut crate::state::Transaction<'_>, &str) -> Result<(), StoreError> = |_, _| Ok(());

impl Bench {
    /// A VPC as the API makes it, with a subnet.
    fn closed(&self) -> (VpcId, SubnetId) {
        let networks = self.networks();
        let vpc = networks.create_closed_vpc("10.60.0.0/16".parse().unwrap(), None, None).unwrap().id;
        let subnet = networks.create_subnet(vpc, "10.60.1.0/24".parse().unwrap(), None, None).unwrap().id;
        (vpc, subnet)
    }

    fn main_table(&self, vpc: VpcId) -> RouteTableId {
        let tables = self.networks().route_tables().unwrap();
        tables.main.iter().find(|main| main.vpc == vpc).unwrap().table
    }

    fn gateway(&self, vpc: VpcId) -> InternetGatewayId {
        let networks = self.networks();
        let id = networks.create_internet_gateway(&mut { NOTHING }).unwrap().id;
        networks.attach_internet_gateway(id, vpc).unwrap();
        id
    }

    /// The only way of a subnet, as the fabric was told last.
    fn way(&self, subnet: SubnetId) -> Option<Way> {
        let policy = self.policy();
        let table = policy.routing.get(&subnet)?.table;
        match policy.tables.get(&table)?.as_slice() {
            [Route { way, .. }] => Some(*way),
            [] => Some(Way::Nowhere),
            more => panic!("{more:?}"),
        }
    }
}

fn anywhere(target: RouteTarget) -> TableRoute {
    TableRoute { destination: Ipv4Cidr::ANYWHERE, target }
}

#[test]
fn default_vpc_is_open_to_everybody_and_one_of_the_api_to_nobody() {
    let bench = Bench::new();
    let networks = bench.networks();
    let default = networks.default_subnet().unwrap();
    networks.apply(default.vpc).unwrap();
    assert_eq!(bench.policy().routing, [].into(), "no table is asked");
    let tables = networks.route_tables().unwrap();
    let gateways = networks.internet_gateways().unwrap();
    assert_eq!(tables.tables[0].routes, [anywhere(RouteTarget::Gateway(gateways[0].id))]);
    let (vpc, subnet) = bench.closed();
    networks.apply(vpc).unwrap();
    assert_eq!(bench.way(subnet), Some(Way::Nowhere));
}

#[test]
fn vpc_of_an_older_release_gets_its_main_table_when_it_is_looked_at() {
    let bench = Bench::new();
    let vpc = bench.vpc();
    let table = bench.main_table(vpc);
    transact(&bench.store, |tx| {
        tx.remove::<MainTable>(&vpc);
        tx.remove::<RouteTable>(&table);
        tx.remove::<InternetGateway>(&InternetGatewayId::from_bits(vpc.low_bits()));
        Ok::<_, StoreError>(())
    })
    .unwrap();
    bench.networks().apply(vpc).unwrap();
    assert_eq!(bench.policy().routing, [].into());
    assert_eq!(bench.main_table(vpc), table);
    assert_eq!(bench.networks().internet_gateways().unwrap().len(), 1);
}

#[test]
fn ways_follow_routes_associations_and_targets() {
    let bench = Bench::new();
    let networks = bench.networks();
    let (vpc, subnet) = bench.closed();
    let (main, gateway) = (bench.main_table(vpc), bench.gateway(vpc));
    networks.set_route(main, anywhere(RouteTarget::Gateway(gateway)), false).unwrap();
    assert_eq!(bench.way(subnet), Some(Way::Internet));
    // A table of its own, which knows nothing.
    let own = networks.create_route_table(vpc, &mut { NOTHING }).unwrap();
    assert_eq!(own.number, TableNumber(2));
    let association = networks.associate_route_table(own.id, subnet).unwrap();
    assert_eq!(networks.associate_route_table(own.id, subnet).unwrap(), association, "the same again");
    assert_eq!(code(networks.associate_route_table(main, subnet)), "Resource.AlreadyAssociated");
    assert_eq!(bench.way(subnet), Some(Way::Nowhere));
    // A NAT gateway reaches the world as its own subnet does.
    let outer = networks.create_subnet(vpc, "10.60.2.0/24".parse().unwrap(), None, None).unwrap().id;
    let elastic = networks.allocate_address().unwrap();
    let nat = networks.create_nat_gateway(outer, elastic.id, None, 7, &mut { NOTHING }).unwrap();
    networks.set_route(own.id, anywhere(RouteTarget::Nat(nat.id)), false).unwrap();
    let by_nat = Way::Nat { gateway: nat.id, address: elastic.address };
    assert_eq!(bench.way(subnet), Some(by_nat));
    networks.remove_route(main, Ipv4Cidr::ANYWHERE).unwrap();
    assert_eq!(bench.way(subnet), Some(Way::Nowhere), "the NAT gateway's own way is gone");
    networks.set_route(main, anywhere(RouteTarget::Gateway(gateway)), false).unwrap();
    assert_eq!(bench.way(subnet), Some(by_nat));
    // What is in use stays.
    assert_eq!(code(networks.release_address(elastic.address)), "InvalidIPAddress.InUse");
    assert_eq!(code(networks.disassociate_address(elastic.address)), "InvalidIPAddress.InUse");
    assert_eq!(code(networks.delete_subnet(&outer.to_string())), "DependencyViolation");
    assert_eq!(code(networks.detach_internet_gateway(gateway, vpc)), "DependencyViolation");
    assert_eq!(code(networks.delete_internet_gateway(gateway)), "DependencyViolation");
    assert_eq!(code(networks.delete_route_table(own.id)), "DependencyViolation");
    assert_eq!(code(networks.delete_route_table(main)), "DependencyViolation");
    networks.delete_nat_gateway(nat.id).unwrap();
    assert_eq!(bench.way(subnet), Some(Way::Nowhere), "a black hole");
    networks.release_address(elastic.address).unwrap();
    // By another table, and by the main one again.
    let moved = networks.replace_table_association(association, main).unwrap();
    assert_eq!(bench.way(subnet), Some(Way::Internet));
    networks.detach_internet_gateway(gateway, vpc).unwrap();
    assert_eq!(bench.way(subnet), Some(Way::Nowhere), "a gateway that is not attached");
    networks.disassociate_route_table(moved).unwrap();
    assert_eq!(code(networks.disassociate_route_table(moved)), "InvalidAssociationID.NotFound");
    let of_main = networks.route_tables().unwrap().main.iter().find(|m| m.vpc == vpc).unwrap().id;
    assert_eq!(code(networks.disassociate_route_table(of_main)), "InvalidParameterValue");
    networks.replace_table_association(of_main, own.id).unwrap();
    assert_eq!(bench.main_table(vpc), own.id);
    networks.delete_route_table(main).unwrap();
}

#[test]
fn routes_that_cannot_be_are_refused_and_change_nothing() {
    let bench = Bench::new();
    let networks = bench.networks();
    let (vpc, subnet) = bench.closed();
    let (main, gateway) = (bench.main_table(vpc), bench.gateway(vpc));
    let foreign = networks.internet_gateways().unwrap().into_iter().find(|g| g.open).map(|g| g.id);
    let foreign = foreign.unwrap_or_else(|| {
        bench.vpc();
        networks.internet_gateways().unwrap().into_iter().find(|g| g.open).unwrap().id
    });
    let route = |range: &str, target| TableRoute { destination: range.parse().unwrap(), target };
    let own = RouteTarget::Gateway(gateway);
    let set = |route, replace| code(networks.set_route(main, route, replace));
    assert_eq!(set(route("10.60.0.0/16", own), false), "InvalidParameterValue", "local");
    assert_eq!(set(route("10.60.1.0/24", own), false), "InvalidParameterValue", "inside of local");
    assert_eq!(set(route("0.0.0.0/0", own), true), "InvalidRoute.NotFound");
    assert_eq!(set(route("0.0.0.0/0", RouteTarget::Gateway(foreign)), false), "InvalidParameterValue");
    let nat = kiln_model::NatGatewayId::from_bits(1);
    assert_eq!(set(route("0.0.0.0/0", RouteTarget::Nat(nat)), false), "NatGatewayNotFound");
    let interface = RouteTarget::Interface(InterfaceId::from_bits(1));
    assert_eq!(set(route("0.0.0.0/0", interface), false), "InvalidNetworkInterfaceID.NotFound");
    assert_eq!(code(networks.remove_route(main, Ipv4Cidr::ANYWHERE)), "InvalidRoute.NotFound");
    assert_eq!(code(networks.remove_route(main, "10.60.0.0/16".parse().unwrap())), "InvalidParameterValue");
    let nobody = RouteTableId::from_bits(1);
    assert_eq!(code(networks.set_route(nobody, anywhere(own), false)), "InvalidRouteTableID.NotFound");
    assert_eq!(code(networks.associate_route_table(nobody, subnet)), "InvalidRouteTableID.NotFound");
    let default = networks.default_subnet().unwrap().id;
    assert_eq!(code(networks.associate_route_table(main, default)), "InvalidParameterValue", "another VPC");
    networks.set_route(main, anywhere(own), false).unwrap();
    assert_eq!(set(anywhere(own), false), "RouteAlreadyExists");
    for n in 1..50 {
        networks.set_route(main, route(&format!("{n}.0.0.0/8"), own), n == 10).unwrap_or_else(|error| {
            // 10.0.0.0/8 is wider than the VPC's range, so it may be, but is not there to be replaced.
            assert_eq!((n, error.code()), (10, "InvalidRoute.NotFound"));
            networks.set_route(main, route("10.0.0.0/8", own), false).unwrap();
        });
    }
    assert_eq!(set(route("77.0.0.0/8", own), false), "RouteLimitExceeded");
    assert_eq!(
        networks.route_tables().unwrap().tables.iter().find(|t| t.id == main).unwrap().routes.len(),
        50
    );
    assert_eq!(code(networks.attach_internet_gateway(gateway, bench.vpc())), "Resource.AlreadyAssociated");
    let second = networks.create_internet_gateway(&mut { NOTHING }).unwrap().id;
    assert_eq!(code(networks.attach_internet_gateway(second, vpc)), "Resource.AlreadyAssociated");
    assert_eq!(code(networks.detach_internet_gateway(second, vpc)), "Gateway.NotAttached");
}

#[test]
fn vpc_goes_when_nothing_of_its_own_is_left() {
    let bench = Bench::new();
    let networks = bench.networks();
    let (vpc, subnet) = bench.closed();
    let gateway = bench.gateway(vpc);
    networks.delete_subnet(&subnet.to_string()).unwrap();
    assert_eq!(code(networks.delete_vpc(vpc)), "DependencyViolation", "the gateway");
    networks.detach_internet_gateway(gateway, vpc).unwrap();
    let table = networks.create_route_table(vpc, &mut { NOTHING }).unwrap().id;
    assert_eq!(code(networks.delete_vpc(vpc)), "DependencyViolation", "the table");
    networks.delete_route_table(table).unwrap();
    networks.delete_vpc(vpc).unwrap();
    networks.delete_internet_gateway(gateway).unwrap();
    // One with a gateway from the start takes that along.
    let open = networks.create_vpc("10.61.0.0/16".parse().unwrap(), None, None).unwrap().id;
    networks.delete_vpc(open).unwrap();
    assert_eq!(networks.internet_gateways().unwrap(), []);
    assert!(networks.route_tables().unwrap().tables.is_empty());
}

#[test]
fn elastic_address_needs_a_gateway() {
    let bench = Bench::new();
    let networks = bench.networks();
    let (vpc, subnet) = bench.closed();
    let placement = Placement { subnet: Some(subnet.to_string()), ..Placement::default() };
    let own = networks.create_interface(&placement, &mut { NOTHING }).unwrap().interface;
    let address = networks.allocate_address().unwrap();
    let associate = || networks.associate_address(address.address, own.id, None, true).map(|_| ());
    assert_eq!(code(associate()), "Gateway.NotAttached");
    let nat = networks.create_nat_gateway(subnet, address.id, None, 7, &mut { NOTHING });
    assert_eq!(code(nat), "Gateway.NotAttached");
    let gateway = bench.gateway(vpc);
    associate().unwrap();
    assert_eq!(code(networks.detach_internet_gateway(gateway, vpc)), "DependencyViolation");
    let nat = networks.create_nat_gateway(subnet, address.id, None, 7, &mut { NOTHING });
    assert_eq!(code(nat), "InvalidIPAddress.InUse");
    networks.delete_interface(own.id).unwrap();
    assert_eq!(networks.find_elastic(&address.id.to_string()).unwrap().association, None);
}

#[test]
fn interface_by_itself_is_given_to_an_instance_and_comes_back() {
    let bench = Bench::new();
    let networks = bench.networks();
    let subnet = networks.default_subnet().unwrap();
    let address: Ipv4Addr = "10.50.0.40".parse().unwrap();
    let wanted = Placement { secondary: Secondary::These(vec![address]), ..Placement::default() };
    let made = networks.create_interface(&wanted, &mut { NOTHING }).unwrap();
    assert_eq!((made.instance, made.secondary.as_slice()), (None, &[address][..]));
    networks.apply(subnet.vpc).unwrap();
    assert!(bench.policy().interfaces.contains_key(&made.interface.id));
    let launch = |n, stays| {
        let placement = Placement { interface: Some(made.interface.id), stays, ..Placement::default() };
        let id = InstanceId::from_bits(n);
        transact(&bench.store, |tx| Networks::place_all(tx, &subnet, id, &placement, &[]))
    };
    let (own, _) = launch(1, true).unwrap();
    assert_eq!(own, made.interface);
    assert_eq!(code(launch(2, true)), "InvalidNetworkInterface.InUse");
    assert_eq!(code(networks.delete_interface(own.id)), "InvalidNetworkInterface.InUse");
    let give_back = || transact(&bench.store, |tx| Networks::give_back(tx, &own)).unwrap();
    give_back();
    assert_eq!(networks.memberships().unwrap()[0].instance, None);
    launch(3, false).unwrap();
    give_back();
    assert!(networks.memberships().unwrap().is_empty(), "it went with its instance");
    let again = networks.create_interface(&wanted, &mut { NOTHING }).unwrap();
    networks.delete_interface(again.interface.id).unwrap();
    assert_eq!(code(networks.delete_interface(again.interface.id)), "InvalidNetworkInterfaceID.NotFound");
}

#[test]
fn route_through_an_interface_needs_it_to_forward() {
    let bench = Bench::new();
    let networks = bench.networks();
    let (vpc, subnet) = bench.closed();
    let placement = Placement { subnet: Some(subnet.to_string()), ..Placement::default() };
    let own = networks.create_interface(&placement, &mut { NOTHING }).unwrap().interface.id;
    networks.set_route(bench.main_table(vpc), anywhere(RouteTarget::Interface(own)), false).unwrap();
    assert_eq!(bench.way(subnet), Some(Way::Nowhere));
    networks.set_source_dest_check(own, false).unwrap();
    assert_eq!(bench.way(subnet), Some(Way::Interface(own)));
    networks.delete_interface(own).unwrap();
    assert_eq!(bench.way(subnet), Some(Way::Nowhere), "a black hole");
}

#[test]
fn prefix_list_changes_by_its_version() {
    let bench = Bench::new();
    let networks = bench.networks();
    let entry = |range: &str, text: Option<&str>| PrefixListEntry {
        range: range.parse().unwrap(),
        description: text.map(str::to_owned),
    };
    let first = [entry("10.0.0.0/8", Some("inside"))];
    let list = networks.create_described_prefix_list("office", 2, &first, &mut { NOTHING }).unwrap();
    let change = |version, add: &[PrefixListEntry], remove: &[&str]| {
        let remove = remove.iter().map(|range| range.parse().unwrap()).collect();
        let change = PrefixListChange {
            version: Some(version),
            add: add.to_vec(),
            remove,
            ..PrefixListChange::default()
        };
        networks.change_prefix_list(list.id, &change)
    };
    let second = [entry("11.0.0.0/8", None)];
    assert_eq!(code(change(9, &second, &[])), "PrefixListVersionMismatch");
    assert_eq!(code(change(1, &[], &["12.0.0.0/8"])), "InvalidParameterValue");
    let three = [second[0].clone(), entry("12.0.0.0/8", None)];
    assert_eq!(code(change(1, &three, &[])), "PrefixListMaxEntriesExceeded");
    let changed = change(1, &second, &["10.0.0.0/8"]).unwrap();
    assert_eq!((changed.version, changed.ranges.len(), changed.descriptions.len()), (2, 1, 0));
    networks.apply(bench.vpc()).unwrap();
    assert_eq!(bench.policy().prefix_lists[&list.id], changed.ranges);
}

#[test]
fn entry_of_an_acl_reads_back_as_it_was_written_and_as_of_before_there_was_ipv6() {
    let all = [AclEntry::all_pass(), AclEntry::all_pass_ipv6()].concat();
    let text = serde_json::to_string(&all).unwrap();
    assert!(text.contains("\"range\":\"0.0.0.0/0\"") && text.contains("\"range\":\"::/0\""), "{text}");
    assert_eq!(serde_json::from_str::<Vec<AclEntry>>(&text).unwrap(), all);
}

#[test]
fn default_acl_lets_ipv6_pass_in_a_vpc_that_has_it() {
    let bench = Bench::new();
    let networks = bench.networks();
    let (vpc, _) = bench.closed();
    let acl = networks.default_acl(vpc).unwrap();
    assert_eq!(acl.entries.len(), 2);
    networks.add_ipv6_to_vpc(vpc, None).unwrap();
    let entries = networks.default_acl(vpc).unwrap().entries;
    assert_eq!(entries.iter().filter(|entry| entry.number == 101).count(), 2);
    assert_eq!(bench.policy().subnets, [].into(), "nobody is asked where everything passes");
    networks.remove_acl_entry(acl.id, IN, 101).unwrap();
    assert_eq!(bench.policy().subnets.len(), 1);
}
