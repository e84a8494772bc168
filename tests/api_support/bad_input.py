"""Requests that must be refused, with the code of EC2, and nothing changed."""

import datetime
import http.client
import os
import re
import urllib.parse

import botocore.auth
import botocore.awsrequest
import botocore.credentials
from client import client, same

ENDPOINT = os.environ["AWS_ENDPOINT_URL"]
HOST = urllib.parse.urlsplit(ENDPOINT).netloc
KEYS = botocore.credentials.Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
VERSIONS = {"ec2": "2016-11-15", "iam": "2010-05-08", "sts": "2011-06-15"}


def signed(body, service="ec2", keys=KEYS, method="POST", query="", region="us-east-1", skew=0):
    request = botocore.awsrequest.AWSRequest(method, f"{ENDPOINT}/{query}", data=body, headers={
        "Content-Type": "application/x-www-form-urlencoded; charset=utf-8"})
    real = botocore.auth.get_current_datetime
    botocore.auth.get_current_datetime = lambda *a, **k: real(*a, **k) + datetime.timedelta(seconds=skew)
    try:
        botocore.auth.SigV4Auth(keys, service, region).add_auth(request)
    finally:
        botocore.auth.get_current_datetime = real
    return request.prepare()


def send(method, path, headers, body):
    """Status, code, whether it is XML of that dialect."""
    connection = http.client.HTTPConnection(HOST, timeout=30)
    connection.request(method, path, body=body, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    assert text.startswith("<?xml"), text
    dialect = "ec2" if "<Response><Errors>" in text else "query" if "<ErrorResponse" in text else "success"
    found = re.search("<Code>(.*?)</Code>", text)
    return answer.status, found.group(1) if found else "success", dialect


def ask(body, change=None, **how):
    request = signed(body, **how)
    headers, path = dict(request.headers), "/" + how.get("query", "")
    headers.pop("Content-Length", None)
    if change:
        body = change(headers, body) or body
    return send(how.get("method", "POST"), path, headers, body)


def form(action="DescribeVpcs", service="ec2", **more):
    return urllib.parse.urlencode({"Action": action, "Version": VERSIONS[service], **more})


ec2 = client("ec2")
before = ec2.describe_vpcs()["Vpcs"], ec2.describe_security_groups()["SecurityGroups"]

# Good ones, so that the rest means something.
same(ask(form()), (200, "success", "success"))
same(ask(form(), skew=14 * 60), (200, "success", "success"))
same(ask("", method="GET", query="?" + form()), (200, "success", "success"))
same(ask(form("ListRoles", "iam"), service="iam"), (200, "success", "success"))

# Presigned.
url = ec2.generate_presigned_url("describe_vpcs", ExpiresIn=60, HttpMethod="GET")
path = url[len(ENDPOINT):]
same(send("GET", path, {}, None), (200, "success", "success"))
same(send("GET", path.replace("DescribeVpcs", "DescribeTags"), {}, None), (401, "AuthFailure", "ec2"))
same(send("GET", path.replace("X-Amz-Expires=60", "X-Amz-Expires=600"), {}, None), (401, "AuthFailure", "ec2"))
same(send("GET", path + "&VpcId.1=vpc-1", {}, None), (401, "AuthFailure", "ec2"))
same(send("GET", path.replace("X-Amz-SignedHeaders=host", "X-Amz-SignedHeaders=date"), {}, None)[1], "IncompleteSignature")

# Signatures.
plain = {"Content-Type": "application/x-www-form-urlencoded"}
same(send("POST", "/", plain, form()), (403, "MissingAuthenticationToken", "ec2"))
same(send("POST", "/", plain, form("ListRoles", "iam")), (403, "MissingAuthenticationToken", "query"))
other = botocore.credentials.Credentials("AKIAAAAAAAAAAAAAAAAA", KEYS.secret_key)
wrong = botocore.credentials.Credentials(KEYS.access_key, "x" * 40)
same(ask(form(), keys=other), (401, "AuthFailure", "ec2"))
same(ask(form(), keys=wrong), (401, "AuthFailure", "ec2"))
same(ask(form("ListRoles", "iam"), service="iam", keys=other), (403, "InvalidClientTokenId", "query"))
same(ask(form("GetCallerIdentity", "sts"), service="sts", keys=wrong), (403, "SignatureDoesNotMatch", "query"))
for skew in [-16 * 60, 16 * 60]:
    same(ask(form(), skew=skew), (400, "RequestExpired", "ec2"))
    same(ask(form("ListRoles", "iam"), service="iam", skew=skew), (403, "SignatureDoesNotMatch", "query"))
same(ask(form(), change=lambda h, b: b + "&X=1"), (401, "AuthFailure", "ec2"))
same(ask(form(), change=lambda h, b: h.update({"Host": "elsewhere"})), (401, "AuthFailure", "ec2"))
same(ask(form(), change=lambda h, b: h.update({"X-Amz-Security-Token": "x"})), (403, "IncompleteSignature", "ec2"))
same(ask(form(), change=lambda h, b: h.update({"Authorization": "AWS4-HMAC-SHA256 x"})), (403, "IncompleteSignature", "ec2"))
same(ask(form(), change=lambda h, b: h.update({"Authorization": "Basic eDp5"})), (403, "IncompleteSignature", "ec2"))
same(ask(form(), service="s3"), (400, "InvalidAction", "ec2"))

# Actions, versions, parameters.
same(ask(form("CreateSpaceship")), (400, "InvalidAction", "ec2"))
same(ask(form("RequestSpotFleet")), (400, "InvalidAction", "ec2"))
same(ask(form("CreateAccountAlias", "iam"), service="iam"), (400, "InvalidAction", "query"))
same(ask("Version=2016-11-15"), (400, "MissingAction", "ec2"))
same(ask("Action=DescribeVpcs&Version=1999-01-01"), (400, "InvalidAction", "ec2"))
same(ask(form(Colour="red")), (400, "UnknownParameter", "ec2"))
same(ask(form(**{"Filter.1.Name": "vpc-id", "Filter.1.Colour": "red"})), (400, "UnknownParameter", "ec2"))
same(ask(form(**{"Filter.1.Value.1": "red"})), (400, "MissingParameter", "ec2"))
same(ask(form(MaxResults="many")), (400, "InvalidParameterValue", "ec2"))
same(ask(form(MaxResults="2000")), (400, "InvalidParameterValue", "ec2"))
same(ask(form("CreateVpc")), (400, "MissingParameter", "ec2"))
same(ask(form("CreateSubnet", CidrBlock="10.0.0.0/24")), (400, "MissingParameter", "ec2"))
same(ask(form("CreateVpc", CidrBlock="10.0.0.0/16", Ipv4IpamPoolId="x")), (400, "UnsupportedOperation", "ec2"))
same(ask(form() + "&VpcId.1=%zz"), (400, "MalformedQueryString", "ec2"))
same(ask(form().encode() + b"&VpcId.1=\xff"), (400, "MalformedQueryString", "ec2"))
same(ask(form(VpcId="vpc-1")), (400, "InvalidParameterValue", "ec2"))
same(ask(form() + "".join(f"&VpcId.{n}=vpc-1" for n in range(1, 1500)))[1], "InvalidParameterValue")
same(ask(form() + "&a=1" * 5000), (400, "MalformedQueryString", "ec2"))
same(ask(form() + "&VpcId" + ".1" * 100 + "=x"), (400, "UnknownParameter", "ec2"))
same(ask(form(**{"VpcId.1": "x" * 1000000})), (413, "RequestEntityTooLarge", "ec2"))

# Ids that are none, or of another kind.
for action, name, value, code in [
    ("DeleteVpc", "VpcId", "subnet-00000000000000001", "InvalidVpcID.Malformed"),
    ("DeleteVpc", "VpcId", "vpc-zz", "InvalidVpcID.Malformed"),
    ("DeleteVpc", "VpcId", "vpc-00000001", "InvalidVpcID.NotFound"),
    ("DeleteSubnet", "SubnetId", "vpc-1", "InvalidSubnetID.Malformed"),
    ("DeleteSecurityGroup", "GroupId", "sg-; drop table", "InvalidGroupId.Malformed"),
    ("ReleaseAddress", "AllocationId", "eipassoc-1", "InvalidAllocationID.Malformed"),
]:
    same(ask(form(action, **{name: value})), (400, code, "ec2"))

# Elsewhere than at /, and by other methods.
same(send("POST", "/other", plain, form())[1], "InvalidAction")
same(send("PUT", "/", plain, form())[1], "InvalidAction")

# Text that would break XML comes back as it was, or as what XML can say.
tags = [{"Key": "k<>&\"'", "Value": "]]><!-- &amp; \u20ac"}]
vpc = ec2.create_vpc(CidrBlock="10.66.0.0/16", TagSpecifications=[{"ResourceType": "vpc", "Tags": tags}])["Vpc"]
same(ec2.describe_vpcs(VpcIds=[vpc["VpcId"]])["Vpcs"][0]["Tags"], tags)
same(ask(form("CreateTags", **{"ResourceId.1": vpc["VpcId"], "Tag.1.Key": "a\x00b", "Tag.1.Value": "x"})), (400, "InvalidParameterValue", "ec2"))
ec2.delete_vpc(VpcId=vpc["VpcId"])

same((ec2.describe_vpcs()["Vpcs"], ec2.describe_security_groups()["SecurityGroups"]), before)
print("done")
