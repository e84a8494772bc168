"""An image uploaded by blocks and launched; its volume read back the same way."""

import os
import time

from blocks import SIZE, download, linear, pages, put
from client import client, same

ec2, ebs = client("ec2"), client("ebs")
soon = {"Delay": 1, "MaxAttempts": 60}


def wait(name, **arguments):
    ec2.get_waiter(name).wait(WaiterConfig=soon, **arguments)


with open(os.environ["KILN_TEST_IMAGE"], "rb") as file:
    image = file.read()
blocks = {at // SIZE: image[at:at + SIZE].ljust(SIZE, b"\0") for at in range(0, len(image), SIZE)}

uploaded = ebs.start_snapshot(VolumeSize=1, Description="an image")["SnapshotId"]
put(ebs, uploaded, blocks)
ebs.complete_snapshot(SnapshotId=uploaded, ChangedBlocksCount=len(blocks), Checksum=linear(blocks))
wait("snapshot_completed", SnapshotIds=[uploaded])
name = {"Name": "uploaded", "Architecture": "x86_64", "VirtualizationType": "hvm", "RootDeviceName": "/dev/xvda"}
ami = ec2.register_image(**name, BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": uploaded}}])["ImageId"]
wait("image_available", ImageIds=[ami])
one = ec2.run_instances(ImageId=ami, InstanceType="t3.nano", MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
wait("instance_running", InstanceIds=[one])
console = ""
for _ in range(240):
    console = ec2.get_console_output(InstanceId=one).get("Output", "")
    if "waiting for the power button" in console:
        break
    time.sleep(0.5)
assert "waiting for the power button" in console, console

# What the volume of a running instance holds, and that it has not changed.
root = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [one]}])["Volumes"][0]["VolumeId"]
taken = ec2.create_snapshot(VolumeId=root)["SnapshotId"]
wait("snapshot_completed", SnapshotIds=[taken])
assert download(ebs, taken) == {index: data for index, data in blocks.items() if any(data)}
same(pages(ebs.list_changed_blocks, "ChangedBlocks", FirstSnapshotId=uploaded, SecondSnapshotId=taken), [])

ec2.terminate_instances(InstanceIds=[one])
wait("instance_terminated", InstanceIds=[one])
ec2.deregister_image(ImageId=ami, DeleteAssociatedSnapshots=True)
ec2.delete_snapshot(SnapshotId=taken)
same((ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"], ec2.describe_volumes()["Volumes"]), ([], []))
print("done")
