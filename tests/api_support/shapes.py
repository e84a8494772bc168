"""Golden pairs of every operation, made and read by botocore itself.

    shapes.py write FILE      for each operation a request as botocore serialises it with the value it
                              means, and an answer as a value; one JSON object a line
    shapes.py read FILE       reads the answers that were written as XML, with botocore's parser

Values are in our form: blobs as base64, moments in answers as Unix seconds.
"""

import base64
import datetime
import json
import sys

import botocore.parsers
import botocore.serialize
import botocore.session

SESSION = botocore.session.get_session()
MOMENT = 1_700_000_000


def value(shape, side, depth=0, path=()):
    """Every member of a shape once, to the depth that a recursive one allows; lists have two elements."""
    kind = shape.type_name
    if kind == "structure":
        if shape.name in path:
            return None
        members = {name: value(member, side, depth + 1, path + (shape.name,)) for name, member in shape.members.items()}
        return {name: member for name, member in members.items() if member is not None} or None
    if kind == "list":
        count = min(2, shape.metadata.get("max", 2))
        elements = [value(shape.member, side, depth + 1, path) for _ in range(count)]
        return [element for element in elements if element is not None] or None
    meta = shape.metadata
    if kind == "string":
        if meta.get("enum"):
            return meta["enum"][0]
        text = "<a&b> \u00e4\"'+%=" + shape.name
        text = text.ljust(meta.get("min", 0), "x")
        return text[: meta.get("max", 1000)]
    if kind in ("integer", "long"):
        return max(meta.get("min", 3), min(7, meta.get("max", 7)))
    if kind in ("float", "double"):
        return 1.5
    if kind == "boolean":
        return True
    if kind == "timestamp":
        return MOMENT
    if kind == "blob":
        return base64.b64encode(b"\x00\xff bytes").decode()
    raise AssertionError(kind)


def for_botocore(shape, ours):
    """The value as botocore wants it, or gives it."""
    kind = shape.type_name
    if kind == "structure":
        return {name: for_botocore(shape.members[name], member) for name, member in ours.items()}
    if kind == "list":
        return [for_botocore(shape.member, element) for element in ours]
    if kind == "timestamp":
        return datetime.datetime.fromtimestamp(ours, datetime.timezone.utc)
    if kind == "blob":
        return base64.b64decode(ours)
    return ours


def for_decoder(shape, ours):
    """A request's value as our decoder gives it: moments are text."""
    kind = shape.type_name
    if kind == "structure":
        return {name: for_decoder(shape.members[name], member) for name, member in ours.items()}
    if kind == "list":
        return [for_decoder(shape.member, element) for element in ours]
    if kind == "timestamp":
        return datetime.datetime.fromtimestamp(ours, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return ours


def write(path):
    lines = [json.loads(line) for line in open(path)]
    with open(path, "w") as file:
        for line in lines:
            model = SESSION.get_service_model(line["service"])
            operation = model.operation_model(line["operation"])
            pair = dict(line, form=[], input={}, output={})
            serializer = botocore.serialize.create_serializer(model.metadata["protocol"], include_validation=False)
            if operation.input_shape:
                ours = value(operation.input_shape, "input") or {}
                body = serializer.serialize_to_request(for_botocore(operation.input_shape, ours), operation)["body"]
                pair["form"] = sorted((name, str(text)) for name, text in body.items())
                pair["input"] = for_decoder(operation.input_shape, ours)
            if operation.output_shape:
                pair["output"] = value(operation.output_shape, "output") or {}
            file.write(json.dumps(pair) + "\n")


def read(path):
    count = 0
    for line in map(json.loads, open(path)):
        model = SESSION.get_service_model(line["service"])
        operation = model.operation_model(line["operation"])
        parser = botocore.parsers.create_parser(model.metadata["protocol"])
        parsed = parser.parse({"status_code": 200, "headers": {}, "body": line["xml"].encode()}, operation.output_shape)
        same_id = parsed.pop("ResponseMetadata")["RequestId"]
        assert same_id == "the-request", same_id
        if operation.output_shape:
            expected = for_botocore(operation.output_shape, line["output"])
            assert parsed == expected, f"{line['operation']}:\n{parsed}\nis not\n{expected}"
        count += 1
    print(f"{count} answers")


{"write": write, "read": read}[sys.argv[1]](sys.argv[2])
print("done")
