"""Users, their keys, managed policies and what they allow, with boto3."""

import json

from client import client, code, same

iam, ec2 = client("iam"), client("ec2")


def policy(*statements):
    return json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": effect, "Action": action, "Resource": resource} for effect, action, resource in statements]})


def of(key):
    return {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}


# The account asks who it is.
same(iam.get_user()["User"]["Arn"], "arn:aws:iam::000000000000:root")
same(code(iam.create_access_key), "ValidationError")
same(code(client("sts").get_session_token), "AccessDenied")

user = iam.create_user(UserName="ann", Path="/", Tags=[{"Key": "team", "Value": "<a&b>"}])["User"]
same(user["Arn"], "arn:aws:iam::000000000000:user/ann")
same(code(iam.create_user, UserName="Ann"), "EntityAlreadyExists")
same(code(iam.create_user, UserName="a/b"), "ValidationError")
same(code(iam.create_user, UserName="bob", Path="/x/"), "UnsupportedOperation")
same(code(iam.create_user, UserName="bob", PermissionsBoundary="arn:aws:iam::aws:policy/IAMFullAccess"), "UnsupportedOperation")
iam.get_waiter("user_exists").wait(UserName="ann")
got = iam.get_user(UserName="ann")["User"]
same((got["UserId"], got["Tags"]), (user["UserId"], [{"Key": "team", "Value": "<a&b>"}]))
same(code(iam.get_user, UserName="none"), "NoSuchEntity")
for name in ["bob", "eve", "joe"]:
    iam.create_user(UserName=name)
pages = list(iam.get_paginator("list_users").paginate(PaginationConfig={"PageSize": 3}))
same([[u["UserName"] for u in page["Users"]] for page in pages], [["ann", "bob", "eve"], ["joe"]])
iam.tag_user(UserName="bob", Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}])
iam.untag_user(UserName="bob", TagKeys=["a"])
same(iam.list_user_tags(UserName="bob")["Tags"], [{"Key": "b", "Value": "2"}])

# Keys: the secret once, two of them, switched off and on.
key = iam.create_access_key(UserName="ann")["AccessKey"]
unused = iam.get_access_key_last_used(AccessKeyId=key["AccessKeyId"])
same((unused["UserName"], unused["AccessKeyLastUsed"]), ("ann", {"ServiceName": "N/A", "Region": "N/A"}))
same(code(iam.get_access_key_last_used, AccessKeyId="AKIA0000000000000000"), "NoSuchEntity")
second = iam.create_access_key(UserName="ann")["AccessKey"]
same(code(iam.create_access_key, UserName="ann"), "LimitExceeded")
keys = iam.list_access_keys(UserName="ann")["AccessKeyMetadata"]
same([(k["AccessKeyId"], k["Status"]) for k in keys], sorted((k["AccessKeyId"], "Active") for k in [key, second]))
same("SecretAccessKey" in keys[0], False)
ann = of(key)
same(client("sts", **ann).get_caller_identity()["Arn"], user["Arn"])
same(client("sts", **ann).get_caller_identity()["UserId"], user["UserId"])
same(code(client("sts", **{**ann, "aws_secret_access_key": "x"}).get_caller_identity), "SignatureDoesNotMatch")
iam.update_access_key(UserName="ann", AccessKeyId=key["AccessKeyId"], Status="Inactive")
same(code(client("sts", **ann).get_caller_identity), "InvalidClientTokenId")
same(code(client("ec2", **ann).describe_vpcs), "AuthFailure")
iam.update_access_key(UserName="ann", AccessKeyId=key["AccessKeyId"], Status="Active")
same(code(iam.update_access_key, UserName="bob", AccessKeyId=key["AccessKeyId"], Status="Inactive"), "NoSuchEntity")
same(code(iam.delete_access_key, UserName="bob", AccessKeyId=key["AccessKeyId"]), "NoSuchEntity")

# Without a policy a user may ask who it is, and nothing else.
limited, self = client("ec2", **ann), client("iam", **ann)
same(code(limited.describe_vpcs), "UnauthorizedOperation")
for refused in [self.get_user, self.list_users, self.create_access_key, self.list_access_keys]:
    same(code(refused), "AccessDenied")
same(code(self.put_user_policy, UserName="ann", PolicyName="x", PolicyDocument=policy(("Allow", "*", "*"))), "AccessDenied")

used = iam.get_access_key_last_used(AccessKeyId=key["AccessKeyId"])["AccessKeyLastUsed"]
same((used["ServiceName"], used["Region"], "LastUsedDate" in used), ("iam", "us-east-1", True))
for none in [iam.list_mfa_devices, iam.list_ssh_public_keys, iam.list_signing_certificates, iam.list_service_specific_credentials]:
    same(list(none(UserName="ann").values())[0], [])
    same(code(none, UserName="nobody"), "NoSuchEntity")
same(iam.list_virtual_mfa_devices()["VirtualMFADevices"], [])
same([code(call, UserName="ann") for call in [iam.get_login_profile, iam.delete_login_profile]], ["NoSuchEntity"] * 2)

# Its own policy; what it does to itself it need not name.
iam.put_user_policy(UserName="ann", PolicyName="self", PolicyDocument=policy(
    ("Allow", ["iam:GetUser", "iam:*AccessKey*"], user["Arn"])))
same(iam.list_user_policies(UserName="ann")["PolicyNames"], ["self"])
same(iam.get_user_policy(UserName="ann", PolicyName="self")["PolicyDocument"]["Statement"][0]["Resource"], user["Arn"])
same(code(iam.get_user_policy, UserName="ann", PolicyName="none"), "NoSuchEntity")
same(code(iam.put_user_policy, UserName="ann", PolicyName="x", PolicyDocument="[]"), "MalformedPolicyDocument")
same(self.get_user()["User"]["UserName"], "ann")
same(code(self.get_user, UserName="bob"), "AccessDenied")
same(code(self.create_access_key, UserName="bob"), "AccessDenied")
same(len(self.list_access_keys()["AccessKeyMetadata"]), 2)
self.delete_access_key(AccessKeyId=second["AccessKeyId"])
same(code(client("sts", **of(second)).get_caller_identity), "InvalidClientTokenId")

# Managed policies: AWS's own, and those of the account.
own = iam.create_policy(PolicyName="look", Description="of a test", PolicyDocument=policy(
    ("Allow", "ec2:Describe*", "*"), ("Deny", "ec2:DescribeRegions", "*")))["Policy"]
same((own["Arn"], own["AttachmentCount"], own["DefaultVersionId"]), ("arn:aws:iam::000000000000:policy/look", 0, "v1"))
same(code(iam.create_policy, PolicyName="Look", PolicyDocument=policy(("Allow", "*", "*"))), "EntityAlreadyExists")
same(code(iam.create_policy, PolicyName="bad", PolicyDocument="{}"), "MalformedPolicyDocument")
read_only = "arn:aws:iam::aws:policy/AmazonEC2ReadOnlyAccess"
same(code(iam.attach_user_policy, UserName="ann", PolicyArn="arn:aws:iam::aws:policy/AmazonS3FullAccess"), "NoSuchEntity")
iam.attach_user_policy(UserName="ann", PolicyArn=read_only)
limited.describe_regions()
iam.attach_user_policy(UserName="ann", PolicyArn=own["Arn"])
limited.describe_vpcs()
same(code(limited.describe_regions), "UnauthorizedOperation")
same(code(limited.create_vpc, CidrBlock="10.0.0.0/16", DryRun=True), "UnauthorizedOperation")
same([p["PolicyName"] for p in iam.list_attached_user_policies(UserName="ann")["AttachedPolicies"]],
     ["look", "AmazonEC2ReadOnlyAccess"])
got = iam.get_policy(PolicyArn=own["Arn"])["Policy"]
same((got["Description"], got["AttachmentCount"]), ("of a test", 1))
same([p["PolicyName"] for p in iam.list_policies(Scope="Local")["Policies"]], ["look"])
same({p["Arn"] for p in iam.list_policies(OnlyAttached=True)["Policies"]}, {own["Arn"], read_only})
version = iam.get_policy_version(PolicyArn=own["Arn"], VersionId="v1")["PolicyVersion"]
same(version["Document"]["Statement"][1]["Effect"], "Deny")
same(code(iam.get_policy_version, PolicyArn=own["Arn"], VersionId="v2"), "NoSuchEntity")
same([v["VersionId"] for v in iam.list_policy_versions(PolicyArn=read_only)["Versions"]], ["v1"])

# Versions: one is in force, for all who have the policy, at once.
def versions():
    return [(v["VersionId"], v["IsDefaultVersion"]) for v in iam.list_policy_versions(PolicyArn=own["Arn"])["Versions"]]


more = policy(("Allow", "ec2:Describe*", "*"))
made = iam.create_policy_version(PolicyArn=own["Arn"], PolicyDocument=more, SetAsDefault=True)["PolicyVersion"]
same((made["VersionId"], made["IsDefaultVersion"]), ("v2", True))
limited.describe_regions()
same(iam.get_policy(PolicyArn=own["Arn"])["Policy"]["DefaultVersionId"], "v2")
same(iam.create_policy_version(PolicyArn=own["Arn"], PolicyDocument=more)["PolicyVersion"]["IsDefaultVersion"], False)
same(versions(), [("v1", False), ("v2", True), ("v3", False)])
iam.set_default_policy_version(PolicyArn=own["Arn"], VersionId="v1")
same(code(limited.describe_regions), "UnauthorizedOperation")
for call, change, why in [
    (iam.set_default_policy_version, {"VersionId": "v9"}, "NoSuchEntity"), (iam.delete_policy_version, {"VersionId": "v9"}, "NoSuchEntity"),
    (iam.delete_policy_version, {"VersionId": "v1"}, "DeleteConflict"), (iam.set_default_policy_version, {"VersionId": "v0"}, "ValidationError"),
    (iam.create_policy_version, {"PolicyDocument": "{}"}, "MalformedPolicyDocument"),
    (iam.create_policy_version, {"PolicyDocument": more, "PolicyArn": read_only}, "AccessDenied"),
]:
    same(code(call, **{"PolicyArn": own["Arn"], **change}), why)
for _ in range(2):
    iam.create_policy_version(PolicyArn=own["Arn"], PolicyDocument=more)
same(code(iam.create_policy_version, PolicyArn=own["Arn"], PolicyDocument=more), "LimitExceeded")
for version in ["v2", "v3", "v4"]:
    iam.delete_policy_version(PolicyArn=own["Arn"], VersionId=version)
same(versions(), [("v1", True), ("v5", False)])
iam.tag_policy(PolicyArn=own["Arn"], Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}])
iam.untag_policy(PolicyArn=own["Arn"], TagKeys=["a"])
same(iam.list_policy_tags(PolicyArn=own["Arn"])["Tags"], [{"Key": "b", "Value": "2"}])
same(code(iam.tag_policy, PolicyArn=read_only, Tags=[{"Key": "a", "Value": "1"}]), "AccessDenied")
for arn, why in [(own["Arn"], "DeleteConflict"), (read_only, "AccessDenied"), (own["Arn"] + "x", "NoSuchEntity")]:
    same(code(iam.delete_policy, PolicyArn=arn), why)

# Conditions and variables, on what the request is; what is not understood is refused.
def conditional(**condition):
    return json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "iam:ListUserTags", "Resource": "arn:aws:iam::*:user/${aws:username}"},
        {"Effect": "Deny", "Action": "ec2:DescribeVpcs", "Resource": "*", "Condition": condition}]})


for condition, denied in [
    ({"NotIpAddress": {"aws:SourceIp": "127.0.0.0/8"}}, False),
    ({"IpAddress": {"aws:SourceIp": ["127.0.0.1", "192.0.2.0/24"]}}, True),
    ({"StringEquals": {"aws:username": "bob"}}, False),
    ({"StringLike": {"aws:username": ["bob", "a*"]}, "Bool": {"aws:SecureTransport": "false"}}, True),
    ({"ArnNotLike": {"aws:PrincipalArn": "arn:aws:iam::*:user/ann"}}, False),
    ({"StringNotEquals": {"aws:RequestedRegion": "eu-west-1"}}, True),
    ({"Null": {"aws:username": "false"}}, True),
    ({"DateLessThan": {"aws:CurrentTime": "2099-01-01T00:00:00Z"}}, True),
    ({"DateLessThan": {"aws:EpochTime": "2020-01-01"}}, False),
]:
    iam.put_user_policy(UserName="ann", PolicyName="when", PolicyDocument=conditional(**condition))
    same(code(limited.describe_vpcs).startswith("no error"), not denied)
self.list_user_tags(UserName="ann")
same(code(self.list_user_tags, UserName="bob"), "AccessDenied")
for condition in [{"StringEquals": {"aws:PrincipalTag/a": "b"}}, {"NumericLessThan": {"aws:EpochTime": "1"}},
                  {"ForAllValues:StringEquals": {"aws:username": "x"}}, {"Bool": "x"}]:
    same(code(iam.put_user_policy, UserName="ann", PolicyName="when", PolicyDocument=conditional(**condition)),
         "MalformedPolicyDocument")
iam.delete_user_policy(UserName="ann", PolicyName="when")

# Groups: what they may do, all who are in them may, and what they may not.
group = iam.create_group(GroupName="readers")["Group"]
same(group["Arn"], "arn:aws:iam::000000000000:group/readers")
same(code(iam.create_group, GroupName="Readers"), "EntityAlreadyExists")
for name in ["ann", "bob"]:
    iam.add_user_to_group(GroupName="readers", UserName=name)
iam.add_user_to_group(GroupName="readers", UserName="ann")
same([u["UserName"] for u in iam.get_group(GroupName="readers")["Users"]], ["ann", "bob"])
same([g["GroupName"] for g in iam.list_groups_for_user(UserName="ann")["Groups"]], ["readers"])
same([g["GroupName"] for g in iam.list_groups()["Groups"]], ["readers"])
same(code(iam.add_user_to_group, GroupName="none", UserName="ann"), "NoSuchEntity")
same(code(iam.add_user_to_group, GroupName="readers", UserName="none"), "NoSuchEntity")
bob = iam.create_access_key(UserName="bob")["AccessKey"]
of_bob = client("ec2", **of(bob))
same(code(of_bob.describe_regions), "UnauthorizedOperation")
iam.attach_group_policy(GroupName="readers", PolicyArn=read_only)
same([p["PolicyArn"] for p in iam.list_attached_group_policies(GroupName="readers")["AttachedPolicies"]], [read_only])
of_bob.describe_regions()
iam.put_group_policy(GroupName="readers", PolicyName="no", PolicyDocument=policy(("Deny", "ec2:DescribeVpcs", "*")))
same(iam.list_group_policies(GroupName="readers")["PolicyNames"], ["no"])
same(iam.get_group_policy(GroupName="readers", PolicyName="no")["PolicyDocument"]["Statement"][0]["Effect"], "Deny")
same((code(of_bob.describe_vpcs), code(limited.describe_vpcs)), ("UnauthorizedOperation",) * 2)
iam.delete_group_policy(GroupName="readers", PolicyName="no")
limited.describe_vpcs()
same(code(iam.delete_group, GroupName="readers"), "DeleteConflict")
same(code(iam.delete_user, UserName="ann"), "DeleteConflict")
for name in ["ann", "bob"]:
    iam.remove_user_from_group(GroupName="readers", UserName=name)
same(code(of_bob.describe_regions), "UnauthorizedOperation")
same(code(iam.delete_group, GroupName="readers"), "DeleteConflict")
iam.detach_group_policy(GroupName="readers", PolicyArn=read_only)
iam.delete_group(GroupName="readers")
same(code(iam.get_group, GroupName="readers"), "NoSuchEntity")
iam.delete_access_key(UserName="bob", AccessKeyId=bob["AccessKeyId"])

# A role has them too.
trust = json.dumps({"Statement": [{"Effect": "Allow", "Principal": {"AWS": user["Arn"]}, "Action": "sts:AssumeRole"}]})
role = iam.create_role(RoleName="app", AssumeRolePolicyDocument=trust)["Role"]
iam.attach_role_policy(RoleName="app", PolicyArn=own["Arn"])
same([p["PolicyArn"] for p in iam.list_attached_role_policies(RoleName="app")["AttachedPolicies"]], [own["Arn"]])
iam.update_role(RoleName="app", Description="of ann", MaxSessionDuration=7200)
got = iam.get_role(RoleName="app")["Role"]
same((got["Description"], got["MaxSessionDuration"]), ("of ann", 7200))
iam.tag_role(RoleName="app", Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}])
iam.untag_role(RoleName="app", TagKeys=["b"])
same(iam.list_role_tags(RoleName="app")["Tags"], [{"Key": "a", "Value": "1"}])

# To give a role to an instance takes leave of its own, or whoever may launch could do what any role may.
def launch(**more):
    return code(limited.run_instances, ImageId="ami-0123456789abcdef0", MinCount=1, MaxCount=1, DryRun=True, **more)


profile = iam.create_instance_profile(InstanceProfileName="apps")["InstanceProfile"]
association = {"InstanceId": "i-0123456789abcdef0", "IamInstanceProfile": {"Arn": profile["Arn"]}}
iam.put_user_policy(UserName="ann", PolicyName="self", PolicyDocument=policy(
    ("Allow", ["ec2:*", "iam:GetUser", "iam:*AccessKey*", "iam:AddRoleToInstanceProfile"], "*")))
same(launch(), "DryRunOperation")
same(launch(IamInstanceProfile={"Name": "none"}), "InvalidParameterValue")
same(launch(IamInstanceProfile={"Name": "apps"}), "DryRunOperation")  # There is no role in it.
same(code(self.add_role_to_instance_profile, InstanceProfileName="apps", RoleName="app"), "AccessDenied")
iam.add_role_to_instance_profile(InstanceProfileName="apps", RoleName="app")
for refused in [{"Name": "apps"}, {"Arn": profile["Arn"]}]:
    same(launch(IamInstanceProfile=refused), "UnauthorizedOperation")
same(code(limited.associate_iam_instance_profile, **association), "UnauthorizedOperation")
for service, allowed in [("ec2", True), ("lambda", False)]:
    iam.put_user_policy(UserName="ann", PolicyName="pass", PolicyDocument=json.dumps({"Statement": [
        {"Effect": "Allow", "Action": "iam:PassRole", "Resource": role["Arn"],
         "Condition": {"StringEquals": {"iam:PassedToService": service + ".amazonaws.com"}}}]}))
    same(launch(IamInstanceProfile={"Name": "apps"}), "DryRunOperation" if allowed else "UnauthorizedOperation")
    same(code(limited.associate_iam_instance_profile, **association),
         "InvalidInstanceID.NotFound" if allowed else "UnauthorizedOperation")

# Who may use some resources only does not get at others by their names, by saying nothing, or by making new ones.
[default_group] = ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"]
web = ec2.create_security_group(GroupName="web", Description="x")["GroupId"]
subnet = next(s["SubnetId"] for s in ec2.describe_subnets()["Subnets"] if s["DefaultForAz"])
needed = ["arn:aws:ec2:us-east-1::image/*", "*:instance/*", "*:volume/*", "*:network-interface/*",
          f"*:security-group/{default_group['GroupId']}", f"*:security-group/{web}", f"*:subnet/{subnet}", "*:key-pair/me"]


def allow(actions, resources):
    iam.put_user_policy(UserName="ann", PolicyName="self", PolicyDocument=policy(("Allow", actions, resources)))


named = {"SecurityGroups": ["web"], "KeyName": "me"}
for without, plain, with_names in [
    (None, "DryRunOperation", "DryRunOperation"), (0, "UnauthorizedOperation", "UnauthorizedOperation"),
    (1, "UnauthorizedOperation", "UnauthorizedOperation"), (3, "UnauthorizedOperation", "UnauthorizedOperation"),
    (4, "UnauthorizedOperation", "DryRunOperation"), (5, "DryRunOperation", "UnauthorizedOperation"),
    (6, "UnauthorizedOperation", "UnauthorizedOperation"), (7, "DryRunOperation", "UnauthorizedOperation"),
]:
    allow("ec2:RunInstances", [arn for at, arn in enumerate(needed) if at != without])
    same((launch(), launch(**named)), (plain, with_names))
tags = [{"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "b"}]}]
allow("ec2:RunInstances", "*")
same(launch(TagSpecifications=tags), "UnauthorizedOperation")
allow(["ec2:RunInstances", "ec2:CreateTags"], "*")
same(launch(TagSpecifications=tags), "DryRunOperation")

# Tags decide too: those of a resource, and those that are given.
def allow_if(actions, **condition):
    iam.put_user_policy(UserName="ann", PolicyName="self", PolicyDocument=json.dumps({"Statement": [
        {"Effect": "Allow", "Action": actions, "Resource": "*", "Condition": condition}]}))


def key_pair(team):
    return code(limited.create_key_pair, KeyName="team", TagSpecifications=[
        {"ResourceType": "key-pair", "Tags": [{"Key": "team", "Value": team}]}]).split(":")[0]


ec2.create_tags(Resources=[web], Tags=[{"Key": "team", "Value": "a"}])
allow_if("ec2:*", StringEquals={"aws:ResourceTag/team": "a"})
same(code(limited.delete_security_group, GroupId=web, DryRun=True), "DryRunOperation")
same(code(limited.delete_security_group, GroupName="web", DryRun=True), "DryRunOperation")
same(code(limited.delete_security_group, GroupId=default_group["GroupId"], DryRun=True), "UnauthorizedOperation")
allow_if("ec2:*", StringEquals={"aws:RequestTag/team": "a"})
same((key_pair("b"), key_pair("a")), ("UnauthorizedOperation", "no error"))
same(code(limited.create_tags, Resources=[web], Tags=[{"Key": "team", "Value": "b"}]), "UnauthorizedOperation")
allow_if("ec2:*", StringEquals={"ec2:ResourceTag/team": "a"})
limited.delete_key_pair(KeyName="team")

# What something is called otherwise, and what ties it to another, is the same thing.
address = ec2.allocate_address()
interface = ec2.create_network_interface(SubnetId=subnet)["NetworkInterface"]["NetworkInterfaceId"]
tie = ec2.associate_address(AllocationId=address["AllocationId"], NetworkInterfaceId=interface)["AssociationId"]
for kind, id in [("elastic-ip", address["AllocationId"]), ("network-interface", interface)]:
    iam.put_user_policy(UserName="ann", PolicyName="self", PolicyDocument=policy(
        ("Allow", "ec2:*", "*"), ("Deny", "ec2:*", f"*:{kind}/{id}")))
    same(code(limited.disassociate_address, AssociationId=tie, DryRun=True), "UnauthorizedOperation")
same(code(limited.disassociate_address, PublicIp=address["PublicIp"], DryRun=True), "DryRunOperation")
iam.put_user_policy(UserName="ann", PolicyName="self", PolicyDocument=policy(
    ("Allow", "ec2:*", "*"), ("Deny", "ec2:*", f"*:elastic-ip/{address['AllocationId']}")))
same(code(limited.release_address, PublicIp=address["PublicIp"], DryRun=True), "UnauthorizedOperation")
ec2.disassociate_address(AssociationId=tie)
ec2.delete_network_interface(NetworkInterfaceId=interface)
ec2.release_address(AllocationId=address["AllocationId"])
allow("ec2:*SecurityGroup", f"*:security-group/{default_group['GroupId']}")
same(code(limited.delete_security_group, GroupName="web"), "UnauthorizedOperation")
same(code(limited.create_security_group, GroupName="new", Description="x"), "UnauthorizedOperation")
allow("ec2:DeleteSecurityGroup", f"*:security-group/{web}")
limited.delete_security_group(GroupName="web")
allow(["ec2:*", "iam:GetUser", "iam:*AccessKey*", "iam:AddRoleToInstanceProfile"], "*")
iam.tag_instance_profile(InstanceProfileName="apps", Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}])
iam.untag_instance_profile(InstanceProfileName="apps", TagKeys=["b"])
same(iam.list_instance_profile_tags(InstanceProfileName="apps")["Tags"], [{"Key": "a", "Value": "1"}])
iam.remove_role_from_instance_profile(InstanceProfileName="apps", RoleName="app")
iam.delete_instance_profile(InstanceProfileName="apps")
iam.delete_user_policy(UserName="ann", PolicyName="pass")

# The user assumes the role, if both agree; and has sessions of its own, which IAM does not take.
sts = client("sts", **ann)
same(code(sts.assume_role, RoleArn=role["Arn"], RoleSessionName="me"), "AccessDenied")
iam.put_user_policy(UserName="ann", PolicyName="go", PolicyDocument=policy(("Allow", "sts:AssumeRole", role["Arn"])))
same(sts.assume_role(RoleArn=role["Arn"], RoleSessionName="me")["AssumedRoleUser"]["Arn"],
     "arn:aws:sts::000000000000:assumed-role/app/me")
keys = sts.get_session_token(DurationSeconds=900)["Credentials"]
session = {**of(keys), "aws_session_token": keys["SessionToken"]}
same(client("sts", **session).get_caller_identity()["Arn"], user["Arn"])
client("ec2", **session).describe_vpcs()
same(code(client("iam", **session).get_user), "AccessDenied")
same(code(client("sts", **session).get_session_token), "AccessDenied")
client("sts", **session).assume_role(RoleArn=role["Arn"], RoleSessionName="me")
same(code(sts.get_session_token, DurationSeconds=200_000), "InvalidParameterValue")

# What is made is taken away; one of the same name is another user.
iam.detach_role_policy(RoleName="app", PolicyArn=own["Arn"])
same(code(iam.detach_role_policy, RoleName="app", PolicyArn=own["Arn"]), "NoSuchEntity")
iam.delete_role(RoleName="app")
iam.detach_user_policy(UserName="ann", PolicyArn=own["Arn"])
same(code(iam.delete_policy, PolicyArn=own["Arn"]), "DeleteConflict")
iam.delete_policy_version(PolicyArn=own["Arn"], VersionId="v5")
iam.delete_policy(PolicyArn=own["Arn"])
limited.describe_regions()
same(code(iam.delete_user, UserName="ann"), "DeleteConflict")
iam.detach_user_policy(UserName="ann", PolicyArn=read_only)
for name in ["self", "go"]:
    iam.delete_user_policy(UserName="ann", PolicyName=name)
same(code(iam.delete_user, UserName="ann"), "DeleteConflict")
iam.delete_access_key(UserName="ann", AccessKeyId=key["AccessKeyId"])
iam.delete_user(UserName="ann")
iam.create_user(UserName="ann")
iam.attach_user_policy(UserName="ann", PolicyArn=read_only)
same(code(limited.describe_vpcs), "AuthFailure")
same(code(client("ec2", **session).describe_vpcs), "UnauthorizedOperation")
print("done")
