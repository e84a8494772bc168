"""Route tables, gateways, network ACLs, prefix lists and interfaces by themselves, with boto3."""

import boto3
from client import client, code, same

ec2 = client("ec2")
resource = boto3.resource("ec2")
ANYWHERE = "0.0.0.0/0"


def tagged(kind, value):
    return [{"ResourceType": kind, "Tags": [{"Key": "Name", "Value": value}]}]


def table(identity):
    return ec2.describe_route_tables(RouteTableIds=[identity])["RouteTables"][0]


def routes(identity):
    """Targets and states by destination, but for the local route."""
    names = ["GatewayId", "NatGatewayId", "NetworkInterfaceId"]
    return {r["DestinationCidrBlock"]: (next(r[n] for n in names if n in r), r["State"])
            for r in table(identity)["Routes"] if r.get("GatewayId") != "local"}


def main_of(vpc):
    filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "association.main", "Values": ["true"]}]
    return ec2.describe_route_tables(Filters=filters)["RouteTables"][0]


# A VPC of the API knows nothing but itself.
vpc = ec2.create_vpc(CidrBlock="10.80.0.0/16")["Vpc"]["VpcId"]
main = main_of(vpc)
same([(r["DestinationCidrBlock"], r["GatewayId"], r["Origin"]) for r in main["Routes"]], [("10.80.0.0/16", "local", "CreateRouteTable")])
same([(a["Main"], a["AssociationState"]["State"], a.get("SubnetId")) for a in main["Associations"]], [(True, "associated", None)])
same(ec2.describe_internet_gateways(Filters=[{"Name": "attachment.vpc-id", "Values": [vpc]}])["InternetGateways"], [])
subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.80.1.0/24")["Subnet"]["SubnetId"]
outer = ec2.create_subnet(VpcId=vpc, CidrBlock="10.80.2.0/24")["Subnet"]["SubnetId"]

# Subnet attributes.
ec2.modify_subnet_attribute(SubnetId=outer, MapPublicIpOnLaunch={"Value": True})
same([s["MapPublicIpOnLaunch"] for s in ec2.describe_subnets(SubnetIds=[subnet, outer])["Subnets"] if s["SubnetId"] == outer], [True])
same(code(ec2.modify_subnet_attribute, SubnetId=outer, EnableDns64={"Value": True}), "UnsupportedOperation")
same(code(ec2.modify_subnet_attribute, SubnetId="subnet-00000000000000001", MapPublicIpOnLaunch={"Value": True}), "InvalidSubnetID.NotFound")

# Internet gateways.
gateway = ec2.create_internet_gateway(TagSpecifications=tagged("internet-gateway", "out"))["InternetGateway"]
same((gateway["Attachments"], gateway["Tags"]), ([], [{"Key": "Name", "Value": "out"}]))
gateway = gateway["InternetGatewayId"]
same(code(ec2.create_route, RouteTableId=main["RouteTableId"], DestinationCidrBlock=ANYWHERE, GatewayId=gateway), "InvalidParameterValue")
ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
same(code(ec2.attach_internet_gateway, InternetGatewayId=gateway, VpcId=vpc), "Resource.AlreadyAssociated")
same(ec2.describe_internet_gateways(InternetGatewayIds=[gateway])["InternetGateways"][0]["Attachments"], [{"State": "available", "VpcId": vpc}])
same(code(ec2.delete_internet_gateway, InternetGatewayId=gateway), "DependencyViolation")
same(code(ec2.attach_internet_gateway, InternetGatewayId="igw-00000000000000001", VpcId=vpc), "InvalidInternetGatewayID.NotFound")
same(code(ec2.attach_internet_gateway, InternetGatewayId="igw-1", VpcId=vpc), "InvalidInternetGatewayId.Malformed")

# Tables, made once however often they are asked for.
wish = {"VpcId": vpc, "ClientToken": "table-1", "TagSpecifications": tagged("route-table", "public")}
own = ec2.create_route_table(**wish)["RouteTable"]
same((own["Tags"], own["Associations"]), ([{"Key": "Name", "Value": "public"}], []))
own = own["RouteTableId"]
same(ec2.create_route_table(**wish)["RouteTable"]["RouteTableId"], own)
same(code(ec2.create_route_table, VpcId=vpc, ClientToken="table-1"), "IdempotentParameterMismatch")
same(ec2.create_route(RouteTableId=own, DestinationCidrBlock=ANYWHERE, GatewayId=gateway)["Return"], True)
same(routes(own), {ANYWHERE: (gateway, "active")})
for change, expected in [
    ({"DestinationCidrBlock": ANYWHERE, "GatewayId": gateway}, "RouteAlreadyExists"),
    ({"DestinationCidrBlock": "10.80.1.0/24", "GatewayId": gateway}, "InvalidParameterValue"),
    ({"DestinationCidrBlock": "10.1.2.3/8", "GatewayId": gateway}, "InvalidParameterValue"),
    ({"DestinationCidrBlock": "10.0.0.0/8", "GatewayId": "local"}, "UnsupportedOperation"),
    ({"DestinationCidrBlock": "10.0.0.0/8"}, "MissingParameter"),
    ({"GatewayId": gateway}, "MissingParameter"),
    ({"DestinationIpv6CidrBlock": "::/0", "GatewayId": gateway}, "UnsupportedOperation"),
    ({"DestinationCidrBlock": "10.0.0.0/8", "GatewayId": "igw-00000000000000001"}, "InvalidInternetGatewayID.NotFound"),
    ({"DestinationCidrBlock": "10.0.0.0/8", "NatGatewayId": "nat-00000000000000001"}, "NatGatewayNotFound"),
    ({"DestinationCidrBlock": "10.0.0.0/8", "NetworkInterfaceId": "eni-00000000000000001"}, "InvalidNetworkInterfaceID.NotFound"),
    ({"DestinationCidrBlock": "10.0.0.0/8", "InstanceId": "i-00000000000000001"}, "InvalidInstanceID.NotFound"),
    ({"DestinationCidrBlock": "10.0.0.0/8", "GatewayId": gateway, "InstanceId": "i-00000000000000001"}, "InvalidParameterCombination"),
    ({"DestinationCidrBlock": "10.0.0.0/8", "TransitGatewayId": "tgw-00000000000000001"}, "UnsupportedOperation"),
]:
    same(code(ec2.create_route, RouteTableId=own, **change), expected)
same(code(ec2.replace_route, RouteTableId=own, DestinationCidrBlock="10.0.0.0/8", GatewayId=gateway), "InvalidRoute.NotFound")
same(code(ec2.delete_route, RouteTableId=own, DestinationCidrBlock="10.0.0.0/8"), "InvalidRoute.NotFound")
same(code(ec2.create_route, RouteTableId="rtb-00000000000000001", DestinationCidrBlock="10.0.0.0/8", GatewayId=gateway), "InvalidRouteTableID.NotFound")
same(routes(own), {ANYWHERE: (gateway, "active")})

# Associations.
association = ec2.associate_route_table(RouteTableId=own, SubnetId=outer)["AssociationId"]
same([(a["Main"], a["SubnetId"]) for a in table(own)["Associations"]], [(False, outer)])
same(code(ec2.delete_route_table, RouteTableId=own), "DependencyViolation")
same(code(ec2.associate_route_table, RouteTableId=main["RouteTableId"], SubnetId=outer), "Resource.AlreadyAssociated")
moved = ec2.replace_route_table_association(AssociationId=association, RouteTableId=main["RouteTableId"])["NewAssociationId"]
same(code(ec2.disassociate_route_table, AssociationId=association), "InvalidAssociationID.NotFound")
ec2.replace_route_table_association(AssociationId=moved, RouteTableId=own)
same(code(ec2.disassociate_route_table, AssociationId=main["Associations"][0]["RouteTableAssociationId"]), "InvalidParameterValue")

# NAT gateways.
address = ec2.allocate_address(Domain="vpc")
wish = {"SubnetId": outer, "AllocationId": address["AllocationId"], "ClientToken": "nat-1", "TagSpecifications": tagged("natgateway", "nat")}
nat = ec2.create_nat_gateway(**wish)["NatGateway"]
same((nat["State"], nat["VpcId"], nat["Tags"]), ("available", vpc, [{"Key": "Name", "Value": "nat"}]))
same(nat["NatGatewayAddresses"][0]["PublicIp"], address["PublicIp"])
nat, private = nat["NatGatewayId"], nat["NatGatewayAddresses"][0]["PrivateIp"]
same(ec2.create_nat_gateway(**wish)["NatGateway"]["NatGatewayId"], nat)
ec2.get_waiter("nat_gateway_available").wait(NatGatewayIds=[nat])
same([n["NatGatewayId"] for n in ec2.describe_nat_gateways(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["NatGateways"]], [nat])
same(ec2.describe_addresses(AllocationIds=[address["AllocationId"]])["Addresses"][0]["PrivateIpAddress"], private)
same(code(ec2.create_nat_gateway, SubnetId=subnet, AllocationId=address["AllocationId"]), "InvalidIPAddress.InUse")
same(code(ec2.create_nat_gateway, SubnetId=subnet, ConnectivityType="private"), "UnsupportedOperation")
same(code(ec2.create_nat_gateway, SubnetId=subnet), "MissingParameter")
same(code(ec2.release_address, AllocationId=address["AllocationId"]), "InvalidIPAddress.InUse")
same(code(ec2.delete_subnet, SubnetId=outer), "DependencyViolation")
same(code(ec2.detach_internet_gateway, InternetGatewayId=gateway, VpcId=vpc), "DependencyViolation")
ec2.create_route(RouteTableId=main["RouteTableId"], DestinationCidrBlock=ANYWHERE, NatGatewayId=nat)
same(routes(main["RouteTableId"]), {ANYWHERE: (nat, "active")})
same(code(ec2.describe_nat_gateways, NatGatewayIds=["nat-00000000000000001"]), "NatGatewayNotFound")
ec2.delete_nat_gateway(NatGatewayId=nat)
ec2.get_waiter("nat_gateway_deleted").wait(NatGatewayIds=[nat])
same(routes(main["RouteTableId"]), {ANYWHERE: (nat, "blackhole")})
ec2.release_address(AllocationId=address["AllocationId"])

# Interfaces by themselves.
group = ec2.create_security_group(GroupName="web", Description="x", VpcId=vpc)["GroupId"]
wish = {"SubnetId": subnet, "Description": "mine", "Groups": [group], "ClientToken": "eni-1",
        "PrivateIpAddresses": [{"Primary": True, "PrivateIpAddress": "10.80.1.10"}, {"Primary": False, "PrivateIpAddress": "10.80.1.11"}],
        "TagSpecifications": tagged("network-interface", "front")}
made = ec2.create_network_interface(**wish)["NetworkInterface"]
same((made["Status"], made["Description"], made["SourceDestCheck"], made["TagSet"]), ("available", "mine", True, [{"Key": "Name", "Value": "front"}]))
same([(a["PrivateIpAddress"], a["Primary"]) for a in made["PrivateIpAddresses"]], [("10.80.1.10", True), ("10.80.1.11", False)])
same(made.get("Attachment"), None)
eni = made["NetworkInterfaceId"]
same(ec2.create_network_interface(**wish)["NetworkInterface"]["NetworkInterfaceId"], eni)
ec2.get_waiter("network_interface_available").wait(NetworkInterfaceIds=[eni])
for change, expected in [
    ({"PrivateIpAddress": "10.80.1.10"}, "InvalidIPAddress.InUse"),
    ({"PrivateIpAddress": "10.80.2.10"}, "InvalidParameterValue"),
    ({"PrivateIpAddress": "nonsense"}, "InvalidParameterValue"),
    ({"SecondaryPrivateIpAddressCount": 15}, "PrivateIpAddressLimitExceeded"),
    ({"SecondaryPrivateIpAddressCount": -1}, "PrivateIpAddressLimitExceeded"),
    ({"Groups": ["sg-00000000000000001"]}, "InvalidGroup.NotFound"),
    ({"InterfaceType": "efa"}, "UnsupportedOperation"),
    ({"Description": "x" * 300}, "InvalidParameterValue"),
]:
    same(code(ec2.create_network_interface, SubnetId=subnet, **change), expected)
same(len(ec2.describe_network_interfaces(Filters=[{"Name": "subnet-id", "Values": [subnet]}])["NetworkInterfaces"]), 1)
same(code(ec2.delete_security_group, GroupId=group), "DependencyViolation")
same(code(ec2.delete_subnet, SubnetId=subnet), "DependencyViolation")
ec2.modify_network_interface_attribute(NetworkInterfaceId=eni, SourceDestCheck={"Value": False})
ec2.modify_network_interface_attribute(NetworkInterfaceId=eni, Description={"Value": "a router"})
same(ec2.describe_network_interface_attribute(NetworkInterfaceId=eni, Attribute="sourceDestCheck")["SourceDestCheck"], {"Value": False})
same(ec2.describe_network_interface_attribute(NetworkInterfaceId=eni, Attribute="description")["Description"], {"Value": "a router"})
same([g["GroupName"] for g in ec2.describe_network_interface_attribute(NetworkInterfaceId=eni, Attribute="groupSet")["Groups"]], ["web"])
same(code(ec2.modify_network_interface_attribute, NetworkInterfaceId=eni, Attachment={"AttachmentId": "eni-attach-00000000000000001", "DeleteOnTermination": True}), "InvalidAttachmentID.NotFound")
same(code(ec2.modify_network_interface_attribute, NetworkInterfaceId="eni-00000000000000001", Description={"Value": "x"}), "InvalidNetworkInterfaceID.NotFound")
new = ec2.assign_private_ip_addresses(NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=2)["AssignedPrivateIpAddresses"]
same(len(new), 2)
ec2.assign_private_ip_addresses(NetworkInterfaceId=eni, PrivateIpAddresses=["10.80.1.99"])
same(code(ec2.assign_private_ip_addresses, NetworkInterfaceId=eni, PrivateIpAddresses=["10.80.1.99"]), "InvalidIPAddress.InUse")
same(code(ec2.assign_private_ip_addresses, NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=14), "PrivateIpAddressLimitExceeded")
same(code(ec2.assign_private_ip_addresses, NetworkInterfaceId=eni), "InvalidParameterCombination")
same(code(ec2.assign_private_ip_addresses, NetworkInterfaceId=eni, Ipv4PrefixCount=1), "UnsupportedOperation")
ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni, PrivateIpAddresses=[a["PrivateIpAddress"] for a in new])
same(code(ec2.unassign_private_ip_addresses, NetworkInterfaceId=eni, PrivateIpAddresses=["10.80.1.10"]), "InvalidParameterValue")
same([a["PrivateIpAddress"] for a in resource.NetworkInterface(eni).private_ip_addresses], ["10.80.1.10", "10.80.1.11", "10.80.1.99"])
ec2.replace_route(RouteTableId=main["RouteTableId"], DestinationCidrBlock=ANYWHERE, NetworkInterfaceId=eni)
same(routes(main["RouteTableId"]), {ANYWHERE: (eni, "blackhole")})
public = ec2.allocate_address(Domain="vpc")
ec2.associate_address(AllocationId=public["AllocationId"], NetworkInterfaceId=eni)
same(resource.NetworkInterface(eni).association_attribute["PublicIp"], public["PublicIp"])
shown = ec2.describe_addresses(AllocationIds=[public["AllocationId"]])["Addresses"][0]
same((shown["NetworkInterfaceId"], shown["PrivateIpAddress"], shown.get("InstanceId")), (eni, "10.80.1.10", None))
ec2.delete_network_interface(NetworkInterfaceId=eni)
same(code(ec2.delete_network_interface, NetworkInterfaceId=eni), "InvalidNetworkInterfaceID.NotFound")
same(ec2.describe_addresses(AllocationIds=[public["AllocationId"]])["Addresses"][0].get("AssociationId"), None)
ec2.release_address(AllocationId=public["AllocationId"])
ec2.delete_route(RouteTableId=main["RouteTableId"], DestinationCidrBlock=ANYWHERE)

# Network ACLs.
default = ec2.describe_network_acls(Filters=[{"Name": "vpc-id", "Values": [vpc]}, {"Name": "default", "Values": ["true"]}])["NetworkAcls"][0]
same(sorted(a["SubnetId"] for a in default["Associations"]), sorted([subnet, outer]))
same(sorted((e["RuleNumber"], e["Egress"], e["RuleAction"]) for e in default["Entries"]),
     [(100, False, "allow"), (100, True, "allow"), (32767, False, "deny"), (32767, True, "deny")])
acl = resource.create_network_acl(VpcId=vpc, TagSpecifications=tagged("network-acl", "edge"), ClientToken="acl-1")
same((acl.is_default, acl.tags, acl.associations), (False, [{"Key": "Name", "Value": "edge"}], []))
acl.create_entry(RuleNumber=100, Protocol="6", RuleAction="allow", Egress=False, CidrBlock=ANYWHERE, PortRange={"From": 80, "To": 81})
acl.create_entry(RuleNumber=110, Protocol="1", RuleAction="deny", Egress=True, CidrBlock=ANYWHERE, IcmpTypeCode={"Type": 8, "Code": -1})
same(code(acl.create_entry, RuleNumber=100, Protocol="-1", RuleAction="allow", Egress=False, CidrBlock=ANYWHERE), "NetworkAclEntryAlreadyExists")
acl.replace_entry(RuleNumber=100, Protocol="17", RuleAction="deny", Egress=False, CidrBlock="10.0.0.0/8", PortRange={"From": 53, "To": 53})
acl.reload()
shown = {(e["RuleNumber"], e["Egress"]): e for e in acl.entries}
same(shown[(100, False)], {"RuleNumber": 100, "Protocol": "17", "RuleAction": "deny", "Egress": False, "CidrBlock": "10.0.0.0/8", "PortRange": {"From": 53, "To": 53}})
same(shown[(110, True)]["IcmpTypeCode"], {"Type": 8, "Code": -1})
for change, expected in [
    ({"RuleNumber": 0}, "InvalidParameterValue"),
    ({"RuleNumber": 32767}, "InvalidParameterValue"),
    ({"Protocol": "6"}, "MissingParameter"),
    ({"Protocol": "1"}, "MissingParameter"),
    ({"Protocol": "nonsense"}, "InvalidParameterValue"),
    ({"CidrBlock": "nonsense"}, "InvalidParameterValue"),
    ({"RuleAction": "perhaps"}, "InvalidParameterValue"),
    ({"Ipv6CidrBlock": "::/0"}, "InvalidParameterCombination"),
]:
    entry = {"RuleNumber": 120, "Protocol": "-1", "RuleAction": "allow", "Egress": True, "CidrBlock": ANYWHERE}
    same(code(ec2.create_network_acl_entry, NetworkAclId=acl.id, **{**entry, **change}), expected)
same(code(ec2.delete_network_acl_entry, NetworkAclId=acl.id, RuleNumber=99, Egress=True), "InvalidNetworkAclEntry.NotFound")
acl.create_entry(RuleNumber=130, Protocol="58", RuleAction="allow", Egress=True, Ipv6CidrBlock="2001:db8::/32", IcmpTypeCode={"Type": -1, "Code": -1})
acl.reload()
shown = next(e for e in acl.entries if e["RuleNumber"] == 130)
same((shown.get("CidrBlock"), shown["Ipv6CidrBlock"], shown["IcmpTypeCode"]), (None, "2001:db8::/32", {"Type": -1, "Code": -1}))
same(code(acl.create_entry, RuleNumber=130, Protocol="-1", RuleAction="allow", Egress=True, CidrBlock=ANYWHERE), "NetworkAclEntryAlreadyExists")
same(code(acl.create_entry, RuleNumber=131, Protocol="-1", RuleAction="allow", Egress=True, Ipv6CidrBlock="nonsense"), "InvalidParameterValue")
dual = ec2.create_vpc(CidrBlock="10.82.0.0/16", AmazonProvidedIpv6CidrBlock=True)["Vpc"]["VpcId"]
entries = ec2.describe_network_acls(Filters=[{"Name": "vpc-id", "Values": [dual]}])["NetworkAcls"][0]["Entries"]
same([e.get("Ipv6CidrBlock") for e in entries if e["RuleNumber"] == 101], ["::/0", "::/0"])
ec2.delete_vpc(VpcId=dual)
association = next(a for a in default["Associations"] if a["SubnetId"] == subnet)["NetworkAclAssociationId"]
moved = acl.replace_association(AssociationId=association)["NewAssociationId"]
acl.reload()
same([a["SubnetId"] for a in acl.associations], [subnet])
same(code(acl.delete), "DependencyViolation")
ec2.replace_network_acl_association(AssociationId=moved, NetworkAclId=default["NetworkAclId"])
ec2.delete_network_acl_entry(NetworkAclId=acl.id, RuleNumber=110, Egress=True)
acl.delete()
same(code(ec2.describe_network_acls, NetworkAclIds=[acl.id]), "InvalidNetworkAclID.NotFound")
same(code(ec2.delete_network_acl, NetworkAclId=default["NetworkAclId"]), "InvalidParameterValue")

# Prefix lists.
wish = {"PrefixListName": "office", "MaxEntries": 3, "AddressFamily": "IPv4", "ClientToken": "pl-1",
        "Entries": [{"Cidr": "192.0.2.0/24", "Description": "here"}], "TagSpecifications": tagged("prefix-list", "x")}
made = ec2.create_managed_prefix_list(**wish)["PrefixList"]
same((made["Version"], made["MaxEntries"], made["State"], made["Tags"]), (1, 3, "create-complete", [{"Key": "Name", "Value": "x"}]))
office = made["PrefixListId"]
same(ec2.create_managed_prefix_list(**wish)["PrefixList"]["PrefixListId"], office)
same(code(ec2.create_managed_prefix_list, PrefixListName="x", MaxEntries=1, AddressFamily="IPv6"), "UnsupportedOperation")
same(code(ec2.create_managed_prefix_list, PrefixListName="x", MaxEntries=0, AddressFamily="IPv4"), "InvalidParameterValue")
same(code(ec2.create_managed_prefix_list, PrefixListName="com.amazonaws.x", MaxEntries=1, AddressFamily="IPv4"), "InvalidParameterValue")
ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[
    {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "PrefixListIds": [{"PrefixListId": office, "Description": "ssh"}]}])
permission = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"][0]
same(permission["PrefixListIds"], [{"PrefixListId": office, "Description": "ssh"}])
same(code(ec2.delete_managed_prefix_list, PrefixListId=office), "DependencyViolation")
changed = ec2.modify_managed_prefix_list(PrefixListId=office, CurrentVersion=1, AddEntries=[{"Cidr": "198.51.100.0/24"}],
                                         RemoveEntries=[{"Cidr": "192.0.2.0/24"}])["PrefixList"]
same(changed["Version"], 2)
same(code(ec2.modify_managed_prefix_list, PrefixListId=office, CurrentVersion=1, AddEntries=[{"Cidr": "10.0.0.0/8"}]), "PrefixListVersionMismatch")
same(code(ec2.modify_managed_prefix_list, PrefixListId=office, AddEntries=[{"Cidr": "10.0.0.0/8"}]), "MissingParameter")
same(code(ec2.modify_managed_prefix_list, PrefixListId=office, CurrentVersion=2, AddEntries=[{"Cidr": f"10.{n}.0.0/16"} for n in range(3)]), "PrefixListMaxEntriesExceeded")
same([e["Cidr"] for e in ec2.get_managed_prefix_list_entries(PrefixListId=office)["Entries"]], ["198.51.100.0/24"])
same([p["PrefixListId"] for p in ec2.describe_managed_prefix_lists(Filters=[{"Name": "prefix-list-name", "Values": ["off*"]}])["PrefixLists"]], [office])
ec2.delete_security_group(GroupId=group)
same(ec2.delete_managed_prefix_list(PrefixListId=office)["PrefixList"]["State"], "delete-complete")
same(code(ec2.get_managed_prefix_list_entries, PrefixListId=office), "InvalidPrefixListID.NotFound")

# Tags of all of them, and what goes takes its own along.
ec2.create_tags(Resources=[own, gateway, default["NetworkAclId"]], Tags=[{"Key": "team", "Value": "net"}])
kinds = [t["ResourceType"] for t in ec2.describe_tags(Filters=[{"Name": "key", "Values": ["team"]}])["Tags"]]
same(sorted(kinds), ["internet-gateway", "network-acl", "route-table"])
same([t["RouteTableId"] for t in ec2.describe_route_tables(Filters=[{"Name": "tag:team", "Values": ["net"]}])["RouteTables"]], [own])

# And everything goes.
for a in table(own)["Associations"]:
    ec2.disassociate_route_table(AssociationId=a["RouteTableAssociationId"])
ec2.delete_subnet(SubnetId=subnet)
ec2.delete_subnet(SubnetId=outer)
same(code(ec2.delete_vpc, VpcId=vpc), "DependencyViolation")
ec2.delete_route_table(RouteTableId=own)
ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
ec2.delete_internet_gateway(InternetGatewayId=gateway)
ec2.delete_vpc(VpcId=vpc)
same(code(ec2.describe_route_tables, RouteTableIds=[own]), "InvalidRouteTableID.NotFound")
left = {t["ResourceId"] for t in ec2.describe_tags()["Tags"]}
same(left, set())
print("done")
