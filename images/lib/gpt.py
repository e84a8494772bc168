#!/usr/bin/env python3
"""Assemble a GPT disk image from partition images, byte for byte the same for equal input.

    gpt.py OUT DISK-GUID NUMBER,TYPE,GUID,NAME,FILE[,MEBIBYTES]... [--grub BOOT.IMG NUMBER]

Partitions are laid out in the order given, each on a 1 MiB border. --grub makes the disk
bootable by a BIOS: BOOT.IMG goes into the first sector and is told where GRUB's core image,
the content of partition NUMBER, begins.
"""
import argparse
import os
import struct
import uuid
import zlib

SECTOR = 512
MEBIBYTE = 1 << 20
ALIGN = MEBIBYTE // SECTOR
ENTRIES = 128
ENTRY_SIZE = 128
TABLE_SECTORS = ENTRIES * ENTRY_SIZE // SECTOR

TYPES = {
    "linux": "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",  # root of an x86-64 Linux
    "bios": "21686148-6449-6e6f-744e-656564454649",
    "esp": "c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
}

# Fields of GRUB's boot.img and of the first sector of core.img (grub-core/boot/i386/pc).
GRUB_BOOT_CODE_SIZE = 440
GRUB_KERNEL_SECTOR = 0x5C
GRUB_DRIVE_CHECK = 0x66
GRUB_FIRST_BLOCKLIST = 0x1F4


class Partition:
    def __init__(self, text: str, first: int):
        number, kind, guid, name, file, *size = text.split(",")
        self.number = int(number)
        self.type = uuid.UUID(TYPES[kind])
        self.guid = uuid.UUID(guid)
        self.name = name
        self.file = file
        self.first = first
        length = int(size[0]) * MEBIBYTE if size else os.path.getsize(file)
        if os.path.getsize(file) > length:
            raise SystemExit(f"{file} does not fit into {length} bytes")
        self.sectors = -(-length // MEBIBYTE) * ALIGN

    def entry(self) -> bytes:
        last = self.first + self.sectors - 1
        name = self.name.encode("utf-16le").ljust(72, b"\0")
        return struct.pack("<16s16sQQQ72s", self.type.bytes_le, self.guid.bytes_le, self.first, last, 0, name)


def header(disk: uuid.UUID, here: int, other: int, table: int, total: int, table_crc: int) -> bytes:
    first_usable, last_usable = 2 + TABLE_SECTORS, total - TABLE_SECTORS - 2
    fields = (b"EFI PART", 0x10000, 92, 0, 0, here, other, first_usable, last_usable, disk.bytes_le, table, ENTRIES, ENTRY_SIZE, table_crc)
    data = bytearray(struct.pack("<8sIIIIQQQQ16sQIII", *fields))
    struct.pack_into("<I", data, 16, zlib.crc32(data))
    return bytes(data).ljust(SECTOR, b"\0")


def protective_mbr(total: int) -> bytearray:
    sector = bytearray(SECTOR)
    struct.pack_into("<B3sB3sII", sector, 446, 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(total - 1, 0xFFFFFFFF))
    sector[510:] = b"\x55\xaa"
    return sector


def copy_sparse(source: str, target, offset: int) -> None:
    with open(source, "rb") as file:
        while block := file.read(64 << 10):
            if block.count(0) != len(block):
                target.seek(offset)
                target.write(block)
            offset += len(block)


def add_grub(mbr: bytearray, target, boot: str, core: Partition) -> None:
    with open(boot, "rb") as file:
        mbr[:GRUB_BOOT_CODE_SIZE] = file.read(GRUB_BOOT_CODE_SIZE)
    struct.pack_into("<Q", mbr, GRUB_KERNEL_SECTOR, core.first)
    # Two no-operations in place of the jump that would distrust the BIOS's drive number.
    mbr[GRUB_DRIVE_CHECK : GRUB_DRIVE_CHECK + 2] = b"\x90\x90"
    target.seek(core.first * SECTOR + GRUB_FIRST_BLOCKLIST)
    target.write(struct.pack("<Q", core.first + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("guid", type=uuid.UUID)
    parser.add_argument("partition", nargs="+")
    parser.add_argument("--grub", nargs=2)
    arguments = parser.parse_args()

    partitions: list[Partition] = []
    end = ALIGN
    for text in arguments.partition:
        partitions.append(Partition(text, end))
        end += partitions[-1].sectors
    total = end + ALIGN

    table = bytearray(ENTRIES * ENTRY_SIZE)
    for partition in partitions:
        at = (partition.number - 1) * ENTRY_SIZE
        table[at : at + ENTRY_SIZE] = partition.entry()
    crc = zlib.crc32(table)
    backup_table = total - 1 - TABLE_SECTORS

    with open(arguments.out, "wb") as out:
        out.truncate(total * SECTOR)
        for partition in partitions:
            copy_sparse(partition.file, out, partition.first * SECTOR)
        mbr = protective_mbr(total)
        if arguments.grub:
            boot, number = arguments.grub
            add_grub(mbr, out, boot, next(p for p in partitions if p.number == int(number)))
        out.seek(0)
        out.write(mbr + header(arguments.guid, 1, total - 1, 2, total, crc) + table)
        out.seek(backup_table * SECTOR)
        out.write(table + header(arguments.guid, total - 1, 1, backup_table, total, crc))


if __name__ == "__main__":
    main()
