"""Volumes at launch and after it, images of them and copies, with boto3."""

import os
import time

from client import client, code, same

ec2 = client("ec2")
soon = {"Delay": 1, "MaxAttempts": 60}


def wait(name, **arguments):
    ec2.get_waiter(name).wait(WaiterConfig=soon, **arguments)


def images(name):
    return ec2.describe_images(Owners=["self"], Filters=[{"Name": "name", "Values": [name]}])["Images"]


def devices(mappings):
    return {m["DeviceName"]: m["Ebs"] for m in mappings}


def instance(id):
    return ec2.describe_instances(InstanceIds=[id])["Reservations"][0]["Instances"][0]


def volume(id):
    return ec2.describe_volumes(VolumeIds=[id])["Volumes"][0]


def tags(id):
    found = ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [id]}])["Tags"]
    return {t["Key"]: t["Value"] for t in found}


# An image of a file is pending when the answer comes, and then there.
base = ec2.register_image(Name="guest", ImageLocation=os.environ["KILN_TEST_IMAGE"], Description="a file", TagSpecifications=[
    {"ResourceType": "image", "Tags": [{"Key": "kind", "Value": "test"}]}])["ImageId"]
same(images("guest")[0]["Description"], "a file")
same(code(ec2.register_image, Name="guest", ImageLocation=os.environ["KILN_TEST_IMAGE"]), "InvalidAMIName.Duplicate")
same(code(ec2.register_image, Name="none"), "InvalidParameterCombination")
same(code(ec2.register_image, Name="none", ImageLocation=os.environ["KILN_TEST_IMAGE"], RootDeviceName="/dev/sda1"), "UnsupportedOperation")
wait("image_available", ImageIds=[base])
same((images("guest")[0]["ImageId"], tags(base)), (base, {"kind": "test"}))

# Volumes at launch: refusals that change nothing.
wish = {"ImageId": base, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1}
for mapping, expected in [
    ({"DeviceName": "/dev/sdf", "Ebs": {}}, "InvalidBlockDeviceMapping"),
    ({"DeviceName": "/dev/sdf"}, "InvalidBlockDeviceMapping"),
    ({"Ebs": {"VolumeSize": 1}}, "InvalidBlockDeviceMapping"),
    ({"DeviceName": "/dev/../f", "Ebs": {"VolumeSize": 1}}, "InvalidBlockDeviceMapping"),
    ({"DeviceName": "/dev/sda1", "NoDevice": ""}, "InvalidBlockDeviceMapping"),
    ({"DeviceName": "/dev/sdf", "NoDevice": "", "Ebs": {"VolumeSize": 1}}, "InvalidBlockDeviceMapping"),
    ({"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1 << 30}}, "InvalidBlockDeviceMapping"),
    ({"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 0}}, "InvalidBlockDeviceMapping"),
    ({"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": -1}}, "InvalidParameterValue"),
    ({"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": "snap-00000000000000001"}}, "InvalidSnapshot.NotFound"),
    ({"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": "snap-x"}}, "InvalidSnapshotID.Malformed"),
    ({"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": "snap-00000000000000001"}}, "InvalidBlockDeviceMapping"),
    ({"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "Encrypted": True}}, "UnsupportedOperation"),
    ({"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "KmsKeyId": "x"}}, "UnsupportedOperation"),
    ({"DeviceName": "/dev/sdf", "VirtualName": "ephemeral0"}, "UnsupportedOperation"),
    ({"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "VolumeType": "gp2", "Iops": 3000}}, "InvalidParameterCombination"),
    ({"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "VolumeType": "io1"}}, "InvalidParameterCombination"),
    ({"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "Throughput": 1}}, "InvalidParameterValue"),
]:
    same((mapping, code(ec2.run_instances, **wish, BlockDeviceMappings=[mapping])), (mapping, expected))
two = [{"DeviceName": name, "Ebs": {"VolumeSize": 1}} for name in ["/dev/sdf", "/dev/xvdf"]]
same(code(ec2.run_instances, **wish, BlockDeviceMappings=two), "InvalidBlockDeviceMapping")
many = [{"DeviceName": f"/dev/sd{letter}", "Ebs": {"VolumeSize": 1}} for letter in "bcdefghijklmnopqr"]
same(code(ec2.run_instances, **wish, BlockDeviceMappings=many), "AttachmentLimitExceeded")
same((ec2.describe_instances()["Reservations"], ec2.describe_volumes()["Volumes"]), ([], []))

# A launch with a root volume of its own and two more.
one = ec2.run_instances(**wish, Monitoring={"Enabled": True}, BlockDeviceMappings=[
    {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 2, "VolumeType": "gp2", "DeleteOnTermination": False, "Encrypted": False}},
    {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "VolumeType": "gp3", "Iops": 4000, "Throughput": 200}},
    {"DeviceName": "/dev/sdg", "Ebs": {"VolumeSize": 3, "DeleteOnTermination": False}},
], TagSpecifications=[{"ResourceType": "volume", "Tags": [{"Key": "of", "Value": "one"}]}])["Instances"][0]["InstanceId"]
wait("instance_running", InstanceIds=[one])
shown = instance(one)
same(shown["Monitoring"]["State"], "enabled")
found = devices(shown["BlockDeviceMappings"])
same({name: own["DeleteOnTermination"] for name, own in found.items()}, {"/dev/xvda": False, "/dev/sdf": True, "/dev/sdg": False})
root, first, second = (found[name]["VolumeId"] for name in ["/dev/xvda", "/dev/sdf", "/dev/sdg"])
same([(v["Size"], v["VolumeType"], v["Iops"], v.get("Throughput"), v["State"]) for v in map(volume, [root, first, second])],
     [(2, "gp2", 100, None, "in-use"), (1, "gp3", 4000, 200, "in-use"), (3, "gp3", 3000, 125, "in-use")])
same([tags(v) for v in [root, first, second]], [{"of": "one"}] * 3)
same(ec2.unmonitor_instances(InstanceIds=[one])["InstanceMonitorings"][0]["Monitoring"]["State"], "disabled")
same(ec2.monitor_instances(InstanceIds=[one])["InstanceMonitorings"][0]["Monitoring"]["State"], "enabled")
same(code(ec2.monitor_instances, InstanceIds=["i-00000000000000001"]), "InvalidInstanceID.NotFound")
same(ec2.get_instance_uefi_data(InstanceId=one)["InstanceId"], one)

# What goes with it is changed.
change = lambda device, goes: {"DeviceName": device, "Ebs": {"DeleteOnTermination": goes}}
ec2.modify_instance_attribute(InstanceId=one, BlockDeviceMappings=[change("/dev/xvda", True), change("/dev/sdf", False)])
same(code(ec2.modify_instance_attribute, InstanceId=one, BlockDeviceMappings=[change("/dev/sdf", True), change("/dev/sdz", True)]),
     "InvalidInstanceAttributeValue")
found = devices(instance(one)["BlockDeviceMappings"])
same({name: own["DeleteOnTermination"] for name, own in found.items()}, {"/dev/xvda": True, "/dev/sdf": False, "/dev/sdg": False})

# An image of it while it runs: its guest powers off and starts again, unless it shall not.
def boots():
    return ec2.get_console_output(InstanceId=one).get("Output", "").count("waiting for the power button")


def until(met):
    for _ in range(240):
        if met():
            return
        time.sleep(0.5)
    raise AssertionError(ec2.get_console_output(InstanceId=one))


until(lambda: boots() == 1)
address = instance(one)["PrivateIpAddress"]
for name, flag, starts in [("still", {"NoReboot": True}, 1), ("again", {}, 2), ("third", {"NoReboot": False}, 3)]:
    made = ec2.create_image(InstanceId=one, Name=name, **flag)["ImageId"]
    wait("image_available", ImageIds=[made])
    until(lambda: boots() == starts)
    same((instance(one)["State"]["Name"], instance(one)["PrivateIpAddress"]), ("running", address))
    ec2.deregister_image(ImageId=made, DeleteAssociatedSnapshots=True)

# Another type and larger while it runs, and larger while it is stopped.
same(code(ec2.modify_volume, VolumeId=first), "InvalidParameterCombination")
same(code(ec2.modify_volume, VolumeId="vol-00000000000000001", Size=2), "InvalidVolume.NotFound")
same(code(ec2.describe_volumes_modifications, VolumeIds=[first]), "InvalidVolumeModification.NotFound")
done = ec2.modify_volume(VolumeId=first, VolumeType="gp2")["VolumeModification"]
same((done["ModificationState"], done["OriginalVolumeType"], done["TargetVolumeType"], done["TargetIops"]), ("completed", "gp3", "gp2", 100))
done = ec2.modify_volume(VolumeId=first, Size=2)["VolumeModification"]
same((done["OriginalSize"], done["TargetSize"], volume(first)["Size"]), (1, 2, 2))
ec2.stop_instances(InstanceIds=[one], Force=True)
wait("instance_stopped", InstanceIds=[one])
for id, size in [(root, 4), (first, 3)]:
    done = ec2.modify_volume(VolumeId=id, Size=size)["VolumeModification"]
    same((done["TargetSize"], done["Progress"], volume(id)["Size"]), (size, 100, size))
same(code(ec2.modify_volume, VolumeId=root, Size=1), "InvalidParameterValue")
same(code(ec2.modify_volume, VolumeId=root, Size=1 << 20), "InvalidParameterValue")
same(code(ec2.modify_volume, VolumeId=root, VolumeType="gp4"), "InvalidParameterValue")
found = ec2.describe_volumes_modifications(Filters=[{"Name": "modification-state", "Values": ["completed"]}])["VolumesModifications"]
same({m["VolumeId"]: (m["OriginalSize"], m["TargetSize"]) for m in found}, {root: (2, 4), first: (2, 3)})

# An image of all volumes but one, with another one.
own = ec2.create_image(InstanceId=one, Name="own", NoReboot=True, BlockDeviceMappings=[
    {"DeviceName": "/dev/sdg", "NoDevice": ""}, {"DeviceName": "/dev/sdh", "Ebs": {"VolumeSize": 1}},
    {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 5, "DeleteOnTermination": True}},
], TagSpecifications=[{"ResourceType": "snapshot", "Tags": [{"Key": "of", "Value": "own"}]}])["ImageId"]
wait("image_available", ImageIds=[own])
of_own = devices(images("own")[0]["BlockDeviceMappings"])
same({name: (d["VolumeSize"], d["VolumeType"], "SnapshotId" in d) for name, d in of_own.items()},
     {"/dev/xvda": (4, "gp2", True), "/dev/sdf": (5, "gp2", True), "/dev/sdh": (1, "gp3", False)})
same(code(ec2.create_image, InstanceId=one, Name="own", NoReboot=True), "InvalidAMIName.Duplicate")
same(code(ec2.create_image, InstanceId=one, Name="bad", NoReboot=True, BlockDeviceMappings=[{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1}}]),
     "InvalidBlockDeviceMapping")
same(len(ec2.describe_snapshots()["Snapshots"]), 2)
root_snapshot, data_snapshot = of_own["/dev/xvda"]["SnapshotId"], of_own["/dev/sdf"]["SnapshotId"]
same(tags(root_snapshot), {"of": "own"})
ec2.create_tags(Resources=[root_snapshot], Tags=[{"Key": "more", "Value": "tags"}])
same(code(ec2.delete_snapshot, SnapshotId=root_snapshot), "InvalidSnapshot.InUse")
same(ec2.describe_snapshot_attribute(SnapshotId=root_snapshot, Attribute="createVolumePermission")["CreateVolumePermissions"], [])

# Its description and who may launch it.
ec2.modify_image_attribute(ImageId=own, Description={"Value": "all of one"})
ec2.modify_image_attribute(ImageId=own, LaunchPermission={"Add": [{"UserId": "000000000000"}]})
same(code(ec2.modify_image_attribute, ImageId=own, LaunchPermission={"Add": [{"UserId": "111111111111"}]}), "InvalidAMIAttributeItemValue")
same(code(ec2.modify_image_attribute, ImageId=own, LaunchPermission={"Add": [{"Group": "all"}]}), "UnsupportedOperation")
same(code(ec2.modify_image_attribute, ImageId=own), "InvalidParameterCombination")
same(ec2.describe_image_attribute(ImageId=own, Attribute="description")["Description"]["Value"], "all of one")
same(ec2.describe_image_attribute(ImageId=own, Attribute="launchPermission")["LaunchPermissions"], [])
same(len(ec2.describe_image_attribute(ImageId=own, Attribute="blockDeviceMapping")["BlockDeviceMappings"]), 3)

# Copies, with what is theirs; an image registered of a snapshot.
copy = {"Name": "copy", "SourceImageId": own, "SourceRegion": "us-east-1", "ClientToken": "copy"}
copied = [ec2.copy_image(**copy)["ImageId"] for _ in range(2)]
same(copied[0], copied[1])
same(code(ec2.copy_image, **{**copy, "Name": "other"}), "IdempotentParameterMismatch")
same(code(ec2.copy_image, Name="far", SourceImageId=own, SourceRegion="eu-west-1"), "InvalidParameterValue")
same(code(ec2.copy_image, Name="copy", SourceImageId=own, SourceRegion="us-east-1"), "InvalidAMIName.Duplicate")
same(code(ec2.copy_image, Name="more", SourceImageId="ami-00000000000000001", SourceRegion="us-east-1"), "InvalidAMIID.NotFound")
of_copy = devices(images("copy")[0]["BlockDeviceMappings"])
assert of_copy["/dev/xvda"]["SnapshotId"] != root_snapshot, of_copy
same(images("copy")[0]["Description"], "all of one")
moved = ec2.copy_snapshot(SourceSnapshotId=root_snapshot, SourceRegion="us-east-1", Description="moved", TagSpecifications=[
    {"ResourceType": "snapshot", "Tags": [{"Key": "kind", "Value": "copy"}]}])
same(moved["Tags"], [{"Key": "kind", "Value": "copy"}])
same(code(ec2.copy_snapshot, SourceSnapshotId="snap-00000000000000001", SourceRegion="us-east-1"), "InvalidSnapshot.NotFound")
registered = ec2.register_image(Name="registered", Architecture="x86_64", VirtualizationType="hvm", RootDeviceName="/dev/sda1", EnaSupport=True, SriovNetSupport="simple",
    BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": moved["SnapshotId"], "DeleteOnTermination": True, "VolumeSize": 6}},
                         {"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": data_snapshot}}])["ImageId"]
shown = images("registered")[0]
same((shown["State"], shown["RootDeviceName"], [d["Ebs"].get("VolumeSize") for d in shown["BlockDeviceMappings"]]),
     ("available", "/dev/sda1", [6, 3]))
same((shown["EnaSupport"], shown["SriovNetSupport"]), (True, "simple"))
for mappings, expected in [
    ([{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 1}}], "InvalidBlockDeviceMapping"),
    ([{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": "snap-00000000000000001"}}], "InvalidSnapshot.NotFound"),
    ([{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": root_snapshot, "VolumeSize": 1}}], "InvalidBlockDeviceMapping"),
    ([{"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": root_snapshot}}], "InvalidParameterCombination"),
]:
    same(code(ec2.register_image, Name="bad", BlockDeviceMappings=mappings), expected)

# The first goes, and its images; what was made of them boots.
ec2.terminate_instances(InstanceIds=[one])
wait("instance_terminated", InstanceIds=[one])
same({v["VolumeId"] for v in ec2.describe_volumes()["Volumes"]}, {first, second})
ec2.deregister_image(ImageId=base)
gone = ec2.deregister_image(ImageId=own, DeleteAssociatedSnapshots=True)
same({r["SnapshotId"]: r["ReturnCode"] for r in gone["DeleteSnapshotResults"]}, {root_snapshot: "success", data_snapshot: "skipped"})
launched = []
for image in [copied[0], registered]:
    launched.append(ec2.run_instances(**{**wish, "ImageId": image})["Instances"][0]["InstanceId"])
wait("instance_running", InstanceIds=launched)
same([sorted((name, volume(d["VolumeId"])["Size"]) for name, d in devices(instance(i)["BlockDeviceMappings"]).items()) for i in launched],
     [[("/dev/sdf", 5), ("/dev/sdh", 1), ("/dev/xvda", 4)], [("/dev/sda1", 6), ("/dev/sdf", 3)]])
same(instance(launched[1])["RootDeviceName"], "/dev/sda1")
same(ec2.describe_instance_attribute(InstanceId=launched[1], Attribute="rootDeviceName")["RootDeviceName"]["Value"], "/dev/sda1")
ec2.terminate_instances(InstanceIds=launched)
wait("instance_terminated", InstanceIds=launched)
for image in [copied[0], registered]:
    ec2.deregister_image(ImageId=image)
for snapshot in ec2.describe_snapshots()["Snapshots"]:
    ec2.delete_snapshot(SnapshotId=snapshot["SnapshotId"])
for id in [first, second]:
    ec2.delete_volume(VolumeId=id)

# Volumes with a token: one, with its tags, however often it is asked for.
made = {"AvailabilityZone": "us-east-1a", "Size": 1, "VolumeType": "io2", "Iops": 200, "ClientToken": "once",
        "TagSpecifications": [{"ResourceType": "volume", "Tags": [{"Key": "a", "Value": "b"}]}]}
ids = {ec2.create_volume(**made)["VolumeId"] for _ in range(3)}
same((len(ids), len(ec2.describe_volumes()["Volumes"])), (1, 1))
same(code(ec2.create_volume, **{**made, "Size": 2}), "IdempotentParameterMismatch")
same(code(ec2.create_volume, AvailabilityZone="us-east-1a", Size=1, VolumeType="io2"), "InvalidParameterCombination")
same((volume(*ids)["Iops"], tags(*ids)), (200, {"a": "b"}))
ec2.delete_volume(VolumeId=ids.pop())
same(code(ec2.create_volume, **made), "InvalidVolume.NotFound")
print("done")
