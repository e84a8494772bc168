"""Terraform's AWS provider: a VPC with all that there is of networks."""

from client import client, same
from terraform_configuration import Configuration, all_there, nothing_left

ec2 = client("ec2")
before = all_there()
network = Configuration("network")
network.apply()
[interface] = ec2.describe_network_interfaces(NetworkInterfaceIds=[network.output("interface")])["NetworkInterfaces"]
same([a.get("Association", {}).get("PublicIp") for a in interface["PrivateIpAddresses"]], [None, network.output("address")])

network.apply(port=8443)
[group] = ec2.describe_security_groups(GroupIds=[network.output("group")])["SecurityGroups"]
same(sorted(permission.get("FromPort", 0) for permission in group["IpPermissions"]), [0, 8443])

network.destroy(port=8443)
nothing_left(before)
print("done")
