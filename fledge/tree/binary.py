"""Binary structures, declared field by field.

A structure is a class whose annotations say where its fields are. `Layout` derives from them how
it is packed and unpacked::

    class Header(NamedTuple):
        magic: Annotated[int, u16(0x0)]
        uuid: Annotated[bytes, octets(0x4, 16)]
        size: Annotated[int, u32(0x14), u16(0x2)]  # the low half first

    HEADER = Layout(Header, size=24)
    HEADER.pack(Header(magic=1, uuid=uuid, size=5 << 32))
    HEADER.unpack_from(data, offset).size

Bytes that no field takes are written as zeros and ignored when read.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from inspect import signature
from struct import Struct
from typing import (
    Any,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    TypeVar,
    cast,
    get_args,
    get_type_hints,
)

Fields = TypeVar("Fields")
Fields_co = TypeVar("Fields_co", covariant=True)

_NATIVE_ORDER = "<" if sys.byteorder == "little" else ">"
_INTEGER_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Slot(NamedTuple):
    """The bytes of a structure that hold a field, or one half of it."""

    offset: int
    width: int
    """In bytes."""

    @property
    def slice(self) -> slice:
        """These bytes, as an index into those of the structure."""
        return slice(self.offset, self.offset + self.width)


def u8(offset: int) -> Slot:
    """An unsigned number of 8 bits."""
    return Slot(offset, 1)


def u16(offset: int) -> Slot:
    """An unsigned number of 16 bits."""
    return Slot(offset, 2)


def u32(offset: int) -> Slot:
    """An unsigned number of 32 bits."""
    return Slot(offset, 4)


def u64(offset: int) -> Slot:
    """An unsigned number of 64 bits."""
    return Slot(offset, 8)


def octets(offset: int, width: int) -> Slot:
    """Bytes as they are. Shorter values are padded with zeros."""
    return Slot(offset, width)


class Unpack(Protocol[Fields_co]):
    """The type of `Layout.unpack_from`."""

    def __call__(self, data: bytes | bytearray, offset: int = 0) -> Fields_co:
        """Return the structure at ``offset`` of ``data``."""


class Layout(Generic[Fields]):
    """Packs and unpacks structures of one class.

    The class takes its fields as keywords. Fields without a slot are left out, and need a default.
    """

    size: int
    """In bytes."""
    slots: dict[str, tuple[Slot, ...]]
    """The bytes of each field. Numbers kept in two halves have the low one first."""
    pack: Callable[[Fields], bytes]
    """The bytes of a structure. Raises `struct.error` if a number is too large for its field."""
    unpack_from: Unpack[Fields]
    """The structure at an offset. Raises `struct.error` if the data ends before it does."""
    pack_fields: Callable[..., bytes]
    """The same from the fields that have slots, one by one in the order of their declaration."""

    def __init__(
        self, fields: type[Fields], *, size: int, order: Literal["little", "big"] = "little"
    ) -> None:
        """Read the declaration; ``size`` is that of the whole structure, in bytes.

        Raises `TypeError` if fields overlap or lie outside.
        """
        annotations = get_type_hints(fields, include_extras=True)
        annotated = {name: get_args(hint) for name, hint in annotations.items()}
        self.size = size
        self.slots = {
            name: slots
            for name, parts in annotated.items()
            if (slots := tuple(part for part in parts if isinstance(part, Slot)))
        }
        by_offset = sorted((slot, name) for name, slots in self.slots.items() for slot in slots)
        self._codes = {
            slot: _INTEGER_CODES[slot.width] if annotated[name][0] is int else f"{slot.width}s"
            for slot, name in by_offset
        }
        self._order = "<" if order == "little" else ">"
        form = self._order
        end = 0
        for slot, name in by_offset:
            if slot.offset < end:
                raise TypeError(f"{fields.__name__}.{name} overlaps another field")
            form += f"{slot.offset - end}x{self._codes[slot]}"
            end = slot.offset + slot.width
        if end > size:
            raise TypeError(f"{fields.__name__} has more than {size} bytes")
        self._struct = Struct(f"{form}{size - end}x")
        is_tuple = issubclass(fields, tuple) and list(self.slots) == list(annotated)
        # The values of the slots, one by one, are just such a tuple.
        is_plain = is_tuple and list(annotated) == [name for _, name in by_offset]
        packed = "*fields" if is_plain else _packed(by_offset, self.slots)
        self.pack = _compiled(f"lambda fields: pack({packed})", pack=self._struct.pack)
        values = ", ".join(_values(by_offset, self.slots))
        self.pack_fields = _compiled(
            f"lambda {', '.join(self.slots)}: pack({values})", pack=self._struct.pack
        )
        unpacked = _unpacked(by_offset, self.slots)
        if is_plain:
            made = "new(make, values)"
        elif is_tuple:
            made = f"new(make, ({', '.join(unpacked.values())},))"
        elif _positional(fields)[: len(unpacked)] == list(unpacked):
            made = f"make({', '.join(unpacked.values())})"
        else:
            made = f"make({', '.join(f'{name}={value}' for name, value in unpacked.items())})"
        names = {"make": fields, "new": tuple.__new__, "unpack": self._struct.unpack_from}
        self._make: Callable[[tuple[Any, ...]], Fields] = _compiled(
            f"lambda values: {made}", **names
        )
        # The values are never empty, and so never false.
        self.unpack_from = _compiled(
            f"lambda data, offset=0: (values := unpack(data, offset)) and {made}", **names
        )

    def iter_unpack(self, data: bytes | bytearray) -> Iterator[Fields]:
        """The structures that fill ``data``, one after the other.

        Raises `struct.error` if the last one is incomplete.
        """
        return map(self._make, self._struct.iter_unpack(data))

    def setter(self, field: str) -> Callable[[bytearray, int], None]:
        """The function that sets one number in a structure that is packed already."""
        halves = []
        shift = 0
        for slot in self.slots[field]:
            bits = 8 * slot.width
            pack_into = Struct(self._order + self._codes[slot]).pack_into
            halves.append((pack_into, slot.offset, shift, (1 << bits) - 1))
            shift += bits

        def put(packed: bytearray, value: int) -> None:
            for pack_into, offset, shift, mask in halves:
                pack_into(packed, offset, value >> shift & mask)

        return put

    def fill(self, field: str, table: bytearray, stride: int, values: Iterable[int]) -> None:
        """Set one number in all structures of a table, in which one begins every ``stride`` bytes.

        That is much faster than to set them one by one. The field's offsets, and ``stride``, must
        be multiples of its widths.
        """
        column = list(values)
        for slot in self.slots[field]:
            bits = 8 * slot.width
            code = cast("Literal['B', 'H', 'I', 'Q']", self._codes[slot])
            has_more = max(column, default=0) >> bits
            low = [value & (1 << bits) - 1 for value in column] if has_more else column
            numbers = array(code, low)
            if self._order != _NATIVE_ORDER:
                numbers.byteswap()
            with memoryview(table) as view, view.cast(code) as cells:
                cells[slot.offset // slot.width :: stride // slot.width] = memoryview(numbers)
            column = [value >> bits for value in column] if has_more else [0] * len(column)


def _positional(fields: type) -> list[str]:
    """The fields that a class takes by position, which is quicker than by keyword."""
    parameters = signature(fields).parameters.values()
    return [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]


def _packed(by_offset: list[tuple[Slot, str]], slots: dict[str, tuple[Slot, ...]]) -> str:
    """The values of all slots, as an expression. For ``Header`` it is

    fields.magic, fields.size >> 32, fields.uuid, fields.size & 0xFFFFFFFF
    """
    return ", ".join(_values(by_offset, slots, "fields."))


def _values(
    by_offset: list[tuple[Slot, str]], slots: dict[str, tuple[Slot, ...]], prefix: str = ""
) -> Iterator[str]:
    """The value of each slot, as an expression of the fields, with a prefix to their names."""
    for slot, name in by_offset:
        low, *high = slots[name]
        if not high:
            yield prefix + name
        elif slot is low:
            yield f"{prefix}{name} & {(1 << 8 * low.width) - 1:#X}"
        else:
            yield f"{prefix}{name} >> {8 * low.width}"


def _unpacked(
    by_offset: list[tuple[Slot, str]], slots: dict[str, tuple[Slot, ...]]
) -> dict[str, str]:
    """The fields as expressions of the values of all slots. For ``Header`` they are

    magic: values[0], uuid: values[2], size: values[3] | values[1] << 32
    """
    positions = {slot: position for position, (slot, _) in enumerate(by_offset)}
    fields = {}
    for name, (low, *high) in slots.items():
        halves = [f"values[{positions[low]}]"]
        halves += [f"values[{positions[slot]}] << {8 * low.width}" for slot in high]
        fields[name] = " | ".join(halves)
    return fields


def _compiled(source: str, **names: object) -> Any:
    """A function of few bytecodes, made as `collections.namedtuple` makes its own.

    A loop over the fields would take four times as long, and images have many inodes. Nothing but
    names and offsets from declarations is in ``source``.
    """
    return eval(source, names)  # noqa: S307
