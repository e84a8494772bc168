"""A snapshot uploaded by blocks, before and after the daemon was killed in the middle of it."""

import http.client
import json
import os
import random
import signal
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import botocore.auth
import botocore.awsrequest
import botocore.exceptions
import botocore.session
from blocks import SIZE, block, checksum, download, get, linear, pages, put
from client import DIRECTORY, client, code, same, why

ec2, ebs, iam = client("ec2"), client("ebs"), client("iam")
NOTE = os.path.join(DIRECTORY, "snapshot")
UNKNOWN = "snap-00000000000000001"

# Scattered over the volume, its last block too, and one of zeroes in the middle.
DATA = {index: random.Random(index).randbytes(SIZE) for index in [*range(0, 2000, 16), 2047]}
DATA[5] = bytes(SIZE)
FIRST = dict(list(DATA.items())[:60])


def snapshot(id):
    return ec2.describe_snapshots(SnapshotIds=[id])["Snapshots"][0]


def state(id):
    return snapshot(id)["State"]


def volume_file(id):
    return os.path.join(DIRECTORY, "state", "volumes", f"{id}.qcow2")


def of(key):
    return {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}


def raw(method, path, body=b"", headers={}, service="ebs", unsigned=False):
    """A request as another client would send it; answers status, error and reason."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    session = botocore.session.get_session()
    request = botocore.awsrequest.AWSRequest(method, endpoint + path, dict(headers), body)
    if unsigned:
        request.headers["X-Amz-Content-SHA256"] = "UNSIGNED-PAYLOAD"
    botocore.auth.SigV4Auth(session.get_credentials(), service, "us-east-1").add_auth(request)
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(endpoint).netloc)
    connection.request(method, path, body, dict(request.headers))
    answer = connection.getresponse()
    text = answer.read()
    said = json.loads(text) if answer.headers["content-type"] == "application/json" else {"Text": text}
    return answer.status, answer.headers.get("x-amzn-errortype"), said.get("Reason")


def before():
    # Begun once, however often that is said.
    wish = {"VolumeSize": 1, "Description": "by blocks", "ClientToken": "once" * 50, "Timeout": 60,
            "Tags": [{"Key": "kind", "Value": "test"}, {"Key": "empty", "Value": ""}]}
    begun = ebs.start_snapshot(**wish)
    id = begun["SnapshotId"]
    same((begun["Status"], begun["VolumeSize"], begun["BlockSize"], begun["OwnerId"]), ("pending", 1, SIZE, "000000000000"))
    same({t["Key"]: t["Value"] for t in begun["Tags"]}, {"kind": "test", "empty": ""})
    same(ebs.start_snapshot(**wish)["SnapshotId"], id)
    same(why(ebs.start_snapshot, **{**wish, "VolumeSize": 2}), ("ConflictException", None))
    shown = snapshot(id)
    same((shown["State"], shown["Progress"], shown["VolumeId"], shown["Description"]), ("pending", "0%", "vol-ffffffff", "by blocks"))
    same([s["SnapshotId"] for s in ec2.describe_snapshots(Filters=[{"Name": "tag:kind", "Values": ["test"]}])["Snapshots"]], [id])
    for wrong, reason in [
        ({"VolumeSize": 65537}, "INVALID_VOLUME_SIZE"),
        ({"VolumeSize": 1 << 60}, "INVALID_VOLUME_SIZE"),
        ({"VolumeSize": 1, "Encrypted": True}, "INVALID_PARAMETER_VALUE"),
        ({"VolumeSize": 1, "Timeout": 4321}, "INVALID_PARAMETER_VALUE"),
        ({"VolumeSize": 1, "ParentSnapshotId": id}, "INVALID_SNAPSHOT_ID"),
        ({"VolumeSize": 1, "ParentSnapshotId": "snap-x"}, "INVALID_SNAPSHOT_ID"),
        ({"VolumeSize": 1, "Tags": [{"Key": "aws:x", "Value": ""}]}, "INVALID_TAG"),
        ({"VolumeSize": 1, "Tags": [{"Key": str(n), "Value": ""} for n in range(51)]}, "INVALID_TAG"),
    ]:
        same((wrong, why(ebs.start_snapshot, **wrong)), (wrong, ("ValidationException", reason)))
    same(why(ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=UNKNOWN), ("ResourceNotFoundException", "SNAPSHOT_NOT_FOUND"))
    same(len(ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]), 1)

    # Half of it, all of that at once, and again with other data in between.
    put(ebs, id, {index: bytes([1]) * SIZE for index in FIRST})
    put(ebs, id, FIRST)

    # Blocks that are refused change nothing.
    good = {"SnapshotId": id, **block(16, bytes([2]) * SIZE)}
    for change, expected in [
        ({"Checksum": checksum(b"other")}, ("ValidationException", "INVALID_PARAMETER_VALUE")),
        ({"Checksum": "x"}, ("ValidationException", "INVALID_PARAMETER_VALUE")),
        ({"ChecksumAlgorithm": "MD5"}, ("ValidationException", "INVALID_PARAMETER_VALUE")),
        ({"DataLength": SIZE - 1}, ("ValidationException", "INVALID_PARAMETER_VALUE")),
        ({"BlockData": b"short", "Checksum": checksum(b"short")}, ("ValidationException", "INVALID_PARAMETER_VALUE")),
        ({"BlockData": bytes(SIZE + 1), "Checksum": checksum(bytes(SIZE + 1))}, ("ValidationException", "INVALID_PARAMETER_VALUE")),
        ({"BlockIndex": 2048}, ("ValidationException", "INVALID_BLOCK")),
        ({"BlockIndex": 1 << 62}, ("ValidationException", "INVALID_BLOCK")),
        ({"SnapshotId": "snap-x"}, ("ValidationException", "INVALID_SNAPSHOT_ID")),
        ({"SnapshotId": "../../../etc/passwd"}, ("ValidationException", "INVALID_SNAPSHOT_ID")),
        ({"SnapshotId": UNKNOWN}, ("ResourceNotFoundException", "SNAPSHOT_NOT_FOUND")),
    ]:
        same((change.keys(), why(ebs.put_snapshot_block, **{**good, **change})), (change.keys(), expected))
    same(why(ebs.complete_snapshot, SnapshotId=id, ChangedBlocksCount=61), ("ValidationException", "INVALID_PARAMETER_VALUE"))
    same(why(ebs.complete_snapshot, SnapshotId=UNKNOWN, ChangedBlocksCount=0), ("ResourceNotFoundException", "SNAPSHOT_NOT_FOUND"))

    # Nobody uses it before it is complete.
    same(code(ec2.create_volume, AvailabilityZone="us-east-1a", SnapshotId=id), "IncorrectState")
    same(code(ec2.copy_snapshot, SourceSnapshotId=id, SourceRegion="us-east-1"), "IncorrectState")
    root = [{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": id}}]
    same(code(ec2.register_image, Name="early", RootDeviceName="/dev/xvda", BlockDeviceMappings=root), "IncorrectState")
    same(why(ebs.list_snapshot_blocks, SnapshotId=id), ("ValidationException", "INVALID_SNAPSHOT_ID"))
    same((ec2.describe_volumes()["Volumes"], ec2.describe_images(Owners=["self"])["Images"], state(id)), ([], [], "pending"))

    # Who rests too long fails, and leaves nothing.
    slow = ebs.start_snapshot(VolumeSize=1, Timeout=10)["SnapshotId"]
    put(ebs, slow, {0: DATA[0]})
    os.utime(volume_file(slow), (0, 0))
    same(why(ebs.put_snapshot_block, SnapshotId=slow, **block(1, DATA[16])), ("ValidationException", "WRITE_REQUEST_TIMEOUT"))
    same((state(slow), os.path.exists(volume_file(slow))), ("error", False))
    same(why(ebs.complete_snapshot, SnapshotId=slow, ChangedBlocksCount=1), ("ValidationException", "INVALID_SNAPSHOT_ID"))
    ec2.delete_snapshot(SnapshotId=slow)
    # One that is deleted in the middle too.
    gone = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    put(ebs, gone, {0: DATA[0]})
    ec2.delete_snapshot(SnapshotId=gone)
    same(why(ebs.put_snapshot_block, SnapshotId=gone, **block(1, DATA[16])), ("ResourceNotFoundException", "SNAPSHOT_NOT_FOUND"))
    assert not os.path.exists(volume_file(gone))

    # Users do what their policies say of a snapshot.
    iam.create_user(UserName="ann")
    ann = client("ebs", **of(iam.create_access_key(UserName="ann")["AccessKey"]))
    denied = ("AccessDeniedException", "UNAUTHORIZED_ACCOUNT")
    same(why(ann.start_snapshot, VolumeSize=1), denied)
    same(why(ann.put_snapshot_block, **good), denied)
    statement = {"Effect": "Allow", "Action": "ebs:PutSnapshotBlock", "Resource": f"arn:aws:ec2:us-east-1::snapshot/{id}"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName="ann", PolicyName="put", PolicyDocument=policy)
    ann.put_snapshot_block(SnapshotId=id, **block(16, DATA[16]))
    same(why(ann.put_snapshot_block, SnapshotId=UNKNOWN, **block(16, DATA[16])), denied)
    same(why(ann.complete_snapshot, SnapshotId=id, ChangedBlocksCount=60), denied)
    same(why(client("ebs", aws_access_key_id="AKIANOBODY", aws_secret_access_key="x").start_snapshot, VolumeSize=1),
         ("UnrecognizedClientException", None))
    # The daemon is killed while blocks are on their way; those that it took it has.
    took = []

    def one(index):
        try:
            ebs.put_snapshot_block(SnapshotId=id, **block(index, DATA[index]))
        except botocore.exceptions.BotoCoreError:
            return
        took.append(index)
        if len(took) == 20:
            os.kill(int(os.environ["KILN_TEST_DAEMON"]), signal.SIGKILL)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, [index for index in DATA if index not in FIRST]))
    assert 20 <= len(took) < len(DATA) - len(FIRST), took
    with open(NOTE, "w") as note:
        json.dump({"snapshot": id, "took": took}, note)


def after():
    with open(NOTE) as note:
        noted = json.load(note)
    id = noted["snapshot"]
    same(state(id), "pending")
    put(ebs, id, {index: data for index, data in DATA.items() if index not in FIRST and index not in noted["took"]})
    for wrong in [{"ChangedBlocksCount": len(DATA) - 1}, {"ChangedBlocksCount": len(DATA), "Checksum": linear(FIRST)}]:
        same(why(ebs.complete_snapshot, SnapshotId=id, **wrong), ("ValidationException", "INVALID_PARAMETER_VALUE"))
    same(state(id), "pending")
    said = {"ChecksumAlgorithm": "SHA256", "ChecksumAggregationMethod": "LINEAR", "Checksum": linear(DATA)}
    same(ebs.complete_snapshot(SnapshotId=id, ChangedBlocksCount=len(DATA), **said)["Status"], "completed")
    same((state(id), snapshot(id)["Progress"]), ("completed", "100%"))
    same(why(ebs.put_snapshot_block, SnapshotId=id, **block(0, DATA[0])), ("ValidationException", "INVALID_SNAPSHOT_ID"))

    # It is what was written, which zeroes need not be told of.
    assert download(ebs, id) == {index: data for index, data in DATA.items() if any(data)}
    ec2.create_volume(AvailabilityZone="us-east-1a", SnapshotId=id)
    first = ebs.list_snapshot_blocks(SnapshotId=id, MaxResults=100)
    same((len(first["Blocks"]), first["VolumeSize"]), (100, 1))
    same([b["BlockIndex"] for b in ebs.list_snapshot_blocks(SnapshotId=id, StartingBlockIndex=1990)["Blocks"]], [2047])
    token = first["Blocks"][0]["BlockToken"]
    for wrong in [{"BlockIndex": 16}, {"BlockToken": token[:-4] + "AAAA"}, {"BlockToken": first["NextToken"]}]:
        asked = {"SnapshotId": id, "BlockIndex": 0, "BlockToken": token, **wrong}
        same((wrong, why(ebs.get_snapshot_block, **asked)), (wrong, ("ValidationException", "INVALID_BLOCK_TOKEN")))
    same(why(ebs.get_snapshot_block, SnapshotId=UNKNOWN, BlockIndex=0, BlockToken=token), ("ResourceNotFoundException", "SNAPSHOT_NOT_FOUND"))
    same(why(ebs.list_snapshot_blocks, SnapshotId=id, NextToken=token), ("ValidationException", "INVALID_PAGE_TOKEN"))
    same(why(ebs.list_snapshot_blocks, SnapshotId=UNKNOWN), ("ResourceNotFoundException", "SNAPSHOT_NOT_FOUND"))

    # One over it says only what is new.
    over = ebs.start_snapshot(VolumeSize=2, ParentSnapshotId=id)
    child = over["SnapshotId"]
    same(over["ParentSnapshotId"], id)
    changes = {0: bytes([7]) * SIZE, 16: DATA[16], 32: bytes(SIZE), 3000: bytes([8]) * SIZE}
    put(ebs, child, changes)
    same(ebs.complete_snapshot(SnapshotId=child, ChangedBlocksCount=4)["Status"], "completed")
    whole = {index: data for index, data in {**DATA, **changes}.items() if any(data)}
    assert download(ebs, child) == whole
    changed = pages(ebs.list_changed_blocks, "ChangedBlocks", FirstSnapshotId=id, SecondSnapshotId=child, MaxResults=100)
    same([(c["BlockIndex"], "FirstBlockToken" in c) for c in changed], [(0, True), (32, True), (3000, False)])
    assert get(ebs, id, 0, changed[0]["FirstBlockToken"]) == DATA[0]
    assert [get(ebs, child, c["BlockIndex"], c["SecondBlockToken"]) for c in changed] == [changes[i] for i in [0, 32, 3000]]
    other = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    ebs.complete_snapshot(SnapshotId=other, ChangedBlocksCount=0)
    same(why(ebs.list_changed_blocks, FirstSnapshotId=other, SecondSnapshotId=child), ("ValidationException", "UNRELATED_SNAPSHOTS"))
    same(why(ebs.list_changed_blocks, SecondSnapshotId=child), ("ValidationException", "INVALID_PARAMETER_VALUE"))
    same(why(ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=child), ("ValidationException", "INVALID_VOLUME_SIZE"))

    # Clients that do not sign the body of a block, which they need not; anything else is held to its signature.
    third = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    path, sums = f"/snapshots/{third}/blocks/1", {"x-amz-Checksum": checksum(DATA[0]), "x-amz-Checksum-Algorithm": "SHA256"}
    headers = {"x-amz-Data-Length": str(SIZE), **sums}
    same(raw("PUT", path, DATA[0], headers, unsigned=True), (201, None, None))
    same(raw("PUT", path, DATA[16], headers, unsigned=True), (400, "ValidationException", "INVALID_PARAMETER_VALUE"))
    same(raw("PUT", path, DATA[0], headers, service="ec2"), (403, "InvalidSignatureException", None))
    same(raw("POST", "/snapshots", b'{"VolumeSize": 1}', unsigned=True), (403, "InvalidSignatureException", None))
    same(raw("POST", "/snapshots", b'{"VolumeSize": '), (400, "SerializationException", None))
    same(raw("POST", "/snapshots", b'{"VolumeSize": 1, "Other": 1}'), (400, "ValidationException", "INVALID_PARAMETER_VALUE"))
    same(raw("DELETE", path), (404, "UnknownOperationException", None))
    same(raw("GET", "/snapshots"), (404, "UnknownOperationException", None))
    same(raw("POST", "/?Action=StartSnapshot&Version=2019-11-02&VolumeSize=1")[0], 400)
    same(raw("GET", "/other")[0], 400)
    same(len(ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]), 4)
    same(ebs.complete_snapshot(SnapshotId=third, ChangedBlocksCount=1)["Status"], "completed")

    # In any order, nothing of it is left.
    for each in [id, third, child, other]:
        ec2.delete_snapshot(SnapshotId=each)
    for volume in ec2.describe_volumes()["Volumes"]:
        ec2.delete_volume(VolumeId=volume["VolumeId"])


{"before": before, "after": after}[os.environ["KILN_TEST_PHASE"]]()
print("done")
