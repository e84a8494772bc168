"""Snapshots by blocks: whole files up and down, many blocks at a time."""

import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor

from client import same

SIZE = 512 << 10
AT_ONCE = 8


def checksum(data):
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def linear(blocks):
    """The checksum of all of them, by number."""
    return checksum(b"".join(hashlib.sha256(data).digest() for _, data in sorted(blocks.items())))


def block(index, data):
    """Arguments of `put_snapshot_block`."""
    return {"BlockIndex": index, "BlockData": data, "DataLength": SIZE, "Checksum": checksum(data), "ChecksumAlgorithm": "SHA256"}


def put(ebs, snapshot, blocks):
    def one(index):
        answer = ebs.put_snapshot_block(SnapshotId=snapshot, **block(index, blocks[index]))
        same(answer["Checksum"], checksum(blocks[index]))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, blocks))


def pages(call, name, **arguments):
    """Everything in a list, page by page."""
    found = []
    while True:
        answer = call(**arguments)
        same(answer["BlockSize"], SIZE)
        found += answer[name]
        if not answer.get("NextToken"):
            return found
        arguments["NextToken"] = answer["NextToken"]


def get(ebs, snapshot, index, token):
    answer = ebs.get_snapshot_block(SnapshotId=snapshot, BlockIndex=index, BlockToken=token)
    data = answer["BlockData"].read()
    same((len(data), answer["DataLength"], answer["Checksum"]), (SIZE, SIZE, checksum(data)))
    return data


def download(ebs, snapshot):
    """All blocks that a snapshot has, by number."""
    listed = pages(ebs.list_snapshot_blocks, "Blocks", SnapshotId=snapshot, MaxResults=100)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        data = pool.map(lambda one: get(ebs, snapshot, one["BlockIndex"], one["BlockToken"]), listed)
        return dict(zip([one["BlockIndex"] for one in listed], data))
