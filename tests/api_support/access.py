"""Roles, policies, profiles and sessions, with boto3."""

import json

from client import client, code, same

iam, sts = client("iam"), client("sts")
same(sts.get_caller_identity()["Arn"], "arn:aws:iam::000000000000:root")


def policy(*statements):
    return json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": effect, "Action": action, "Resource": resource} for effect, action, resource in statements]})


def trust(**principal):
    return json.dumps({"Statement": [{"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole"}]})


role = iam.create_role(RoleName="app", AssumeRolePolicyDocument=trust(Service="ec2.amazonaws.com"), Path="/",
                       Description="of a test", Tags=[{"Key": "a", "Value": "b"}])["Role"]
same(role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"], {"Service": "ec2.amazonaws.com"})
same(role["Tags"], [{"Key": "a", "Value": "b"}])
same(code(iam.create_role, RoleName="App", AssumeRolePolicyDocument=trust(AWS="*")), "EntityAlreadyExists")
same(code(iam.create_role, RoleName="bad", AssumeRolePolicyDocument="{}"), "MalformedPolicyDocument")
same(code(iam.create_role, RoleName="a/b", AssumeRolePolicyDocument=trust(AWS="*")), "ValidationError")
same(code(iam.get_role, RoleName="none"), "NoSuchEntity")
iam.get_waiter("role_exists").wait(RoleName="app")
same(iam.list_attached_role_policies(RoleName="app")["AttachedPolicies"], [])

iam.create_instance_profile(InstanceProfileName="front")
iam.add_role_to_instance_profile(InstanceProfileName="front", RoleName="app")
same(code(iam.add_role_to_instance_profile, InstanceProfileName="front", RoleName="app"), "LimitExceeded")
same([r["RoleName"] for r in iam.get_instance_profile(InstanceProfileName="front")["InstanceProfile"]["Roles"]], ["app"])
same([p["InstanceProfileName"] for p in iam.list_instance_profiles_for_role(RoleName="app")["InstanceProfiles"]], ["front"])
same(code(iam.get_instance_profile, InstanceProfileName="back"), "NoSuchEntity")
same(code(iam.delete_role, RoleName="app"), "DeleteConflict")


def session(name="me", **more):
    keys = sts.assume_role(RoleArn=role["Arn"], RoleSessionName=name, **more)["Credentials"]
    return {"aws_access_key_id": keys["AccessKeyId"], "aws_secret_access_key": keys["SecretAccessKey"],
            "aws_session_token": keys["SessionToken"]}


# A role without policies may ask who it is, and nothing else.
keys = session(DurationSeconds=900)
same(client("sts", **keys).get_caller_identity()["Arn"], "arn:aws:sts::000000000000:assumed-role/app/me")
limited = client("ec2", **keys)
same(code(limited.describe_vpcs), "UnauthorizedOperation")
same(code(limited.create_vpc, CidrBlock="10.0.0.0/16", DryRun=True), "UnauthorizedOperation")
same(code(client("iam", **keys).get_role, RoleName="app"), "AccessDenied")

# Policies say what; deny wins; resources count.
groups = [client("ec2").create_security_group(GroupName=f"g{n}", Description="x")["GroupId"] for n in range(2)]
iam.put_role_policy(RoleName="app", PolicyName="look", PolicyDocument=policy(
    ("Allow", "ec2:Describe*", "*"),
    ("Allow", ["ec2:CreateTags", "ec2:DeleteSecurityGroup"], f"arn:aws:ec2:*:*:security-group/{groups[0]}")))
iam.put_role_policy(RoleName="app", PolicyName="no", PolicyDocument=policy(("Deny", "ec2:DescribeRegions", "*")))
same(iam.list_role_policies(RoleName="app")["PolicyNames"], ["look", "no"])
same(iam.get_role_policy(RoleName="app", PolicyName="no")["PolicyDocument"]["Statement"][0]["Effect"], "Deny")
same(code(iam.put_role_policy, RoleName="app", PolicyName="x", PolicyDocument="[]"), "MalformedPolicyDocument")
limited.describe_vpcs()
same(code(limited.describe_regions), "UnauthorizedOperation")
limited.create_tags(Resources=[groups[0]], Tags=[{"Key": "a", "Value": "b"}])
same(code(limited.create_tags, Resources=groups, Tags=[{"Key": "a", "Value": "b"}]), "UnauthorizedOperation")
same(code(limited.delete_security_group, GroupId=groups[1]), "UnauthorizedOperation")
same(code(limited.delete_security_group, GroupId=groups[0], DryRun=True), "DryRunOperation")
limited.delete_security_group(GroupId=groups[0])
client("ec2").delete_security_group(GroupId=groups[1])

# Sessions that are none.
same(code(client("ec2", **{**keys, "aws_secret_access_key": "x"}).describe_vpcs), "AuthFailure")
same(code(client("ec2", **{**keys, "aws_session_token": keys["aws_session_token"] + "x"}).describe_vpcs), "AuthFailure")
same(code(client("ec2", **{**keys, "aws_access_key_id": "ASIAAAAAAAAAAAAAAAAA"}).describe_vpcs), "AuthFailure")
without = {name: keys[name] for name in ["aws_access_key_id", "aws_secret_access_key"]}
same(code(client("ec2", **without, aws_session_token="").describe_vpcs), "AuthFailure")

# From one role to another: both sides must agree.
iam.create_role(RoleName="other", AssumeRolePolicyDocument=trust(AWS="arn:aws:iam::000000000000:role/app"))
other = role["Arn"].replace("/app", "/other")
same(code(client("sts", **keys).assume_role, RoleArn=other, RoleSessionName="me"), "AccessDenied")
iam.put_role_policy(RoleName="app", PolicyName="go", PolicyDocument=policy(("Allow", "sts:AssumeRole", other)))
same(client("sts", **keys).assume_role(RoleArn=other, RoleSessionName="me")["AssumedRoleUser"]["Arn"],
     "arn:aws:sts::000000000000:assumed-role/other/me")
iam.update_assume_role_policy(RoleName="other", PolicyDocument=trust(AWS="arn:aws:iam::000000000000:role/else"))
same(code(client("sts", **keys).assume_role, RoleArn=other, RoleSessionName="me"), "AccessDenied")
named = json.dumps({"Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": role["Arn"]},
                                   "Condition": {"StringEquals": {"sts:ExternalId": "seven"}}}]})
iam.update_assume_role_policy(RoleName="other", PolicyDocument=named)
same(code(client("sts", **keys).assume_role, RoleArn=other, RoleSessionName="me"), "AccessDenied")
same(code(client("sts", **keys).assume_role, RoleArn=other, RoleSessionName="me", ExternalId="six"), "AccessDenied")
client("sts", **keys).assume_role(RoleArn=other, RoleSessionName="me", ExternalId="seven")
same(code(sts.assume_role, RoleArn=role["Arn"].replace("app", "none"), RoleSessionName="me"), "AccessDenied")
same(code(sts.assume_role, RoleArn=role["Arn"], RoleSessionName="me", DurationSeconds=43200), "ValidationError")

# What is made is taken away; a session of a role that went may do nothing.
iam.remove_role_from_instance_profile(InstanceProfileName="front", RoleName="app")
iam.delete_instance_profile(InstanceProfileName="front")
same(code(iam.delete_role, RoleName="app"), "DeleteConflict")
for name in ["look", "no", "go"]:
    iam.delete_role_policy(RoleName="app", PolicyName=name)
iam.delete_role(RoleName="app")
iam.delete_role(RoleName="other")
same(iam.list_roles()["Roles"], [])
same(code(limited.describe_vpcs), "UnauthorizedOperation")
print("done")
