"""Declared structures, against reading and writing each field separately."""

from __future__ import annotations

import struct
from typing import Annotated, Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.tree.binary import Layout, Slot, octets, u8, u16, u32, u64


class Sample(NamedTuple):
    """Every width, a gap, and numbers with separate halves, in both byte orders."""

    first: Annotated[int, u8(0x0)]
    size: Annotated[int, u32(0x4), u16(0x2)]
    name: Annotated[bytes, octets(0x8, 5)]
    total: Annotated[int, u16(0xE), u16(0x10)]
    large: Annotated[int, u64(0x14)]
    note: str = "no field"


SAMPLES = st.builds(
    Sample,
    first=st.integers(0, (1 << 8) - 1),
    size=st.integers(0, (1 << 48) - 1),
    name=st.binary(min_size=5, max_size=5),
    total=st.integers(0, (1 << 32) - 1),
    large=st.integers(0, (1 << 64) - 1),
    note=st.just("no field"),
)


@pytest.mark.parametrize("order", ["little", "big"])
@given(fields=SAMPLES, before=st.binary(max_size=9))
@pytest.mark.slow
def test_every_field_is_where_it_is_declared(order: str, fields: Sample, before: bytes) -> None:
    layout: Layout[Sample] = Layout(Sample, size=32, order=order)  # type: ignore[arg-type]
    expected = bytearray(32)
    for name, slots in layout.slots.items():
        value = getattr(fields, name)
        if isinstance(value, bytes):
            expected[slots[0].slice] = value
            continue
        for slot in slots:
            half = value & (1 << 8 * slot.width) - 1
            expected[slot.slice] = half.to_bytes(slot.width, order)
            value >>= 8 * slot.width
    packed = layout.pack(fields)
    assert packed == expected
    assert layout.pack_fields(*(getattr(fields, name) for name in layout.slots)) == packed
    assert layout.unpack_from(before + packed, len(before)) == fields
    assert list(layout.iter_unpack(packed * 2)) == [fields, fields]
    changed = bytearray(packed)
    layout.setter("size")(changed, 1 << 40 | 7)
    assert layout.unpack_from(changed) == fields._replace(size=1 << 40 | 7)


@pytest.mark.parametrize("order", ["little", "big"])
@given(sizes=st.lists(st.integers(0, (1 << 48) - 1) | st.integers(0, 9), max_size=5))
def test_a_number_is_set_in_a_whole_table(
    order: Literal["little", "big"], sizes: list[int]
) -> None:
    layout = Layout(Sample, size=32, order=order)
    table = bytearray(layout.pack(Sample(1, 0xFFFF_FFFF_FFFF, b"name", 2, 3)) + bytes(8))
    table *= len(sizes)
    layout.fill("size", table, 40, sizes)
    found = [layout.unpack_from(table, position) for position in range(0, len(table), 40)]
    assert found == [Sample(1, size, b"name\0", 2, 3) for size in sizes]


def test_the_bytes_of_a_field() -> None:
    layout = Layout(Sample, size=32)
    assert layout.slots["size"] == (Slot(4, 4), Slot(2, 2))
    assert layout.slots["name"][0].slice == slice(8, 13)
    assert "note" not in layout.slots


def test_what_does_not_fit_is_refused() -> None:
    layout = Layout(Sample, size=32)
    with pytest.raises(struct.error):
        layout.pack(Sample(256, 0, b"", 0, 0))
    with pytest.raises(struct.error):
        layout.unpack_from(bytes(31))
    with pytest.raises(TypeError, match="more than 27 bytes"):
        Layout(Sample, size=27)
    with pytest.raises(TypeError, match="second overlaps"):
        Layout(Overlapping, size=8)


class Overlapping(NamedTuple):
    first: Annotated[int, u32(0)]
    second: Annotated[int, u16(2)]
