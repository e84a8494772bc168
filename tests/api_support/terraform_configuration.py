"""A configuration of the folder `terraform`, in a directory of its own."""

import os
import pathlib
import shutil
import subprocess

from client import DIRECTORY, client, same


class Configuration:
    """Ready to be applied. `variables` stay the same over its life."""

    def __init__(self, name, **variables):
        self.place = pathlib.Path(DIRECTORY) / f"terraform-{name}"
        here = pathlib.Path(__file__).parent / "terraform"
        shutil.copytree(here / name, self.place)
        shutil.copy(here / "provider.tf", self.place)
        self.environment = {**os.environ, "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", "TF_CLI_CONFIG_FILE": "/dev/null"}
        self.environment |= {f"TF_VAR_{name}": value for name, value in variables.items()}
        self.succeed("init", f"-plugin-dir={os.environ['KILN_TEST_TERRAFORM_PLUGINS']}", "-no-color")

    def run(self, *arguments):
        """Exit status and what was printed."""
        command = ["terraform", f"-chdir={self.place}", *arguments]
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout

    def succeed(self, *arguments):
        code, text = self.run(*arguments)
        assert code == 0, f"terraform {arguments}: {text}"
        return text

    def apply(self, **wanted):
        """Applies, and makes sure that nothing is left to do: a plan would end with status 2."""
        text = self.succeed("apply", "-auto-approve", "-no-color", *options(wanted))
        code, plan = self.run("plan", "-detailed-exitcode", "-no-color", *options(wanted))
        assert code == 0, f"there is still something to do: {plan}"
        return text

    def destroy(self, **wanted):
        return self.succeed("destroy", "-auto-approve", "-no-color", *options(wanted))

    def output(self, name):
        return self.succeed("output", "-raw", name)


def options(wanted):
    return [part for name, value in wanted.items() for part in ("-var", f"{name}={value}")]


def all_there():
    """What a user can have made, but for instances, which are shown for a while when they are gone."""
    ec2, iam = client("ec2"), client("iam")
    lists = [
        (ec2.describe_volumes, "Volumes"), (ec2.describe_security_groups, "SecurityGroups"), (ec2.describe_vpcs, "Vpcs"),
        (ec2.describe_subnets, "Subnets"), (ec2.describe_addresses, "Addresses"), (ec2.describe_key_pairs, "KeyPairs"),
        (ec2.describe_internet_gateways, "InternetGateways"), (ec2.describe_route_tables, "RouteTables"),
        (ec2.describe_network_interfaces, "NetworkInterfaces"), (ec2.describe_network_acls, "NetworkAcls"),
        (ec2.describe_managed_prefix_lists, "PrefixLists"), (ec2.describe_tags, "Tags"),
        (iam.list_roles, "Roles"), (iam.list_instance_profiles, "InstanceProfiles"), (iam.list_users, "Users"),
        (iam.list_groups, "Groups"), (iam.list_policies, "Policies"),
    ]
    found = {name: call()[name] for call, name in lists}
    found["Tags"] = [tag for tag in found["Tags"] if tag["ResourceType"] != "instance"]
    return found


def nothing_left(before):
    """All is there that was, and nothing else."""
    after = all_there()
    for name, items in before.items():
        same((name, after[name]), (name, items))
