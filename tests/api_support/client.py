"""What the scripts share: clients, and one line for an error that must come.

Every answer that a client gets is held against the service model, member by member, before botocore reads it:
what the model does not know would be lost without a word.
"""

import datetime
import json
import os
import re
from xml.etree import ElementTree

import boto3
import botocore.config
import botocore.exceptions
import botocore.waiter

CONFIG = botocore.config.Config(retries={"total_max_attempts": 1})
DIRECTORY = os.environ.get("KILN_TEST_DIR")

# Waiters wait as long as their models say, and look more often: nothing here takes minutes as it does there.
LOOK = 0.25
_read_model = botocore.waiter.SingleWaiterConfig.__init__


def look_often(self, model):
    _read_model(self, model)
    self.max_attempts = round(self.max_attempts * self.delay / LOOK)
    self.delay = LOOK


botocore.waiter.SingleWaiterConfig.__init__ = look_often

# Words that the service says and its model does not have.
MORE_WORDS = {"AttachmentStatus": {"available"}}


def client(service, **credentials):
    made = boto3.client(service, config=CONFIG, **credentials)
    model = made.meta.service_model

    def hold(response_dict, event_name, **_):
        if response_dict["status_code"] >= 300:
            return
        operation = model.operation_model(event_name.rsplit(".", 1)[1])
        if model.metadata["protocol"] == "rest-json":
            held_json(operation, response_dict)
        else:
            held(operation, model.metadata["protocol"], ElementTree.fromstring(response_dict["body"]))

    made.meta.events.register("before-parse", hold)
    return made


def held_json(operation, response):
    shape = operation.output_shape
    assert response["status_code"] == operation.http.get("responseCode", 200), response["status_code"]
    headers = {m.serialization["name"].lower() for m in shape.members.values() if m.serialization.get("location") == "header"}
    said = {name.lower() for name in response["headers"] if name.lower().startswith("x-amz-")}
    assert said == headers, f"{operation.name}: {said} for {headers}"
    if operation.has_streaming_output:
        return
    members = {name: m for name, m in shape.members.items() if "location" not in m.serialization}
    json_structure(members, shape.required_members, json.loads(response["body"]), operation.name)


def json_structure(members, required, said, path):
    assert set(said) <= set(members) and set(required) <= set(said), f"{path}: {set(said)} for {set(members)}"
    for name, value in said.items():
        json_value(members[name], value, f"{path}.{name}")


def json_value(shape, value, path):
    kind = shape.type_name
    if kind == "structure":
        json_structure(shape.members, shape.required_members, value, path)
    elif kind == "list":
        for each in value:
            json_value(shape.member, each, path)
    elif kind in ("integer", "long", "timestamp"):
        assert type(value) is int, f"{path}: {value}"
    else:
        assert type(value) is str, f"{path}: {value}"
        assert not shape.metadata.get("enum") or value in shape.metadata["enum"], f"{path}: {value}"
        assert len(value) <= shape.metadata.get("max", len(value)), f"{path}: {value}"
        assert re.search(shape.metadata.get("pattern", ""), value), f"{path}: {value}"


def local(element):
    return element.tag.rsplit("}", 1)[-1]


def held(operation, protocol, root):
    assert local(root) == operation.name + "Response", local(root)
    children = list(root)
    if protocol == "ec2":
        names = [local(child) for child in children]
        assert names.count("requestId") == 1, names
        said = {"requestId"} | (set() if operation.output_shape and has_return(operation.output_shape) else {"return"})
        contents = [child for child in children if local(child) not in said]
    else:
        (metadata,) = [child for child in children if local(child) == "ResponseMetadata"]
        assert [local(child) for child in metadata] == ["RequestId"]
        results = [child for child in children if child is not metadata]
        if not operation.output_shape:
            assert not results, operation.name
            return
        (result,) = results
        assert local(result) == operation.output_shape.serialization["resultWrapper"], local(result)
        contents = list(result)
    if operation.output_shape:
        structure(operation.output_shape, contents, [operation.name])
    else:
        assert not contents, operation.name


def has_return(shape):
    return any(member.serialization.get("name", name) == "return" for name, member in shape.members.items())


def structure(shape, children, path):
    members = {member.serialization.get("name", name): (name, member) for name, member in shape.members.items()}
    found = set()
    for child in children:
        name = local(child)
        assert name in members and name not in found, f"{path}: {name}"
        found.add(name)
        value(members[name][1], child, path + [members[name][0]])
    # The account is a user without a name.
    missing = {name for key, (name, _) in members.items() if key not in found} & set(shape.required_members)
    assert not missing or shape.name == "User" and missing <= {"UserName", "Path"}, f"{path}: no {missing}"


def value(shape, element, path):
    kind, text = shape.type_name, element.text or ""
    if kind == "structure":
        structure(shape, list(element), path)
    elif kind == "list":
        assert not shape.serialization.get("flattened"), path
        name = shape.member.serialization.get("name", "member")
        for child in element:
            assert local(child) == name, f"{path}: {local(child)}"
            value(shape.member, child, path)
    else:
        assert not len(element), f"{path}: elements in a {kind}"
        if kind in ("integer", "long"):
            int(text)
        elif kind == "boolean":
            assert text in ("true", "false"), f"{path}: {text}"
        elif kind == "timestamp":
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text), f"{path}: {text}"
            datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
        elif kind == "string" and shape.metadata.get("enum"):
            words = set(shape.metadata["enum"]) | MORE_WORDS.get(shape.name, set())
            assert text in words, f"{path}: {text} is no {shape.name}"


def code(call, **arguments):
    """Error code of a call that must fail."""
    try:
        answer = call(**arguments)
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"]
    return f"no error: {answer}"


def why(call, **arguments):
    """Code and reason of a call that must fail, as the EBS direct APIs have them."""
    try:
        answer = call(**arguments)
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"], error.response.get("Reason")
    return f"no error: {answer}"


def same(one, other):
    assert one == other, f"{one!r} is not {other!r}"
