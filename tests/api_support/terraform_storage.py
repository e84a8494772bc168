"""Terraform's AWS provider: volumes, snapshots, images and an instance of them, without drift."""

import os

from client import client, same
from terraform_configuration import Configuration

ec2 = client("ec2")
base = ec2.register_image(Name="guest", ImageLocation=os.environ["KILN_TEST_IMAGE"])["ImageId"]
ec2.get_waiter("image_available").wait(ImageIds=[base], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
storage = Configuration("storage", image=base)
for size, kind in [(1, "gp3"), (2, "gp2")]:
    text = storage.apply(size=size, type=kind)
    assert "1 changed, 0 destroyed" in text or "7 added" in text, text
    [volume] = ec2.describe_volumes(Filters=[{"Name": "tag:Name", "Values": ["data"]}])["Volumes"]
    same((volume["Size"], volume["VolumeType"]), (size, kind))
assert "7 destroyed" in storage.destroy(size=size, type=kind)
same((ec2.describe_volumes()["Volumes"], ec2.describe_snapshots()["Snapshots"]), ([], []))
same([i["ImageId"] for i in ec2.describe_images(Owners=["self"])["Images"]], [base])
print("done")
