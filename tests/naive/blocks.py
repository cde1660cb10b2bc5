"""The rolling block order in plain Python integers, place by place: slow, and believed at sight."""

from __future__ import annotations

from tests.naive import orders


def one_of_many(value: int, member: int, length: int, key: list[int], *, backwards: bool) -> int:
    """The permutation of [0, length) that has a number: the network with every key word xor the number's hash."""
    tweak = orders.mix(key[0] + (member + 1) * orders.G)
    return orders.walk(value, length, [word ^ tweak for word in key], backwards=backwards)


def whole(length: int, block_records: int, open_blocks: int, seed: int, epoch: int) -> list[int]:
    """All ids of an epoch, put together cell by cell."""
    size = min(block_records, max(length, 1))
    blocks, rest = divmod(length, size)
    opened = min(open_blocks, blocks)
    name = f"blocks:{block_records}:{open_blocks}:{length}"

    def key(part: str, count: int) -> list[int]:
        return orders.words(seed, epoch, orders.purpose(f"{name}/{part}", count))

    rows, cells, behind = key("rows", size), key("cells", size), key("rest", rest)
    block_in = orders.permute_words(list(range(blocks)), blocks, key("slots", blocks)) if blocks else []
    # Deal each block's rows, in the block's own order, into groups: group e holds ranks with rank * E // B == e.
    found: list[int] = []
    for cell in range(blocks):
        drawn = [0] * size
        for rank in range(size):
            block = block_in[(cell - rank * opened // size) % blocks]
            row = one_of_many(rank, block, size, rows, backwards=False)
            drawn[one_of_many(rank, cell, size, cells, backwards=True)] = block * size + row
        found += drawn
    if rest:
        period = length // rest
        for part, late in enumerate(orders.permute_words(list(range(rest)), rest, behind)):
            offset = orders.mix(behind[1] + (part + 1) * orders.G) % period
            found.insert(part * period + offset, blocks * size + late)
    return found


def id_at(position: int, length: int, block_records: int, open_blocks: int, seed: int, epoch: int) -> int:
    """One id of an order of any length."""
    size = min(block_records, length)
    blocks, rest = divmod(length, size)
    opened = min(open_blocks, blocks)
    name = f"blocks:{block_records}:{open_blocks}:{length}"

    def key(part: str, count: int) -> list[int]:
        return orders.words(seed, epoch, orders.purpose(f"{name}/{part}", count))

    if rest:
        behind, period = key("rest", rest), length // rest
        part = min(position // period, rest)
        if part < rest:
            place = part * period + orders.mix(behind[1] + (part + 1) * orders.G) % period
            if position == place:
                return blocks * size + orders.permute_words([part], rest, behind)[0]
            part += position > place
        position -= part
    cell, place = divmod(position, size)
    rank = one_of_many(place, cell, size, key("cells", size), backwards=False)
    slot = (cell - rank * opened // size) % blocks
    block = orders.permute_words([slot], blocks, key("slots", blocks))[0]
    return block * size + one_of_many(rank, block, size, key("rows", size), backwards=False)
