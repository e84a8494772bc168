#!/usr/bin/env python3
"""vmlinux.py BZIMAGE OUT: write the uncompressed ELF kernel that a bzImage carries.

The boot protocol gives the place of the payload (payload_offset, payload_length); the
kernel build appends the uncompressed size to it as four bytes.
"""
import struct
import subprocess
import sys

DECOMPRESSORS = {
    b"\x02\x21\x4c\x18": ["lz4", "-dc"],
    b"\x28\xb5\x2f\xfd": ["zstd", "-dc"],
    b"\xfd7zX": ["xz", "-dc", "--single-stream"],
    b"\x1f\x8b\x08\x00": ["gzip", "-dc"],
}


def main(source: str, target: str) -> None:
    with open(source, "rb") as file:
        image = file.read()
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload, size = image[start : start + length - 4], struct.unpack_from("<I", image, start + length - 4)[0]
    command = DECOMPRESSORS.get(payload[:4])
    if command is None:
        sys.exit(f"{source}: unknown compression {payload[:4].hex()}")
    elf = subprocess.run(command, input=payload, stdout=subprocess.PIPE, check=True).stdout
    if len(elf) != size or elf[:4] != b"\x7fELF":
        sys.exit(f"{source}: unpacked to {len(elf)} bytes, expected an ELF file of {size}")
    with open(target, "wb") as file:
        file.write(elf)


if __name__ == "__main__":
    main(*sys.argv[1:])
