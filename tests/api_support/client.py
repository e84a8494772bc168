"""What the scripts share: clients, and one line for an error that must come."""

import os

import boto3
import botocore.config
import botocore.exceptions

CONFIG = botocore.config.Config(retries={"total_max_attempts": 1})
DIRECTORY = os.environ.get("KILN_TEST_DIR")


def client(service, **credentials):
    return boto3.client(service, config=CONFIG, **credentials)


def code(call, **arguments):
    """Error code of a call that must fail."""
    try:
        answer = call(**arguments)
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"]
    return f"no error: {answer}"


def same(one, other):
    assert one == other, f"{one!r} is not {other!r}"
