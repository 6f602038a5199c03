"""HPACK (RFC 7541), as far as it is needed without its dynamic tables: blocks that change none.

Whoever carries HTTP/2 between two others that have such tables may take a block out of what passes, or put one in, only
if it leaves both tables as they are. Strings are passed over, not decoded: their lengths say where they end.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

_MAX_INTEGER_BYTES = 5
_STATUS, _CACHE_CONTROL, _CONTENT_LENGTH, _CONTENT_TYPE, _DATE = 8, 24, 28, 31, 33  # of the static table (appendix A)
_STATUS_200 = b"\x88"
_MAX_DIGITS_BYTES = 12


def leaves_tables(block: bytes) -> bool:
    """Whether a whole block is well formed and changes no table: the same bytes will mean the same again."""
    at, end = 0, len(block)
    try:
        while at < end:
            first = block[at]
            if first & 0x80:  # an indexed field (6.1)
                _, at = _integer(block, at, 7)
            elif first & 0x60:  # a literal to be indexed (6.2.1), or a new size of the table (6.3)
                return False
            else:
                name, at = _integer(block, at, 4)
                if not name:
                    at = _behind_string(block, at)
                at = _behind_string(block, at)
    except (IndexError, ValueError):
        return False
    return at == end


def split_length(block: bytes) -> tuple[bytes, int] | None:
    """A block without the value of its content-length, and that value.

    None when it changes a table, or has not just one content-length under its name in the static table.
    """
    at, end = 0, len(block)
    found: tuple[int, int, int] | None = None
    try:
        while at < end:
            first = block[at]
            if first & 0x80:
                _, at = _integer(block, at, 7)
                continue
            if first & 0x60:
                return None
            name, at = _integer(block, at, 4)
            if not name:
                at = _behind_string(block, at)
            begin, at = at, _behind_string(block, at)
            if name == _CONTENT_LENGTH:
                value = _number(block[begin:at])
                if value is None or found is not None:
                    return None
                found = begin, at, value
    except (IndexError, ValueError):
        return None
    if found is None or at != end:
        return None
    begin, behind, value = found
    return b"%b|%b" % (block[:begin], block[behind:]), value


def _number(string: bytes) -> int | None:
    """What a string says in decimal digits; None = it says something else."""
    size, at = _integer(string, 0, 7)
    if not 0 < size <= _MAX_DIGITS_BYTES:
        return None
    data = string[at:]
    if not string[0] & 0x80:
        return int(data) if data.isdigit() else None
    bits, left, digits = int.from_bytes(data, "big"), 8 * size, 0
    value = 0
    while left > 7 or bits & ((1 << left) - 1) != (1 << left) - 1:  # what is left is not padding (5.2)
        five, six = (bits >> left - 5) & 0x1F if left >= 5 else -1, (bits >> left - 6) & 0x3F if left >= 6 else -1
        if 0 <= five <= 2:  # Huffman's codes (appendix B): 0 to 2 in five bits, 3 to 9 in six
            value, left = 10 * value + five, left - 5
        elif 0x19 <= six <= 0x1F:
            value, left = 10 * value + six - 0x16, left - 6
        else:
            return None
        digits += 1
    return value if digits else None


def response_block(status: int, content_type: str, date: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """The fields of an answer, but for its content-length."""
    pieces = [_STATUS_200 if status == 200 else _named(_STATUS, str(status))]
    pieces.append(_named(_CONTENT_TYPE, content_type))
    pieces.append(_named(_CACHE_CONTROL, "no-store"))
    pieces.append(_named(_DATE, date))
    for name, value in headers:
        pieces.append(b"\x00" + _string(name.lower()) + _string(value))
    return b"".join(pieces)


@lru_cache(maxsize=1_024)
def content_length(size_bytes: int) -> bytes:
    """That field."""
    return _named(_CONTENT_LENGTH, str(size_bytes))


def _named(name: int, value: str) -> bytes:
    """A literal that is not indexed, with a name of the static table (6.2.2)."""
    first = bytes([name]) if name < 0x0F else bytes([0x0F, name - 0x0F])
    return first + _string(value)


def _string(text: str) -> bytes:
    data = text.encode("latin-1")
    size = len(data)
    if size < 0x7F:
        return bytes([size]) + data
    size -= 0x7F
    length = bytearray([0x7F])
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes(length) + data


def _integer(block: bytes, at: int, prefix_bits: int) -> tuple[int, int]:
    """(value, what is behind it) of an integer (5.1). Raises IndexError, ValueError."""
    most = (1 << prefix_bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    for shift in range(0, 7 * _MAX_INTEGER_BYTES, 7):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise ValueError("an integer of too many bytes")


def _behind_string(block: bytes, at: int) -> int:
    size, at = _integer(block, at, 7)
    if at + size > len(block):
        raise IndexError
    return at + size
