"""VPCs, subnets, groups, addresses, interfaces, routes, keys and tags, with boto3."""

import os
import subprocess

import boto3
from client import DIRECTORY, client, code, same

ec2 = client("ec2")

# The default VPC looks as clients expect.
default = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
same(len(default), 1)
vpc = default[0]["VpcId"]
subnets = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"]
same([s["DefaultForAz"] for s in subnets], [True])
same(subnets[0]["AvailabilityZone"], ec2.describe_availability_zones()["AvailabilityZones"][0]["ZoneName"])
tables = ec2.describe_route_tables(Filters=[{"Name": "association.main", "Values": ["true"]}, {"Name": "vpc-id", "Values": [vpc]}])
routes = {r["DestinationCidrBlock"]: r["GatewayId"] for r in tables["RouteTables"][0]["Routes"]}
gateways = ec2.describe_internet_gateways(Filters=[{"Name": "attachment.vpc-id", "Values": [vpc]}])["InternetGateways"]
same(routes, {default[0]["CidrBlock"]: "local", "0.0.0.0/0": gateways[0]["InternetGatewayId"]})
same(ec2.describe_dhcp_options(DhcpOptionsIds=[default[0]["DhcpOptionsId"]])["DhcpOptions"][0]["OwnerId"], "000000000000")
same([r["RegionName"] for r in ec2.describe_regions()["Regions"]], [os.environ["AWS_REGION"]])
attributes = ec2.describe_account_attributes(AttributeNames=["default-vpc"])["AccountAttributes"]
same(attributes[0]["AttributeValues"][0]["AttributeValue"], vpc)

# A VPC of one's own, by the resources of boto3.
resource = boto3.resource("ec2")
blue = resource.create_vpc(CidrBlock="10.77.0.0/16", TagSpecifications=[
    {"ResourceType": "vpc", "Tags": [{"Key": "Name", "Value": "blue"}, {"Key": "hostile", "Value": "<&>\"'\u00e4]]>"}]}])
blue.wait_until_available()
same({t["Key"]: t["Value"] for t in blue.tags}, {"Name": "blue", "hostile": "<&>\"'\u00e4]]>"})
same(code(ec2.create_vpc, CidrBlock="10.0.0.0/8"), "InvalidVpc.Range")
same(code(ec2.create_vpc, CidrBlock="nonsense"), "InvalidParameterValue")
same(ec2.describe_vpc_attribute(VpcId=blue.id, Attribute="enableDnsSupport")["EnableDnsSupport"], {"Value": True})
ec2.modify_vpc_attribute(VpcId=blue.id, EnableDnsHostnames={"Value": True})
same(code(ec2.modify_vpc_attribute, VpcId=blue.id, EnableDnsSupport={"Value": False}), "UnsupportedOperation")
inner = blue.create_subnet(CidrBlock="10.77.1.0/24")
same((inner.available_ip_address_count, inner.state), (251, "available"))
same(code(ec2.create_subnet, VpcId=blue.id, CidrBlock="10.77.1.128/25"), "InvalidSubnet.Conflict")
same(code(ec2.create_subnet, VpcId=blue.id, CidrBlock="10.77.2.0/24", AvailabilityZone="us-east-1f"), "InvalidParameterValue")
same(code(ec2.delete_vpc, VpcId=blue.id), "DependencyViolation")
same([v["VpcId"] for v in ec2.describe_vpcs(Filters=[{"Name": "tag:Name", "Values": ["bl*", "x"]}])["Vpcs"]], [blue.id])
same(code(ec2.describe_vpcs, VpcIds=["vpc-00000000000000001"]), "InvalidVpcID.NotFound")
same(code(ec2.describe_vpcs, VpcIds=["subnet-00000000000000001"]), "InvalidVpcID.Malformed")
same(code(ec2.describe_vpcs, Filters=[{"Name": "colour", "Values": ["x"]}]), "InvalidParameterValue")

# Groups: rules in both forms, ids of rules, references, revocation.
group = blue.create_security_group(GroupName="web", Description="for a test", TagSpecifications=[
    {"ResourceType": "security-group", "Tags": [{"Key": "a", "Value": "b"}]}])
same(code(ec2.create_security_group, GroupName="web", Description="x", VpcId=blue.id), "InvalidGroup.Duplicate")
ec2.get_waiter("security_group_exists").wait(GroupIds=[group.id])
added = ec2.authorize_security_group_ingress(GroupId=group.id, IpPermissions=[
    {"IpProtocol": "tcp", "FromPort": 80, "ToPort": 81, "IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "inside"}]},
    {"IpProtocol": "icmp", "FromPort": 8, "ToPort": -1, "UserIdGroupPairs": [{"GroupId": group.id, "UserId": "000000000000"}]},
])["SecurityGroupRules"]
same([(r["IpProtocol"], r["FromPort"], r["ToPort"], r["IsEgress"]) for r in added], [("tcp", 80, 81, False), ("icmp", 8, -1, False)])
same(added[1]["ReferencedGroupInfo"]["GroupId"], group.id)
group.authorize_ingress(IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0")
same(code(group.authorize_ingress, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0"), "InvalidPermission.Duplicate")
group.reload()
shown = {(p["IpProtocol"], p.get("FromPort")): p for p in group.ip_permissions}
same(shown[("tcp", 80)]["IpRanges"], [{"CidrIp": "10.0.0.0/8", "Description": "inside"}])
same(shown[("tcp", 22)]["IpRanges"], [{"CidrIp": "0.0.0.0/0"}])
same([p["IpProtocol"] for p in group.ip_permissions_egress], ["-1"])
same([g["GroupId"] for g in ec2.describe_security_groups(Filters=[{"Name": "ip-permission.from-port", "Values": ["22"]}])["SecurityGroups"]], [group.id])
ec2.modify_security_group_rules(GroupId=group.id, SecurityGroupRules=[{"SecurityGroupRuleId": added[0]["SecurityGroupRuleId"],
    "SecurityGroupRule": {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "CidrIpv4": "10.1.0.0/16", "Description": "now"}}])
rule = ec2.describe_security_group_rules(SecurityGroupRuleIds=[added[0]["SecurityGroupRuleId"]])["SecurityGroupRules"][0]
same((rule["FromPort"], rule["CidrIpv4"], rule["Description"]), (443, "10.1.0.0/16", "now"))
gone = ec2.revoke_security_group_ingress(GroupId=group.id, SecurityGroupRuleIds=[added[0]["SecurityGroupRuleId"]])
same(gone["RevokedSecurityGroupRules"][0]["SecurityGroupRuleId"], added[0]["SecurityGroupRuleId"])
group.revoke_ingress(IpPermissions=[{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}])
same(code(group.revoke_ingress, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0"), "InvalidPermission.NotFound")
group.revoke_egress(IpPermissions=group.ip_permissions_egress)
group.reload()
same((len(group.ip_permissions), group.ip_permissions_egress), (1, []))
same(code(ec2.authorize_security_group_ingress, GroupId=group.id, IpPermissions=[{"IpProtocol": "tcp", "FromPort": 1, "ToPort": 0, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]), "InvalidParameterValue")
same(code(ec2.authorize_security_group_ingress, GroupId=group.id, IpPermissions=[{"IpProtocol": "tcp", "FromPort": 1, "ToPort": 1, "UserIdGroupPairs": [{"GroupId": "sg-00000000000000001"}]}]), "InvalidGroup.NotFound")
same(code(ec2.delete_security_group, GroupName="web"), "InvalidGroup.NotFound")

# Pages.
pages = ec2.get_paginator("describe_security_groups").paginate(PaginationConfig={"PageSize": 5})
everything = [g["GroupId"] for page in pages for g in page["SecurityGroups"]]
names = [ec2.create_security_group(GroupName=f"g{n}", Description="x", VpcId=blue.id)["GroupId"] for n in range(12)]
sizes = [len(page["SecurityGroups"]) for page in pages]
same((sizes, sum(sizes)), ([5, 5, len(everything) + 2], len(everything) + 12))
same(code(ec2.describe_security_groups, NextToken="!!"), "InvalidNextToken")
for name in names:
    ec2.delete_security_group(GroupId=name)

# DryRun says what would be and does nothing.
same(code(ec2.delete_security_group, GroupId=group.id, DryRun=True), "DryRunOperation")
group.reload()

# Tags.
ec2.create_tags(Resources=[group.id, inner.id], Tags=[{"Key": "team", "Value": "x"}, {"Key": "a", "Value": "c"}])
found = ec2.describe_tags(Filters=[{"Name": "key", "Values": ["team", "a"]}])["Tags"]
same(sorted((t["ResourceType"], t["Key"], t["Value"]) for t in found),
     [("security-group", "a", "c"), ("security-group", "team", "x"), ("subnet", "a", "c"), ("subnet", "team", "x")])
ec2.delete_tags(Resources=[group.id], Tags=[{"Key": "a", "Value": "other"}, {"Key": "team"}])
group.reload()
same(group.tags, [{"Key": "a", "Value": "c"}])
same(code(ec2.create_tags, Resources=["vpc-00000000000000001"], Tags=[{"Key": "a", "Value": "b"}]), "InvalidVpcID.NotFound")
same(code(ec2.create_tags, Resources=["x-1"], Tags=[{"Key": "a", "Value": "b"}]), "InvalidID")
same(code(ec2.create_tags, Resources=[group.id], Tags=[{"Key": "aws:x", "Value": "b"}]), "InvalidParameterValue")
same(code(ec2.create_tags, Resources=[group.id], Tags=[{"Key": f"k{n}", "Value": "b"} for n in range(50)]), "TagLimitExceeded")
same(code(ec2.create_vpc, CidrBlock="10.9.0.0/16", TagSpecifications=[{"ResourceType": "subnet", "Tags": [{"Key": "a", "Value": "b"}]}]), "InvalidParameterValue")

group.delete()
same(code(ec2.describe_security_groups, GroupIds=[group.id]), "InvalidGroup.NotFound")
inner.delete()
blue.delete()
same(ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [blue.id, inner.id, group.id]}])["Tags"], [])

# Elastic addresses.
address = ec2.allocate_address(Domain="vpc", TagSpecifications=[{"ResourceType": "elastic-ip", "Tags": [{"Key": "Name", "Value": "front"}]}])
same(ec2.describe_addresses(AllocationIds=[address["AllocationId"]])["Addresses"][0]["PublicIp"], address["PublicIp"])
same(ec2.describe_addresses(PublicIps=[address["PublicIp"]])["Addresses"][0]["Tags"], [{"Key": "Name", "Value": "front"}])
same(ec2.describe_addresses_attribute(AllocationIds=[address["AllocationId"]])["Addresses"][0]["PublicIp"], address["PublicIp"])
same(code(ec2.associate_address, AllocationId=address["AllocationId"], InstanceId="i-00000000000000001"), "InvalidInstanceID.NotFound")
same(code(ec2.associate_address, AllocationId=address["AllocationId"]), "MissingParameter")
same(code(ec2.disassociate_address, AssociationId="eipassoc-00000000000000001"), "InvalidAssociationID.NotFound")
ec2.release_address(AllocationId=address["AllocationId"])
same(code(ec2.release_address, AllocationId=address["AllocationId"]), "InvalidAllocationID.NotFound")
same(code(ec2.describe_addresses, PublicIps=[address["PublicIp"]]), "InvalidAddress.NotFound")
same(ec2.describe_network_interfaces()["NetworkInterfaces"], [])
same(code(ec2.describe_network_interfaces, NetworkInterfaceIds=["eni-1"]), "InvalidNetworkInterfaceID.Malformed")

# Key pairs that OpenSSH takes.
for kind in ["rsa", "ed25519"]:
    made = ec2.create_key_pair(KeyName=f"made {kind}", KeyType=kind)
    path = f"{DIRECTORY}/{kind}.pem"
    with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        file.write(made["KeyMaterial"])
    public = subprocess.run(["ssh-keygen", "-y", "-f", path], check=True, capture_output=True, text=True).stdout
    imported = ec2.import_key_pair(KeyName=f"taken {kind}", PublicKeyMaterial=public.encode())
    same(imported["KeyFingerprint"] == made["KeyFingerprint"], kind == "ed25519")
    shown = ec2.describe_key_pairs(KeyNames=[f"made {kind}"], IncludePublicKey=True)["KeyPairs"][0]
    same((shown["KeyType"], shown["PublicKey"].split()[1]), (kind, public.split()[1]))
ec2.get_waiter("key_pair_exists").wait(KeyNames=["made rsa"])
same(code(ec2.create_key_pair, KeyName="made rsa"), "InvalidKeyPair.Duplicate")
same(code(ec2.import_key_pair, KeyName="x", PublicKeyMaterial=b"no key"), "InvalidKey.Format")
same(code(ec2.describe_key_pairs, KeyNames=["x"]), "InvalidKeyPair.NotFound")
ec2.delete_key_pair(KeyName="x")
for pair in ec2.describe_key_pairs()["KeyPairs"]:
    ec2.delete_key_pair(KeyPairId=pair["KeyPairId"])
same(ec2.describe_key_pairs()["KeyPairs"], [])

# Instance types.
types = [t for page in ec2.get_paginator("describe_instance_types").paginate() for t in page["InstanceTypes"]]
micro = next(t for t in types if t["InstanceType"] == "t3.micro")
same((micro["VCpuInfo"]["DefaultVCpus"], micro["MemoryInfo"]["SizeInMiB"], micro["BurstablePerformanceSupported"]), (2, 1024, True))
same(code(ec2.describe_instance_types, InstanceTypes=["t9.huge"]), "InvalidInstanceType")
same(len(ec2.describe_instance_type_offerings()["InstanceTypeOfferings"]), len(types))
print("done")
