"""Terraform's AWS provider: a machine from a launch template, and another from its next version."""

import os

from client import client, code, same
from terraform_configuration import Configuration

ec2 = client("ec2")
base = ec2.register_image(Name="guest", ImageLocation=os.environ["KILN_TEST_IMAGE"])["ImageId"]
ec2.get_waiter("image_available").wait(ImageIds=[base], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
service = Configuration("template", image=base)


def instance(version, kind):
    """The machine that there is, which is from that version of the template."""
    id = service.output("instance")
    [reservation] = ec2.describe_instances(InstanceIds=[id])["Reservations"]
    [shown] = reservation["Instances"]
    tags = {tag["Key"]: tag["Value"] for tag in shown["Tags"]}
    same(tags, {"Name": "web", "colour": "blue", "kind": "test", "aws:ec2launchtemplate:id": service.output("template"),
                "aws:ec2launchtemplate:version": version})
    same((shown["InstanceType"], shown["State"]["Name"], shown["MetadataOptions"]["HttpTokens"]), (kind, "running", "required"))
    same(len(shown["BlockDeviceMappings"]), 2)
    return id


service.apply()
one = instance("1", "t3.nano")
service.apply(type="t3.micro")
same(service.output("version"), "2")
two = instance("2", "t3.micro")
same(one == two, False)
template = service.output("template")
service.destroy(type="t3.micro")
same(code(ec2.describe_launch_templates, LaunchTemplateIds=[template]), "InvalidLaunchTemplateId.NotFound")
print("done")
