"""Thrift's compact encoding, in which Parquet writes footers and page headers: to forge them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BOOLEANS, I8, INTEGERS, DOUBLE, BINARY, LISTS, STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12


@dataclass
class Value:
    """A value and the code of its type. A struct's is a dict by field numbers, a list's a list."""

    kind: int
    content: Any

    def __getitem__(self, at: int) -> Value:
        return self.content[at]

    def set(self, at: int, number: int) -> None:
        """Change a field or an item that is an integer."""
        assert self.content[at].kind in INTEGERS
        self.content[at].content = number


class Decoder:
    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def varint(self) -> int:
        result = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            result |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return result

    def signed(self) -> int:
        number = self.varint()
        return number >> 1 ^ -(number & 1)

    def taken(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def value(self, kind: int = STRUCT) -> Value:
        if kind in BOOLEANS:
            return Value(kind, None)
        if kind in INTEGERS:
            return Value(kind, self.signed())
        if kind in (I8, DOUBLE):
            return Value(kind, self.taken(1 if kind == I8 else 8))
        if kind == BINARY:
            return Value(kind, self.taken(self.varint()))
        if kind in LISTS:
            head = self.taken(1)[0]
            count = head >> 4 if head >> 4 < 15 else self.varint()
            of = head & 15
            # In a list a boolean has a byte of its own.
            items = [Value(of, self.taken(1)) if of in BOOLEANS else self.value(of)
                     for _ in range(count)]  # fmt: skip
            return Value(kind, (of, items))
        assert kind == STRUCT, kind
        fields: dict[int, Value] = {}
        number = 0
        while head := self.taken(1)[0]:
            number = number + (head >> 4) if head >> 4 else self.signed()
            fields[number] = self.value(head & 15)
        return Value(STRUCT, fields)


def decoded(data: bytes, at: int = 0) -> tuple[Value, int]:
    """Return the struct that begins there, and where it ends."""
    decoder = Decoder(data, at)
    return decoder.value(), decoder.at


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _signed(number: int) -> bytes:
    return _varint((number << 1 ^ number >> 63) & 2**64 - 1)


def encoded(value: Value) -> bytes:
    """Return a value as bytes."""
    kind, content = value.kind, value.content
    if kind in BOOLEANS and content is None:
        return b""
    if kind in INTEGERS:
        return _signed(content)
    if kind == BINARY:
        return _varint(len(content)) + content
    if kind in LISTS:
        of, items = content
        head = bytes([len(items) << 4 | of]) if len(items) < 15 else bytes([0xF0 | of])
        count = b"" if len(items) < 15 else _varint(len(items))
        return head + count + b"".join(map(encoded, items))
    if kind != STRUCT:
        return content
    out, before = b"", 0
    for number, field in sorted(content.items()):
        out += bytes([(number - before) << 4 | field.kind]) + encoded(field)
        before = number
    return out + b"\0"


def items(value: Value) -> list[Value]:
    """Return the items of a list."""
    return value.content[1]


def integers(value: Value) -> list[Value]:
    """Return every integer in a value, itself one or far below."""
    if value.kind in INTEGERS:
        return [value]
    if value.kind in LISTS:
        return [found for item in items(value) for found in integers(item)]
    if value.kind == STRUCT:
        return [found for field in value.content.values() for found in integers(field)]
    return []


def footer_of(data: bytes) -> Value:
    """Return the footer of a Parquet file."""
    size = int.from_bytes(data[-8:-4], "little")
    return decoded(data, len(data) - 8 - size)[0]


def with_footer(data: bytes, footer: Value) -> bytes:
    """Return a Parquet file with another footer."""
    old, new = int.from_bytes(data[-8:-4], "little"), encoded(footer)
    return data[: -8 - old] + new + len(new).to_bytes(4, "little") + b"PAR1"
