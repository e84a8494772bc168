"""Packer's amazon-ebs builder makes an image, and makes it again in place of the first."""

import os
import pathlib
import subprocess

from client import client, same

ec2 = client("ec2")
template = pathlib.Path(__file__).with_name("packer.json")
base = ec2.register_image(Name="guest", ImageLocation=os.environ["KILN_TEST_IMAGE"])["ImageId"]
ec2.get_waiter("image_available").wait(ImageIds=[base], WaiterConfig={"Delay": 1, "MaxAttempts": 60})


def build(force):
    command = ["packer", "build", "-color=false", "-var", f"image={base}", "-var", f"force={force}", template]
    environment = {**os.environ, "CHECKPOINT_DISABLE": "1", "AWS_POLL_DELAY_SECONDS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def made():
    [image] = ec2.describe_images(Owners=["self"], Filters=[{"Name": "name", "Values": ["packed"]}])["Images"]
    same((image["State"], image["Description"], image["Tags"]), ("available", "made by Packer", [{"Key": "kind", "Value": "packed"}]))
    devices = {m["DeviceName"]: (m["Ebs"]["VolumeSize"], m["Ebs"]["VolumeType"]) for m in image["BlockDeviceMappings"]}
    same(devices, {"/dev/xvda": (2, "gp2"), "/dev/sdf": (1, "gp3"), "/dev/sdg": (1, "gp3")})
    snapshots = {m["Ebs"]["SnapshotId"] for m in image["BlockDeviceMappings"] if "SnapshotId" in m["Ebs"]}
    found = ec2.describe_snapshots(OwnerIds=["self"], Filters=[{"Name": "tag:of", "Values": ["packed"]}])["Snapshots"]
    same({s["SnapshotId"] for s in found}, snapshots)
    return image["ImageId"]


code, text = build("false")
assert code == 0, text
first = made()
code, text = build("false")
assert code != 0 and "is used by an existing AMI" in text, text
code, text = build("true")
assert code == 0, text
assert made() != first

# It leaves nothing of its own.
same(ec2.describe_volumes()["Volumes"], [])
same([k["KeyName"] for k in ec2.describe_key_pairs()["KeyPairs"]], [])
same([g["GroupName"] for g in ec2.describe_security_groups()["SecurityGroups"]], ["default"])
states = {i["State"]["Name"] for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]}
same(states, {"terminated"})
print("done")
