"""Terraform's AWS provider: all that can be said of instances."""

import os

from client import client, code, same
from terraform_configuration import Configuration, all_there, nothing_left

ec2 = client("ec2")
base = ec2.register_image(Name="guest-1", ImageLocation=os.environ["KILN_TEST_IMAGE"])["ImageId"]
ec2.get_waiter("image_available").wait(ImageIds=[base], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
before = all_there()
machines = Configuration("machines")
machines.apply()
plain, router = machines.output("plain"), machines.output("router")
same(machines.output("seen"), router)


def instance(id):
    return ec2.describe_instances(InstanceIds=[id])["Reservations"][0]["Instances"][0]


same((instance(plain)["EbsOptimized"], instance(plain)["SourceDestCheck"]), (True, False))
same(len(instance(plain)["NetworkInterfaces"][0]["PrivateIpAddresses"]), 2)
same(len(instance(router)["NetworkInterfaces"][0]["PrivateIpAddresses"]), 2)
same(code(ec2.terminate_instances, InstanceIds=[router]), "OperationNotPermitted")

machines.apply(running="stopped")
same(instance(plain)["State"]["Name"], "stopped")

machines.destroy(running="stopped")
same([instance(id)["State"]["Name"] for id in [plain, router]], ["terminated", "terminated"])
nothing_left(before)
print("done")
