"""Instances over their lives, with boto3 and its waiters."""

import base64
import os
import time

import boto3
import botocore.session
from client import client, code, same

ec2, iam = client("ec2"), client("iam")

# An image from a file of the host.
image = ec2.register_image(Name="guest", ImageLocation=os.environ["KILN_TEST_IMAGE"], TagSpecifications=[
    {"ResourceType": "image", "Tags": [{"Key": "kind", "Value": "test"}]}])["ImageId"]
same(code(ec2.register_image, Name="guest", ImageLocation=os.environ["KILN_TEST_IMAGE"]), "InvalidAMIName.Duplicate")
same(code(ec2.register_image, Name="other", ImageLocation="relative"), "InvalidParameterValue")
same(code(ec2.register_image, Name="other", ImageLocation="/does/not/exist"), "InvalidParameterValue")
ec2.get_waiter("image_available").wait(ImageIds=[image])
found = ec2.describe_images(Owners=["self"], Filters=[{"Name": "name", "Values": ["gue*"]}, {"Name": "tag:kind", "Values": ["test"]}])
same([i["ImageId"] for i in found["Images"]], [image])
same(ec2.describe_images(Owners=["amazon"])["Images"], [])

# What an instance is launched with.
key = ec2.create_key_pair(KeyName="me", KeyType="ed25519")
group = ec2.create_security_group(GroupName="web", Description="x")["GroupId"]
trust = '{"Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}'
iam.create_role(RoleName="app", AssumeRolePolicyDocument=trust)
profile = iam.create_instance_profile(InstanceProfileName="app")["InstanceProfile"]["Arn"]
iam.add_role_to_instance_profile(InstanceProfileName="app", RoleName="app")

# Refusals that change nothing.
wish = {"ImageId": image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1}
for change, expected in [
    ({"ImageId": "ami-00000000000000001"}, "InvalidAMIID.NotFound"),
    ({"ImageId": "ami-x"}, "InvalidAMIID.Malformed"),
    ({"ImageId": group}, "InvalidAMIID.Malformed"),
    ({"InstanceType": "t9.huge"}, "InvalidParameterValue"),
    ({"KeyName": "nobody"}, "InvalidKeyPair.NotFound"),
    ({"SecurityGroupIds": ["sg-00000000000000001"]}, "InvalidGroup.NotFound"),
    ({"SecurityGroups": ["nobody"]}, "InvalidGroup.NotFound"),
    ({"SubnetId": "subnet-00000000000000001"}, "InvalidSubnetID.NotFound"),
    ({"IamInstanceProfile": {"Name": "nobody"}}, "InvalidParameterValue"),
    ({"MinCount": 2}, "InvalidParameterCombination"),
    ({"MinCount": 0}, "InvalidParameterValue"),
    ({"MaxCount": 1000}, "InstanceLimitExceeded"),
    ({"PrivateIpAddress": "10.255.255.255"}, "InvalidParameterValue"),
    ({"Placement": {"AvailabilityZone": "us-east-1f"}}, "InvalidParameterValue"),
    ({"Placement": {"Tenancy": "dedicated"}}, "UnsupportedOperation"),
    ({"UserData": "x" * 30000}, "InvalidParameterValue"),
    ({"NetworkInterfaces": [{"DeviceIndex": 1}]}, "InvalidParameterValue"),
    ({"NetworkInterfaces": [{"DeviceIndex": 0, "Ipv6AddressCount": 2}]}, "UnsupportedOperation"),
    ({"NetworkInterfaces": [{"DeviceIndex": 0, "Ipv6AddressCount": 1}]}, "InvalidParameterValue"),
    ({"BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 1 << 30}}]}, "InvalidBlockDeviceMapping"),
    ({"TagSpecifications": [{"ResourceType": "vpc", "Tags": [{"Key": "a", "Value": "b"}]}]}, "InvalidParameterValue"),
    ({"InstanceType": "r7i.4xlarge", "MinCount": 50, "MaxCount": 50}, "InsufficientInstanceCapacity"),
    ({"CpuOptions": {"CoreCount": 1}}, "UnsupportedOperation"),
    ({"DryRun": True}, "DryRunOperation"),
]:
    same(code(ec2.run_instances, **{**wish, **change}), expected)
same(ec2.describe_instances()["Reservations"], [])

# A launch, twice with one token.
full = {**wish, "KeyName": "me", "SecurityGroupIds": [group], "UserData": "#!/bin/sh\necho hello\n", "ClientToken": "once",
        "IamInstanceProfile": {"Arn": profile}, "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 2, "DeleteOnTermination": True}}],
        "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "web"}, {"Key": "x", "Value": "<&>"}]},
                              {"ResourceType": "volume", "Tags": [{"Key": "of", "Value": "web"}]}]}
first, again = ec2.run_instances(**full), ec2.run_instances(**full)
same(first["ReservationId"], again["ReservationId"])
same(code(ec2.run_instances, **{**full, "KeyName": "other"}), "IdempotentParameterMismatch")
made = first["Instances"][0]
one = made["InstanceId"]
same((made["State"]["Name"], made["State"]["Code"], made["ImageId"], made["KeyName"]), ("pending", 0, image, "me"))
for name in ["instance_exists", "instance_running"]:
    ec2.get_waiter(name).wait(InstanceIds=[one], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
shown = ec2.describe_instances(InstanceIds=[one])["Reservations"][0]["Instances"][0]
same((shown["State"]["Code"], shown["InstanceType"], shown["IamInstanceProfile"]["Arn"]), (16, "t3.nano", profile))
same([g["GroupId"] for g in shown["SecurityGroups"]], [group])
same({t["Key"]: t["Value"] for t in shown["Tags"]}, {"Name": "web", "x": "<&>"})
same(shown["NetworkInterfaces"][0]["PrivateIpAddress"], shown["PrivateIpAddress"])
volume = shown["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
same([t["Value"] for t in ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [volume]}])["Tags"]], ["web"])
for name, value, count in [
    ("instance-state-name", "running", 1), ("instance-state-name", "stopped", 0), ("tag:Name", "w*", 1), ("image-id", image, 1),
    ("vpc-id", shown["VpcId"], 1), ("network-interface.group-id", group, 1), ("reservation-id", first["ReservationId"], 1),
    ("private-ip-address", "1.2.3.4", 0), ("iam-instance-profile.arn", profile, 1), ("owner-id", "000000000000", 1),
]:
    same((name, len(ec2.describe_instances(Filters=[{"Name": name, "Values": [value]}])["Reservations"])), (name, count))
same(code(ec2.describe_instances, InstanceIds=[one], MaxResults=5), "InvalidParameterCombination")
same(code(ec2.describe_instances, InstanceIds=["i-00000000000000001"]), "InvalidInstanceID.NotFound")
same(code(ec2.describe_instances, InstanceIds=["i-xyz"]), "InvalidInstanceID.Malformed")
interface = ec2.describe_network_interfaces(Filters=[{"Name": "attachment.instance-id", "Values": [one]}])["NetworkInterfaces"][0]
same(interface["NetworkInterfaceId"], shown["NetworkInterfaces"][0]["NetworkInterfaceId"])

# Its guest's console, its status, its attributes.
ec2.get_waiter("instance_status_ok").wait(InstanceIds=[one], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
console = ec2.get_console_output(InstanceId=one)["Output"]
assert "waiting for the power button" in console, console
same(ec2.get_password_data(InstanceId=one)["PasswordData"], "")


def attribute(name):
    answer = ec2.describe_instance_attribute(InstanceId=one, Attribute=name)
    return answer[name[0].upper() + name[1:]].get("Value")


same(base64.b64decode(attribute("userData")), b"#!/bin/sh\necho hello\n")
same((attribute("instanceType"), attribute("disableApiTermination")), ("t3.nano", False))
same(code(ec2.modify_instance_attribute, InstanceId=one, InstanceType={"Value": "t3.micro"}), "IncorrectInstanceState")
same(code(ec2.modify_instance_attribute, InstanceId=one), "InvalidParameterCombination")
ec2.modify_instance_attribute(InstanceId=one, DisableApiTermination={"Value": True})
same(code(ec2.terminate_instances, InstanceIds=[one]), "OperationNotPermitted")
ec2.modify_instance_attribute(InstanceId=one, Attribute="disableApiTermination", Value="false")
ec2.modify_instance_attribute(InstanceId=one, InstanceInitiatedShutdownBehavior={"Value": "terminate"})
same(attribute("instanceInitiatedShutdownBehavior"), "terminate")
ec2.modify_instance_attribute(InstanceId=one, InstanceInitiatedShutdownBehavior={"Value": "stop"})
ec2.modify_instance_attribute(InstanceId=one, SourceDestCheck={"Value": False})
ec2.modify_instance_attribute(InstanceId=one, DisableApiStop={"Value": False})
same(attribute("sourceDestCheck"), False)
ec2.modify_instance_attribute(InstanceId=one, SourceDestCheck={"Value": True})
same((attribute("sourceDestCheck"), attribute("ebsOptimized")), (True, False))
same(code(ec2.modify_instance_attribute, InstanceId=one, EbsOptimized={"Value": True}), "IncorrectInstanceState")


def credits():
    return ec2.describe_instance_credit_specifications(InstanceIds=[one])["InstanceCreditSpecifications"][0]["CpuCredits"]


same(credits(), "unlimited")
changed = ec2.modify_instance_credit_specification(InstanceCreditSpecifications=[
    {"InstanceId": one, "CpuCredits": "standard"}, {"InstanceId": "i-00000000000000001", "CpuCredits": "standard"}])
same([i["InstanceId"] for i in changed["SuccessfulInstanceCreditSpecifications"]], [one])
same([i["Error"]["Code"] for i in changed["UnsuccessfulInstanceCreditSpecifications"]], ["InvalidInstanceID.NotFound"])
same(credits(), "standard")
options = ec2.modify_instance_metadata_options(InstanceId=one, HttpTokens="optional")["InstanceMetadataOptions"]
same((options["HttpTokens"], options["HttpPutResponseHopLimit"]), ("optional", 2))
default = ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"][0]["GroupId"]
ec2.modify_instance_attribute(InstanceId=one, Groups=[default, group])
same(len(ec2.describe_instance_attribute(InstanceId=one, Attribute="groupSet")["Groups"]), 2)
ec2.modify_network_interface_attribute(NetworkInterfaceId=interface["NetworkInterfaceId"], Groups=[group])

# Profile and address.
association = ec2.describe_iam_instance_profile_associations(Filters=[{"Name": "instance-id", "Values": [one]}])["IamInstanceProfileAssociations"][0]
same(code(ec2.associate_iam_instance_profile, InstanceId=one, IamInstanceProfile={"Name": "app"}), "IncorrectState")
ec2.disassociate_iam_instance_profile(AssociationId=association["AssociationId"])
ec2.associate_iam_instance_profile(InstanceId=one, IamInstanceProfile={"Name": "app"})
address = ec2.allocate_address()
ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=one)
same(boto3.resource("ec2").Instance(one).public_ip_address, address["PublicIp"])
same(code(ec2.release_address, AllocationId=address["AllocationId"]), "InvalidIPAddress.InUse")

# Stop, another type, start; the address stays.
change = ec2.stop_instances(InstanceIds=[one])["StoppingInstances"][0]
same((change["PreviousState"]["Name"], change["CurrentState"]["Name"]), ("running", "stopping"))
ec2.get_waiter("instance_stopped").wait(InstanceIds=[one], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
stopped = boto3.resource("ec2").Instance(one)
same((stopped.state_reason["Code"], stopped.state_transition_reason[:14]), ("Client.UserInitiatedShutdown", "User initiated"))
same(ec2.describe_instance_status(InstanceIds=[one])["InstanceStatuses"], [])
same(len(ec2.describe_instance_status(InstanceIds=[one], IncludeAllInstances=True)["InstanceStatuses"]), 1)
ec2.modify_instance_attribute(InstanceId=one, InstanceType={"Value": "t3.micro"})
ec2.modify_instance_attribute(InstanceId=one, UserData={"Value": b"other"})
same(base64.b64decode(attribute("userData")), b"other")
same(code(ec2.reboot_instances, InstanceIds=[one]), "IncorrectInstanceState")
same(ec2.start_instances(InstanceIds=[one])["StartingInstances"][0]["CurrentState"]["Name"], "pending")
ec2.get_waiter("instance_running").wait(InstanceIds=[one], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
stopped.reload()
same((stopped.instance_type, stopped.public_ip_address), ("t3.micro", address["PublicIp"]))

# Volumes: made, attached while stopped, taken as a snapshot, made anew from it; an image of all.
ec2.stop_instances(InstanceIds=[one], Force=True)
ec2.get_waiter("instance_stopped").wait(InstanceIds=[one], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
same([v["Attachments"][0]["InstanceId"] for v in ec2.describe_volumes(VolumeIds=[volume])["Volumes"]], [one])
same(code(ec2.create_volume, AvailabilityZone="us-east-1a"), "MissingParameter")
same(code(ec2.create_volume, AvailabilityZone="us-east-1a", SnapshotId="snap-00000000000000001"), "InvalidSnapshot.NotFound")
tags = [{"ResourceType": "volume", "Tags": [{"Key": "kind", "Value": "data"}]}]
made = [ec2.create_volume(AvailabilityZone="us-east-1a", Size=1, ClientToken="data", TagSpecifications=tags) for _ in range(2)]
same(made[0]["VolumeId"], made[1]["VolumeId"])
data = made[0]["VolumeId"]
ec2.get_waiter("volume_available").wait(VolumeIds=[data])
ec2.attach_volume(VolumeId=data, InstanceId=one, Device="/dev/sdf")
ec2.get_waiter("volume_in_use").wait(VolumeIds=[data])
mappings = ec2.describe_instances(InstanceIds=[one])["Reservations"][0]["Instances"][0]["BlockDeviceMappings"]
same([(m["DeviceName"], m["Ebs"]["VolumeId"]) for m in mappings], [("/dev/xvda", volume), ("/dev/sdf", data)])
same(code(ec2.delete_volume, VolumeId=data), "VolumeInUse")
same(code(ec2.attach_volume, VolumeId=data, InstanceId=one, Device="/dev/sdg"), "VolumeInUse")
snapshot = ec2.create_snapshot(VolumeId=data, Description="of data")["SnapshotId"]
ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
same(ec2.describe_snapshots(OwnerIds=["self"], SnapshotIds=[snapshot])["Snapshots"][0]["Description"], "of data")
copy = ec2.create_volume(AvailabilityZone="us-east-1a", SnapshotId=snapshot)
same((copy["Size"], copy["SnapshotId"]), (1, snapshot))
own = ec2.create_image(InstanceId=one, Name="of-one", NoReboot=True)["ImageId"]
ec2.get_waiter("image_available").wait(ImageIds=[own], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
two = ec2.run_instances(ImageId=own, InstanceType="t3.nano", MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
ec2.get_waiter("instance_running").wait(InstanceIds=[two], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
ec2.terminate_instances(InstanceIds=[two])
ec2.get_waiter("instance_terminated").wait(InstanceIds=[two], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
same(code(ec2.detach_volume, VolumeId=volume), "OperationNotPermitted")
ec2.detach_volume(VolumeId=data)
same(code(ec2.detach_volume, VolumeId=data), "IncorrectState")
for gone in [data, copy["VolumeId"]]:
    ec2.delete_volume(VolumeId=gone)
same(code(ec2.describe_volumes, VolumeIds=[data]), "InvalidVolume.NotFound")
ec2.delete_snapshot(SnapshotId=snapshot)
ec2.start_instances(InstanceIds=[one])
ec2.get_waiter("instance_running").wait(InstanceIds=[one], WaiterConfig={"Delay": 1, "MaxAttempts": 60})

# Volumes come to a running instance and go from it.
def let_go(id):
    """A guest may be quicker than the answer."""
    state = ec2.detach_volume(VolumeId=id)["State"]
    assert state in ("detaching", "detached"), state


hot = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
place = {"VolumeId": hot, "InstanceId": one, "Device": "/dev/sdh"}
same(ec2.attach_volume(**place)["State"], "attached")
ec2.get_waiter("volume_in_use").wait(VolumeIds=[hot])
def attachments(): return ec2.describe_volumes(VolumeIds=[hot])["Volumes"][0]["Attachments"]
same([(a["InstanceId"], a["Device"], a["State"]) for a in attachments()], [(one, "/dev/sdh", "attached")])
mappings = ec2.describe_instances(InstanceIds=[one])["Reservations"][0]["Instances"][0]["BlockDeviceMappings"]
same([(m["DeviceName"], m["Ebs"]["VolumeId"]) for m in mappings], [("/dev/xvda", volume), ("/dev/sdh", hot)])
same(code(ec2.attach_volume, **place), "VolumeInUse")
same(code(ec2.delete_volume, VolumeId=hot), "VolumeInUse")
same(code(ec2.detach_volume, VolumeId=volume), "OperationNotPermitted")
let_go(hot)
ec2.get_waiter("volume_available").wait(VolumeIds=[hot], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
same((attachments(), code(ec2.detach_volume, VolumeId=hot)), ([], "IncorrectState"))
spare = [ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"] for _ in range(9)]
for n, each in enumerate(spare[:8]):
    ec2.attach_volume(VolumeId=each, InstanceId=one, Device=f"/dev/sd{'ijklmnop'[n]}")
same(code(ec2.attach_volume, VolumeId=spare[8], InstanceId=one, Device="/dev/sdq"), "AttachmentLimitExceeded")
for each in spare[:8]:
    same(ec2.detach_volume(VolumeId=each, Force=True)["State"], "detached")
for each in spare:
    ec2.delete_volume(VolumeId=each)
# It stays over a restart of the guest, and over stop and start.
for _ in range(600):
    # The guest has still to let go of what was taken from it.
    if code(ec2.attach_volume, **place) != "AttachmentLimitExceeded":
        break
    time.sleep(0.1)
same([a["State"] for a in attachments()], ["attached"])
ec2.reboot_instances(InstanceIds=[one])
ec2.stop_instances(InstanceIds=[one], Force=True)
ec2.get_waiter("instance_stopped").wait(InstanceIds=[one], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
same([a["State"] for a in attachments()], ["attached"])
ec2.start_instances(InstanceIds=[one])
ec2.get_waiter("instance_running").wait(InstanceIds=[one], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
let_go(hot)
ec2.get_waiter("volume_available").wait(VolumeIds=[hot], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
ec2.delete_volume(VolumeId=hot)

# The end.
same(ec2.terminate_instances(InstanceIds=[one])["TerminatingInstances"][0]["CurrentState"]["Name"], "shutting-down")
ec2.get_waiter("instance_terminated").wait(InstanceIds=[one], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
gone = ec2.describe_instances(InstanceIds=[one])["Reservations"][0]["Instances"][0]
same((gone["State"]["Code"], gone.get("NetworkInterfaces"), gone.get("PrivateIpAddress")), (48, [], None))
same(code(ec2.start_instances, InstanceIds=[one]), "IncorrectInstanceState")
ec2.terminate_instances(InstanceIds=[one])
ec2.release_address(AllocationId=address["AllocationId"])
ec2.delete_security_group(GroupId=group)
# Two interfaces, in a VPC with IPv6.
vpc = ec2.create_vpc(CidrBlock="10.88.0.0/16", AmazonProvidedIpv6CidrBlock=True)["Vpc"]
block = vpc["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlock"]
same(code(ec2.create_subnet, VpcId=vpc["VpcId"], CidrBlock="10.88.1.0/24", Ipv6CidrBlock="2001:db8::/64"), "InvalidSubnet.Range")
subnet = ec2.create_subnet(VpcId=vpc["VpcId"], CidrBlock="10.88.1.0/24", Ipv6CidrBlock=block.replace("/56", "/64"))["Subnet"]
same(subnet["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlockState"]["State"], "associated")
inner = ec2.create_security_group(GroupName="inner", Description="x", VpcId=vpc["VpcId"])["GroupId"]
two = ec2.run_instances(**wish, NetworkInterfaces=[
    {"DeviceIndex": 1, "SubnetId": subnet["SubnetId"], "PrivateIpAddress": "10.88.1.9", "Groups": [inner]},
    {"DeviceIndex": 0, "SubnetId": subnet["SubnetId"], "Ipv6AddressCount": 1},
])["Instances"][0]["InstanceId"]
ec2.get_waiter("instance_running").wait(InstanceIds=[two], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
own = ec2.describe_instances(InstanceIds=[two])["Reservations"][0]["Instances"][0]["NetworkInterfaces"]
same([(i["Attachment"]["DeviceIndex"], i["PrivateIpAddress"], len(i["Ipv6Addresses"])) for i in own],
     [(0, "10.88.1.4", 1), (1, "10.88.1.9", 0)])
same([[g["GroupName"] for g in i["Groups"]] for i in own], [["default"], ["inner"]])
second = ec2.describe_network_interfaces(Filters=[{"Name": "attachment.device-index", "Values": ["1"]}])["NetworkInterfaces"]
same([i["NetworkInterfaceId"] for i in second], [own[1]["NetworkInterfaceId"]])
ec2.terminate_instances(InstanceIds=[two])
ec2.get_waiter("instance_terminated").wait(InstanceIds=[two], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
ec2.delete_subnet(SubnetId=subnet["SubnetId"])
print("done")
