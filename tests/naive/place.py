"""Fetched bytes into slots, read by read, in plain Python integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shufflestore.storage.base import COPY, HAS_CRC, WIDEN, ZERO

WIDENED = {op: pair for pair, op in WIDEN.items()}


def crc32c(data: bytes) -> int:
    """The checksum, bit by bit."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def slot_bytes(read: Any) -> int:
    """How much of its output a read fills."""
    if int(read["op"]) in (COPY, ZERO):
        return int(read["size"])
    source, target = WIDENED[int(read["op"])]
    return int(read["size"]) // int(source[1]) * int(target[1])


def is_sound(read: Any, data_size: int, data_offset: int, outputs: Sequence[bytearray]) -> bool:
    """Whether a read stays within its data and its output, and means something."""
    op, offset, size = int(read["op"]), int(read["offset"]), int(read["size"])
    if int(read["flags"]) not in (0, HAS_CRC) or int(read["output"]) >= len(outputs):
        return False
    if op not in (COPY, ZERO, *WIDENED) or (op in WIDENED and size % int(WIDENED[op][0][1])):
        return False
    if op != ZERO and (
        offset + size > 2**63 - 1 or (size and not data_offset <= offset <= offset + size <= data_offset + data_size)
    ):
        return False
    return int(read["slot"]) + slot_bytes(read) <= len(outputs[int(read["output"])])


def naive_place(data: bytes, data_offset: int, reads: Any, outputs: Sequence[bytearray]) -> tuple[int, int] | None:
    """Fill `outputs`; the first read whose checksum is another and the one found. ValueError, and nothing done, if unsound."""
    if not all(is_sound(read, len(data), data_offset, outputs) for read in reads):
        raise ValueError("unsound")
    for index, read in enumerate(reads):
        op, size, slot = int(read["op"]), int(read["size"]), int(read["slot"])
        output = outputs[int(read["output"])]
        if op == ZERO:
            output[slot : slot + size] = bytes(size)
            continue
        begin = int(read["offset"]) - data_offset
        span = data[begin : begin + size] if size else b""
        if int(read["flags"]) & HAS_CRC and crc32c(span) != int(read["crc"]):
            return index, crc32c(span)
        if op != COPY:
            source, target = WIDENED[op]
            width, wide = int(source[1]), int(target[1])
            numbers = [
                int.from_bytes(span[i : i + width], "little", signed=source[0] == "i") for i in range(0, size, width)
            ]
            span = b"".join(number.to_bytes(wide, "little", signed=target[0] == "i") for number in numbers)
        output[slot : slot + len(span)] = span
    return None
