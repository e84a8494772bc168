"""Terraform's AWS provider: a small service with its network, changed and taken away."""

import os
import subprocess

from client import DIRECTORY, client, same
from terraform_configuration import Configuration, all_there, nothing_left

ec2 = client("ec2")

base = ec2.register_image(Name="guest", ImageLocation=os.environ["KILN_TEST_IMAGE"])["ImageId"]
ec2.get_waiter("image_available").wait(ImageIds=[base], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
before = all_there()
key = f"{DIRECTORY}/key"
subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
with open(f"{key}.pub") as file:
    service = Configuration("service", image=base, public_key=file.read().strip())

service.apply()
one = service.output("instance")


def instance():
    [reservation] = ec2.describe_instances(InstanceIds=[one])["Reservations"]
    return reservation["Instances"][0]


same((service.output("account"), instance()["InstanceType"], instance()["State"]["Name"]), ("000000000000", "t3.nano", "running"))
same(instance()["PublicIpAddress"], service.output("address"))

# A change of type goes through a stop, one of rules does not; the address stays.
changed = {"type": "t3.micro", "open": "[22,80]", "size": 2}
service.apply(**changed)
same((service.output("instance"), instance()["InstanceType"], instance()["State"]["Name"]), (one, "t3.micro", "running"))
same(instance()["PublicIpAddress"], service.output("address"))
[group] = ec2.describe_security_groups(GroupIds=[service.output("group")])["SecurityGroups"]
same(sorted(permission["FromPort"] for permission in group["IpPermissions"]), [22, 80])
[volume] = ec2.describe_volumes(VolumeIds=[service.output("volume")])["Volumes"]
same(volume["Size"], 2)

service.destroy(**changed)
nothing_left(before)
same(instance()["State"]["Name"], "terminated")
print("done")
