"""Terraform's AWS provider: users, groups, roles and policies."""

import json

from client import client, same
from terraform_configuration import Configuration, all_there, nothing_left

iam = client("iam")
before = all_there()
identity = Configuration("identity")
identity.apply()
look = f"arn:aws:iam::{identity.output('account')}:policy/look"


def action():
    """What the policy that is in force allows."""
    version = iam.get_policy(PolicyArn=look)["Policy"]["DefaultVersionId"]
    document = iam.get_policy_version(PolicyArn=look, VersionId=version)["PolicyVersion"]["Document"]
    return document["Statement"][0]["Action"]


same(action(), "ec2:Describe*")
holders = iam.list_entities_for_policy(PolicyArn=look)
same([r["RoleName"] for r in holders["PolicyRoles"]], ["app"])
same([u["UserName"] for u in holders["PolicyUsers"]], ["ann"])
same([g["GroupName"] for g in holders["PolicyGroups"]], ["ops"])
same(iam.list_entities_for_policy(PolicyArn=look, EntityFilter="User")["PolicyRoles"], [])

identity.apply(what="ec2:*")
same(action(), "ec2:*")
# Nothing of one that is removed with force stands in the way.
iam.create_access_key(UserName="bob")
identity.destroy(what="ec2:*")
nothing_left(before)
print("done")
