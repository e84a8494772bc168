"""Interfaces that instances are launched with, get and lose, with boto3 on running machines."""

import os
import subprocess

import boto3
from client import client, code, same

ec2 = client("ec2")
resource = boto3.resource("ec2")
image = ec2.register_image(Name="guest-of-interfaces", ImageLocation=os.environ["KILN_TEST_IMAGE"])["ImageId"]
ec2.get_waiter("image_available").wait(ImageIds=[image])

# A VPC with a public and a private subnet.
vpc = ec2.create_vpc(CidrBlock="10.81.0.0/16")["Vpc"]["VpcId"]
gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
front = ec2.create_subnet(VpcId=vpc, CidrBlock="10.81.1.0/24")["Subnet"]["SubnetId"]
back = ec2.create_subnet(VpcId=vpc, CidrBlock="10.81.2.0/24")["Subnet"]["SubnetId"]
table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
ec2.associate_route_table(RouteTableId=table, SubnetId=front)
ec2.modify_subnet_attribute(SubnetId=front, MapPublicIpOnLaunch={"Value": True})

# Two interfaces, one for the launch, one for later.
first = ec2.create_network_interface(SubnetId=front, Description="first")["NetworkInterface"]["NetworkInterfaceId"]
second = ec2.create_network_interface(SubnetId=back)["NetworkInterface"]["NetworkInterfaceId"]
wish = {"ImageId": image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1}


def with_interface(**more):
    return {**wish, "NetworkInterfaces": [{"DeviceIndex": 0, "NetworkInterfaceId": first, **more}]}


for change, expected in [
    ({"NetworkInterfaces": [{"DeviceIndex": 0, "NetworkInterfaceId": "eni-00000000000000001"}]}, "InvalidNetworkInterfaceID.NotFound"),
    ({"NetworkInterfaces": [{"DeviceIndex": 0, "NetworkInterfaceId": "eni-1"}]}, "InvalidNetworkInterfaceID.Malformed"),
    ({"NetworkInterfaces": [{"DeviceIndex": 0, "NetworkInterfaceId": first, "SubnetId": front}]}, "InvalidParameterCombination"),
    ({"MaxCount": 2, **with_interface(), "MaxCount": 2}, "InvalidParameterCombination"),
]:
    same(code(ec2.run_instances, **{**wish, **change}), expected)
same(resource.NetworkInterface(first).status, "available")
elastic = ec2.allocate_address(Domain="vpc")
ec2.associate_address(AllocationId=elastic["AllocationId"], NetworkInterfaceId=first)
instance = resource.Instance(ec2.run_instances(**with_interface())["Instances"][0]["InstanceId"])
same(code(ec2.run_instances, **with_interface()), "InvalidNetworkInterface.InUse")
instance.wait_until_running()
own = resource.NetworkInterface(first)
same((own.status, own.attachment["InstanceId"], own.attachment["DeleteOnTermination"]), ("in-use", instance.id, False))
instance.reload()
same((instance.subnet_id, instance.public_ip_address), (front, elastic["PublicIp"]))
same([i["Description"] for i in instance.network_interfaces_attribute], ["first"])
same(code(ec2.delete_network_interface, NetworkInterfaceId=first), "InvalidNetworkInterface.InUse")



# What the tables say is in the kernel while the machine runs.
def kernel(*what):
    command = ["ip", "-n", f"kiln-{vpc[-12:]}", *what]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def ways():
    """Links by which each table of the VPC goes out, by destination."""
    routes = [line.split() for line in kernel("route", "show", "table", "all").splitlines()]
    routes = [words for words in routes if "table" in words and words[words.index("table") + 1].startswith("100")]
    return {words[0]: words[words.index("dev") + 1] for words in routes if words[0] != "blackhole"}


same("fwmark" in kernel("rule", "show"), True)
same(ways(), {"default": "igw0"})
nat_address = ec2.allocate_address(Domain="vpc")
nat = ec2.create_nat_gateway(SubnetId=front, AllocationId=nat_address["AllocationId"])["NatGateway"]["NatGatewayId"]
main = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}, {"Name": "association.main", "Values": ["true"]}])["RouteTables"][0]["RouteTableId"]
ec2.create_route(RouteTableId=main, DestinationCidrBlock="203.0.113.0/24", NatGatewayId=nat)
same(ways(), {"default": "igw0", "203.0.113.0/24": f"nt{nat[-12:]}"})
ec2.delete_nat_gateway(NatGatewayId=nat)
same(ways(), {"default": "igw0"})
same(f"nt{nat[-12:]}" in kernel("-o", "link", "show"), False)
ec2.delete_route(RouteTableId=main, DestinationCidrBlock="203.0.113.0/24")
ec2.release_address(AllocationId=nat_address["AllocationId"])
ec2.delete_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0")
same(ways(), {})
ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)

# Another one, while it is stopped.
attach = {"InstanceId": instance.id, "NetworkInterfaceId": second}
instance.stop()
instance.wait_until_stopped()
for index in [0, 8, -1]:
    same(code(ec2.attach_network_interface, DeviceIndex=index, **attach), "InvalidParameterValue")
same(code(ec2.attach_network_interface, DeviceIndex=1, InstanceId=instance.id, NetworkInterfaceId=first), "InvalidNetworkInterface.InUse")
same(code(ec2.attach_network_interface, DeviceIndex=1, InstanceId="i-00000000000000001", NetworkInterfaceId=second), "InvalidInstanceID.NotFound")
elsewhere = ec2.create_network_interface(SubnetId=ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"][0]["SubnetId"])
elsewhere = elsewhere["NetworkInterface"]["NetworkInterfaceId"]
same(code(ec2.attach_network_interface, DeviceIndex=1, InstanceId=instance.id, NetworkInterfaceId=elsewhere), "InvalidParameterCombination")
ec2.delete_network_interface(NetworkInterfaceId=elsewhere)
attachment = ec2.attach_network_interface(DeviceIndex=1, **attach)["AttachmentId"]
ec2.modify_network_interface_attribute(NetworkInterfaceId=second, Attachment={"AttachmentId": attachment, "DeleteOnTermination": True})
extra = ec2.allocate_address(Domain="vpc")
ec2.associate_address(AllocationId=extra["AllocationId"], NetworkInterfaceId=second)
instance.start()
instance.wait_until_running()
instance.reload()
same([i["NetworkInterfaceId"] for i in instance.network_interfaces_attribute], [first, second])
same([i["Attachment"]["DeleteOnTermination"] for i in instance.network_interfaces_attribute], [False, True])
same([i["Association"]["PublicIp"] for i in instance.network_interfaces_attribute], [elastic["PublicIp"], extra["PublicIp"]])

# A route by way of it, as long as it runs and forwards.
ec2.create_route(RouteTableId=table, DestinationCidrBlock="192.0.2.0/24", NetworkInterfaceId=second)
same(code(ec2.create_route, RouteTableId=table, DestinationCidrBlock="198.51.100.0/24", InstanceId=instance.id), "InvalidInstanceID")


def state():
    routes = ec2.describe_route_tables(RouteTableIds=[table])["RouteTables"][0]["Routes"]
    return next(r["State"] for r in routes if r["DestinationCidrBlock"] == "192.0.2.0/24")


same(state(), "active")
instance.stop()
instance.wait_until_stopped()
same(state(), "blackhole")
ec2.detach_network_interface(AttachmentId=attachment)
same(resource.NetworkInterface(second).status, "available")
same(code(ec2.detach_network_interface, AttachmentId=attachment), "InvalidAttachmentID.NotFound")
ec2.attach_network_interface(DeviceIndex=1, **attach)
ec2.modify_network_interface_attribute(NetworkInterfaceId=second, Attachment={"AttachmentId": attachment, "DeleteOnTermination": True})

# Others come to it while it runs, and go from it.
instance.start()
instance.wait_until_running()


def tap(interface):
    """The link of an interface on the host, if it is there."""
    return f"kt{interface[-12:]}" in kernel("-o", "link", "show")


def free(interface):
    ec2.get_waiter("network_interface_available").wait(NetworkInterfaceIds=[interface])
    same((resource.NetworkInterface(interface).attachment, tap(interface)), (None, False))


def detach(interface, **how):
    ec2.detach_network_interface(AttachmentId=resource.NetworkInterface(interface).attachment["AttachmentId"], **how)


def places():
    """Device index and status of each interface of the instance."""
    instance.reload()
    found = [(i["NetworkInterfaceId"], i["Attachment"]) for i in instance.network_interfaces_attribute]
    return [(id, attachment["DeviceIndex"], attachment["Status"]) for id, attachment in found]


group = ec2.create_security_group(GroupName="inner", Description="x", VpcId=vpc)["GroupId"]
hot = [ec2.create_network_interface(SubnetId=back, Groups=[group])["NetworkInterface"]["NetworkInterfaceId"] for _ in range(4)]
place = {"InstanceId": instance.id, "NetworkInterfaceId": hot[0]}
same(code(ec2.attach_network_interface, DeviceIndex=1, **place), "InvalidParameterValue")
same((tap(second), tap(hot[0])), (True, False))
came = ec2.attach_network_interface(DeviceIndex=4, **place)["AttachmentId"]
own = resource.NetworkInterface(hot[0])
same((own.status, own.attachment["AttachmentId"], own.attachment["Status"], own.attachment["DeleteOnTermination"]), ("in-use", came, "attached", False))
same(places(), [(first, 0, "attached"), (second, 1, "attached"), (hot[0], 4, "attached")])
same([i["Groups"][0]["GroupId"] for i in instance.network_interfaces_attribute][2], group)
same((tap(hot[0]), own.private_ip_address in kernel("route")), (True, True))
same(code(ec2.attach_network_interface, DeviceIndex=5, **place), "InvalidNetworkInterface.InUse")
same(code(ec2.delete_network_interface, NetworkInterfaceId=hot[0]), "InvalidNetworkInterface.InUse")
same(code(ec2.detach_network_interface, AttachmentId=resource.NetworkInterface(first).attachment["AttachmentId"]), "OperationNotPermitted")
detach(hot[0])
free(hot[0])
same(own.private_ip_address in kernel("route"), False)
same(code(ec2.detach_network_interface, AttachmentId=came), "InvalidAttachmentID.NotFound")

# A secondary address with an Elastic one of its own, which goes along to another interface.
spare = ec2.create_network_interface(SubnetId=front)["NetworkInterface"]["NetworkInterfaceId"]
floating = ec2.assign_private_ip_addresses(NetworkInterfaceId=first, SecondaryPrivateIpAddressCount=1)
floating = floating["AssignedPrivateIpAddresses"][0]["PrivateIpAddress"]
third = ec2.allocate_address(Domain="vpc")
lead = {"AllocationId": third["AllocationId"], "PrivateIpAddress": floating}
same(code(ec2.associate_address, NetworkInterfaceId=spare, **lead), "InvalidParameterValue")
same(code(ec2.associate_address, InstanceId=instance.id, **{**lead, "PrivateIpAddress": "x"}), "InvalidParameterValue")
association = ec2.associate_address(InstanceId=instance.id, **lead)["AssociationId"]


def publics(addresses):
    return {a["PrivateIpAddress"]: a.get("Association", {}).get("PublicIp") for a in addresses}


def leads(address):
    """The link of the host by which an address is reached."""
    found = subprocess.run(["ip", "route", "show", address], check=True, capture_output=True, text=True).stdout.split()
    return found[found.index("dev") + 1] if found else None


instance.reload()
expected = {instance.private_ip_address: elastic["PublicIp"], floating: third["PublicIp"]}
same(publics(instance.network_interfaces_attribute[0]["PrivateIpAddresses"]), expected)
same(publics(resource.NetworkInterface(first).private_ip_addresses), expected)
same(instance.public_ip_address, elastic["PublicIp"])
shown = ec2.describe_addresses(AllocationIds=[third["AllocationId"]])["Addresses"][0]
same((shown["PrivateIpAddress"], shown["InstanceId"], shown["AssociationId"]), (floating, instance.id, association))
same(leads(third["PublicIp"]), f"kg{vpc[-12:]}")
took = {"NetworkInterfaceId": spare, "PrivateIpAddresses": [floating]}
same(code(ec2.assign_private_ip_addresses, **took), "InvalidIPAddress.InUse")
ec2.assign_private_ip_addresses(AllowReassignment=True, **took)
same(leads(third["PublicIp"]), None)
same(publics(resource.NetworkInterface(first).private_ip_addresses), {instance.private_ip_address: elastic["PublicIp"]})
shown = ec2.describe_addresses(AllocationIds=[third["AllocationId"]])["Addresses"][0]
same((shown["NetworkInterfaceId"], shown.get("InstanceId"), shown["AssociationId"]), (spare, None, association))
ec2.assign_private_ip_addresses(NetworkInterfaceId=first, PrivateIpAddresses=[floating], AllowReassignment=True)
same(leads(third["PublicIp"]), f"kg{vpc[-12:]}")
ec2.unassign_private_ip_addresses(NetworkInterfaceId=first, PrivateIpAddresses=[floating])
same((leads(third["PublicIp"]), leads(elastic["PublicIp"])), (None, f"kg{vpc[-12:]}"))
ec2.release_address(AllocationId=third["AllocationId"])
ec2.delete_network_interface(NetworkInterfaceId=spare)

# One that it was started with too, and not more than there is room for.
detach(second)
free(second)
for index, each in enumerate([second, *hot[:3]], 1):
    ec2.attach_network_interface(DeviceIndex=index, InstanceId=instance.id, NetworkInterfaceId=each)
same(code(ec2.attach_network_interface, DeviceIndex=5, InstanceId=instance.id, NetworkInterfaceId=hot[3]), "AttachmentLimitExceeded")
same(resource.NetworkInterface(hot[3]).status, "available")
detach(hot[1], Force=True)
free(hot[1])
ec2.modify_network_interface_attribute(NetworkInterfaceId=second, Attachment={"AttachmentId": attachment, "DeleteOnTermination": True})

# They stay over a restart of the guest, and keep their places over stop and start.
kept = [(first, 0, "attached"), (second, 1, "attached"), (hot[0], 2, "attached"), (hot[2], 4, "attached")]
instance.reboot()
same(places(), kept)
instance.stop(Force=True)
instance.wait_until_stopped()
same(places(), kept)
instance.start()
instance.wait_until_running()
same((places(), tap(hot[0]), tap(hot[2])), (kept, True, True))
detach(hot[2])
free(hot[2])
for gone in hot[1:]:
    ec2.delete_network_interface(NetworkInterfaceId=gone)
ec2.modify_network_interface_attribute(NetworkInterfaceId=hot[0], Attachment={
    "AttachmentId": resource.NetworkInterface(hot[0]).attachment["AttachmentId"], "DeleteOnTermination": True})

# The one that stays is there after the end, the others are not.
instance.terminate()
instance.wait_until_terminated()
same([i["NetworkInterfaceId"] for i in ec2.describe_network_interfaces()["NetworkInterfaces"]], [first])
same(resource.NetworkInterface(first).status, "available")
ec2.delete_network_interface(NetworkInterfaceId=first)
for address in [elastic, extra]:
    ec2.release_address(AllocationId=address["AllocationId"])
mapped = resource.Instance(ec2.run_instances(SubnetId=front, **wish)["Instances"][0]["InstanceId"])
mapped.wait_until_running()
mapped.reload()
same(mapped.public_ip_address is not None, True)
mapped.terminate()
mapped.wait_until_terminated()
print("done")
