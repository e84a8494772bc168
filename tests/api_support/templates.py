"""Launch templates and what is launched from them, with boto3."""

import base64
import json
import os

from client import client, code, same

ec2, iam = client("ec2"), client("iam")
image = ec2.register_image(Name="template-guest", ImageLocation=os.environ["KILN_TEST_IMAGE"])["ImageId"]
ec2.get_waiter("image_available").wait(ImageIds=[image])
group = ec2.create_security_group(GroupName="template-web", Description="x")["GroupId"]
user_data = base64.b64encode(b"#!/bin/sh\necho hello\n").decode()


def versions(**wanted):
    return [v["VersionNumber"] for v in ec2.describe_launch_template_versions(**wanted)["LaunchTemplateVersions"]]


def tagged(kind, /, **tags):
    return {"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}


# What a template says comes back as it was said.
first = {
    "ImageId": image, "InstanceType": "t3.nano", "SecurityGroupIds": [group], "UserData": user_data,
    "InstanceInitiatedShutdownBehavior": "terminate", "Monitoring": {"Enabled": True},
    "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
    "BlockDeviceMappings": [{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "DeleteOnTermination": True}}],
    "TagSpecifications": [tagged("instance", Name="web", kind="<a&b>"), tagged("volume", kind="data")],
    "EbsOptimized": False, "Placement": {"AvailabilityZone": "us-east-1a", "Tenancy": "default"},
    "CreditSpecification": {"CpuCredits": "unlimited"},
}
wish = {"LaunchTemplateName": "web", "VersionDescription": "one", "LaunchTemplateData": first, "ClientToken": "web-1",
        "TagSpecifications": [tagged("launch-template", team="a")]}
made = ec2.create_launch_template(**wish)["LaunchTemplate"]
web = made["LaunchTemplateId"]
same((made["DefaultVersionNumber"], made["LatestVersionNumber"], made["Tags"]), (1, 1, [{"Key": "team", "Value": "a"}]))
same(ec2.create_launch_template(**wish)["LaunchTemplate"]["LaunchTemplateId"], web)
same(code(ec2.create_launch_template, **{**wish, "VersionDescription": "other"}), "IdempotentParameterMismatch")
same(code(ec2.create_launch_template, **{**wish, "ClientToken": "web-2"}), "InvalidLaunchTemplateName.AlreadyExistsException")
[version] = ec2.describe_launch_template_versions(LaunchTemplateId=web)["LaunchTemplateVersions"]
same(version["LaunchTemplateData"], first)
same((version["VersionDescription"], version["DefaultVersion"], version["CreatedBy"]), ("one", True, "arn:aws:iam::000000000000:root"))

# Refusals that change nothing.
for change, expected in [
    ({"LaunchTemplateName": "no good"}, "InvalidLaunchTemplateName.MalformedException"),
    ({"LaunchTemplateData": {}}, "MissingParameter"),
    ({"LaunchTemplateData": {"KernelId": "aki-1"}}, "UnsupportedOperation"),
    ({"LaunchTemplateData": {"EnclaveOptions": {"Enabled": True}}}, "UnsupportedOperation"),
    ({"VersionDescription": "x" * 256}, "InvalidParameterValue"),
    ({"TagSpecifications": [tagged("instance", a="b")]}, "InvalidParameterValue"),
]:
    same(code(ec2.create_launch_template, **{**wish, "LaunchTemplateName": "other", "ClientToken": "web-3", **change}), expected)
launch = {"MinCount": 1, "MaxCount": 1}
for named, expected in [
    ({"LaunchTemplateId": "lt-00000000000000001"}, "InvalidLaunchTemplateId.NotFound"),
    ({"LaunchTemplateId": "lt-x"}, "InvalidLaunchTemplateId.Malformed"),
    ({"LaunchTemplateName": "none"}, "InvalidLaunchTemplateName.NotFoundException"),
    ({"LaunchTemplateId": web, "LaunchTemplateName": "web"}, "InvalidParameterCombination"),
    ({"LaunchTemplateId": web, "Version": "2"}, "InvalidLaunchTemplateId.VersionNotFound"),
    ({"LaunchTemplateId": web, "Version": "newest"}, "InvalidParameterValue"),
    ({}, "MissingParameter"),
]:
    same(code(ec2.run_instances, LaunchTemplate=named, **launch), expected)
same(code(ec2.run_instances, LaunchTemplate={"LaunchTemplateName": "web"}, DryRun=True, **launch), "DryRunOperation")
same([t["LaunchTemplateName"] for t in ec2.describe_launch_templates()["LaunchTemplates"]], ["web"])

# Versions: from a source, by number, the newest and the default.
second = ec2.create_launch_template_version(
    LaunchTemplateName="web", SourceVersion="1", ClientToken="two", LaunchTemplateData={
        "InstanceType": "t3.micro", "SecurityGroups": ["template-web"], "TagSpecifications": [tagged("instance", kind="two")]})
second = second["LaunchTemplateVersion"]
same((second["VersionNumber"], second["DefaultVersion"]), (2, False))
data = second["LaunchTemplateData"]
same((data["InstanceType"], data["UserData"], data["SecurityGroups"]), ("t3.micro", user_data, ["template-web"]))
same("SecurityGroupIds" in data, False)
same(data["TagSpecifications"], [tagged("instance", Name="web", kind="two"), tagged("volume", kind="data")])
ec2.create_launch_template_version(LaunchTemplateId=web, LaunchTemplateData={"ImageId": image})
same(versions(LaunchTemplateId=web), [3, 2, 1])
same(versions(LaunchTemplateId=web, Versions=["$Latest", "$Default"]), [3, 1])
same(versions(Versions=["$Latest"]), [3])
same(versions(LaunchTemplateId=web, MinVersion="2", MaxVersion="2"), [2])
same(versions(LaunchTemplateId=web, Filters=[{"Name": "instance-type", "Values": ["t3.m*"]}]), [2])
same(code(ec2.describe_launch_template_versions, LaunchTemplateId=web, Versions=["9"]), "InvalidLaunchTemplateId.VersionNotFound")
same(code(ec2.describe_launch_template_versions, Versions=["1"]), "MissingParameter")
pages = ec2.get_paginator("describe_launch_template_versions").paginate(LaunchTemplateId=web, PaginationConfig={"PageSize": 2})
same([[v["VersionNumber"] for v in page["LaunchTemplateVersions"]] for page in pages], [[3, 2], [1]])
same(ec2.modify_launch_template(LaunchTemplateId=web, DefaultVersion="2")["LaunchTemplate"]["DefaultVersionNumber"], 2)
gone = ec2.delete_launch_template_versions(LaunchTemplateName="web", Versions=["3", "2", "7"])
same([v["VersionNumber"] for v in gone["SuccessfullyDeletedLaunchTemplateVersions"]], [3])
same([(v["VersionNumber"], v["ResponseError"]["Code"]) for v in gone["UnsuccessfullyDeletedLaunchTemplateVersions"]],
     [(2, "unexpectedError"), (7, "launchTemplateVersionDoesNotExist")])
same(ec2.describe_launch_templates(LaunchTemplateNames=["web"])["LaunchTemplates"][0]["LatestVersionNumber"], 2)

# A launch: what it says itself holds; sent again it is the same one, whatever the template says by then.
named = {"LaunchTemplate": {"LaunchTemplateName": "web", "Version": "$Default"}, "InstanceType": "t3.small", "ClientToken": "launch",
         "TagSpecifications": [tagged("instance", colour="red")], **launch}
[instance] = ec2.run_instances(**named)["Instances"]
one = instance["InstanceId"]
ec2.modify_launch_template(LaunchTemplateId=web, DefaultVersion="1")
same([i["InstanceId"] for i in ec2.run_instances(**named)["Instances"]], [one])
same(code(ec2.run_instances, **{**named, "InstanceType": "t3.nano"}), "IdempotentParameterMismatch")
same({tag["Key"]: tag["Value"] for tag in instance["Tags"]}, {
    "Name": "web", "kind": "two", "colour": "red", "aws:ec2launchtemplate:id": web, "aws:ec2launchtemplate:version": "2"})
same([g["GroupId"] for g in instance["SecurityGroups"]], [group])
same((instance["InstanceType"], instance["MetadataOptions"]["HttpTokens"]), ("t3.small", "required"))
ec2.get_waiter("instance_running").wait(InstanceIds=[one])
same(ec2.describe_instance_attribute(InstanceId=one, Attribute="userData")["UserData"]["Value"], user_data)
same(ec2.describe_instance_attribute(InstanceId=one, Attribute="instanceInitiatedShutdownBehavior")
     ["InstanceInitiatedShutdownBehavior"]["Value"], "terminate")
volumes = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [one]}])["Volumes"]
same(sorted((v["Attachments"][0]["Device"], v["Tags"][0]["Value"]) for v in volumes), [("/dev/sdf", "data"), ("/dev/xvda", "data")])

# The tags that say where it is from are the service's.
ours = {"Name": "key", "Values": ["aws:ec2launchtemplate:*"]}
same([t["Value"] for t in ec2.describe_tags(Filters=[ours, {"Name": "resource-id", "Values": [one]}])["Tags"]], [web, "2"])
same(code(ec2.create_tags, Resources=[one], Tags=[{"Key": "aws:ec2launchtemplate:id", "Value": "x"}]), "InvalidParameterValue")
ec2.delete_tags(Resources=[one], Tags=[{"Key": "aws:ec2launchtemplate:id"}, {"Key": "colour"}])
[found] = ec2.describe_instances(Filters=[{"Name": "tag:aws:ec2launchtemplate:id", "Values": [web]}])["Reservations"]
same(sorted(tag["Key"] for tag in found["Instances"][0]["Tags"]), ["Name", "aws:ec2launchtemplate:id", "aws:ec2launchtemplate:version", "kind"])
ec2.create_tags(Resources=[web], Tags=[{"Key": "team", "Value": "b"}])
same([t["LaunchTemplateId"] for t in ec2.describe_launch_templates(Filters=[{"Name": "tag:team", "Values": ["b"]}])["LaunchTemplates"]], [web])

# A template of an instance launches another one like it.
like = ec2.get_launch_template_data(InstanceId=one)["LaunchTemplateData"]
same((like["ImageId"], like["InstanceType"], like["UserData"]), (image, "t3.small", user_data))
ec2.create_launch_template(LaunchTemplateName="like", LaunchTemplateData={
    **{name: value for name, value in like.items() if name != "MetadataOptions"},
    "MetadataOptions": {name: value for name, value in like["MetadataOptions"].items() if name != "State"}})
[other] = ec2.run_instances(LaunchTemplate={"LaunchTemplateName": "like"}, **launch)["Instances"]
same([other[name] == instance[name] for name in ["InstanceType", "ImageId", "SubnetId", "SecurityGroups"]], [True] * 4)
ec2.get_waiter("instance_running").wait(InstanceIds=[other["InstanceId"]])

# What a template says, its user must be allowed to.
iam.create_user(UserName="templater")
key = iam.create_access_key(UserName="templater")["AccessKey"]
limited = client("ec2", aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"])
for resources, expected in [(["*"], "DryRunOperation"), (["*:instance/*", "*:launch-template/*"], "UnauthorizedOperation")]:
    iam.put_user_policy(UserName="templater", PolicyName="run", PolicyDocument=json.dumps({"Statement": [
        {"Effect": "Allow", "Action": ["ec2:RunInstances", "ec2:CreateTags"], "Resource": resources}]}))
    same(code(limited.run_instances, LaunchTemplate={"LaunchTemplateId": web}, DryRun=True, **launch), expected)
iam.create_role(RoleName="templated", AssumeRolePolicyDocument=json.dumps({"Statement": [
    {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}))
iam.create_instance_profile(InstanceProfileName="templated")
iam.add_role_to_instance_profile(InstanceProfileName="templated", RoleName="templated")
iam.put_user_policy(UserName="templater", PolicyName="run", PolicyDocument=json.dumps({"Statement": [
    {"Effect": "Allow", "Action": "ec2:*", "Resource": "*"}]}))
limited.create_launch_template(LaunchTemplateName="power", LaunchTemplateData={**first, "IamInstanceProfile": {"Name": "templated"}})
same(code(limited.run_instances, LaunchTemplate={"LaunchTemplateName": "power"}, **launch), "UnauthorizedOperation")

# What is made is taken away.
ec2.terminate_instances(InstanceIds=[one, other["InstanceId"]])
ec2.get_waiter("instance_terminated").wait(InstanceIds=[one, other["InstanceId"]])
for name in ["web", "like", "power"]:
    ec2.delete_launch_template(LaunchTemplateName=name)
same(code(ec2.delete_launch_template, LaunchTemplateName="web"), "InvalidLaunchTemplateName.NotFoundException")
same(ec2.describe_launch_templates()["LaunchTemplates"], [])
iam.remove_role_from_instance_profile(InstanceProfileName="templated", RoleName="templated")
iam.delete_instance_profile(InstanceProfileName="templated")
iam.delete_role(RoleName="templated")
iam.delete_user_policy(UserName="templater", PolicyName="run")
iam.delete_access_key(UserName="templater", AccessKeyId=key["AccessKeyId"])
iam.delete_user(UserName="templater")
ec2.delete_security_group(GroupId=group)
ec2.deregister_image(ImageId=image)
print("done")
