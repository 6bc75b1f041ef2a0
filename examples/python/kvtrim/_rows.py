# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Arrays of NumPy, torch, JAX, ... as views of the library: a pointer, extents and strides; no element is copied."""
from __future__ import annotations

import ctypes
import dataclasses
from ctypes import POINTER, c_float, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from typing import Any, NamedTuple, Protocol, Sequence, TypeAlias, Union, runtime_checkable

import numpy as np
import numpy.typing as npt

from . import _c
from ._errors import check


@runtime_checkable
class SupportsDLPack(Protocol):
    """A tensor of any framework."""

    def __dlpack__(self) -> Any: ...


class _DLTensor(ctypes.Structure):
    """DLPack's tensor, with which its DLManagedTensor begins."""

    _fields_ = [
        ("data", c_void_p), ("device_type", c_int32), ("device_id", c_int32), ("ndim", c_int32), ("code", c_uint8),
        ("bits", c_uint8), ("lanes", c_uint16), ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = c_void_p, (ctypes.py_object, ctypes.c_char_p)

_ELEMENTS = {"float32": _c.F32, "float16": _c.F16, "bfloat16": _c.BF16, "int8": _c.I8, "float8_e4m3fn": _c.F8_E4M3,
             "float8_e5m2": _c.F8_E5M2}
_DLPACK_ELEMENTS = {(2, 32): "float32", (2, 16): "float16", (4, 16): "bfloat16", (0, 8): "int8", (1, 8): "uint8",
                    (10, 8): "float8_e4m3fn", (12, 8): "float8_e5m2"}  # code and bits
_SIZES = {_c.F32: 4, _c.F16: 2, _c.BF16: 2, _c.I8: 1, _c.F8_E4M3: 1, _c.F8_E5M2: 1}
_BLOCK = 32  # channels
# Kinds of rows that an array of bytes does not tell: ggml's blocks with their bytes, and 8-bit floats.
_BLOCKS = {"q8_0": (_c.Q8_0, 34), "q4_0": (_c.Q4_0, 18), "q4_1": (_c.Q4_1, 20), "q5_0": (_c.Q5_0, 22), "q5_1": (_c.Q5_1, 24),
           "iq4_nl": (_c.IQ4_NL, 18)}
_BYTES = {"f8_e4m3": _c.F8_E4M3, "f8_e5m2": _c.F8_E5M2}
_ANY = -1  # bytes whose kind is to be said
_DLPACK_CPU = (1, 3)  # plain memory, and memory that is pinned for CUDA


class _Memory(NamedTuple):
    address: int
    element: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in bytes
    writable: bool
    owner: Any  # keeps the memory


def _element(name: str) -> int:
    if name == "uint8":
        return _ANY
    if name not in _ELEMENTS:
        raise TypeError(f"rows of {name}: they must be of {', '.join(_ELEMENTS)}, or of bytes with element=")
    return _ELEMENTS[name]


def _of_numpy(array: npt.NDArray[Any]) -> _Memory:
    element = _element(array.dtype.name if array.dtype.isnative else f"byte-swapped {array.dtype.name}")
    return _Memory(array.ctypes.data, element, array.shape, array.strides, array.flags.writeable, array)


def _of_dlpack(tensor: SupportsDLPack) -> _Memory:
    # Nobody takes the capsule's name from it, so it is what frees the tensor's memory, when it goes.
    capsule = tensor.__dlpack__()
    t = _DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
    if t.device_type not in _DLPACK_CPU:
        raise TypeError(f"a tensor on another device (DLPack's kind {t.device_type}): kvtrim reads the memory of the CPU")
    element = _element(_DLPACK_ELEMENTS.get((t.code, t.bits), f"DLPack's kind {t.code} of {t.bits} bits"))
    shape = tuple(t.shape[: t.ndim])
    if t.strides:
        strides = tuple(t.strides[: t.ndim])
    else:
        strides = tuple(int(np.prod(shape[i + 1:], dtype=np.int64)) for i in range(t.ndim))
    bytes_each = t.bits // 8
    return _Memory((t.data or 0) + t.byte_offset, element, shape, tuple(s * bytes_each for s in strides), True, capsule)


def memory_of(data: Any) -> _Memory:
    if isinstance(data, np.ndarray):
        return _of_numpy(data)
    if isinstance(data, SupportsDLPack):
        return _of_dlpack(data)
    raise TypeError(f"{type(data).__name__}: rows are a NumPy array, or a tensor with __dlpack__")


def _int_pointer(numbers: npt.NDArray[Any], kind: Any) -> Any:
    return numbers.ctypes.data_as(POINTER(kind))


@dataclasses.dataclass(frozen=True)
class Pages:
    """The page table of a cache in blocks, as vLLM, FlashInfer and SGLang have it: slot t % page_tokens of page
    indices[indptr[row] + t // page_tokens] holds token t.

    indices    [any number] pages
    indptr     [rows + 1] where each row of the table begins
    last_page  [rows] tokens in the last page of each
    row        which one: a sequence
    per_head   the table has a row, and so a length, for each (sequence, KV head): row * heads + head
    """

    indices: Sequence[int] | npt.NDArray[Any]
    indptr: Sequence[int] | npt.NDArray[Any]
    last_page: Sequence[int] | npt.NDArray[Any]
    row: int = 0
    per_head: bool = False


class Rows:
    """Rows of keys, values or queries in memory that lies elsewhere. Wherever rows are an argument, the array itself stands for
    `Rows(array)`.

    data        [heads, tokens, channels] with any strides: a NumPy array, or a tensor with __dlpack__ (torch, JAX, ...) on the CPU, of
                float32, float16, bfloat16, int8 or 8-bit floats. It is not copied, and kept as long as the view is.
    element     what an array of bytes (uint8) holds: "f8_e4m3", "f8_e5m2", or ggml's blocks of 32 channels "q8_0", "q4_0", "q4_1", "q5_0",
                "q5_1", "iq4_nl", where the last axis has the bytes of a row, one after the other
    lengths     [heads] how many rows of each head are filled; all of them if not given.
    indices     the rows that the sequence has, of a pool that all share: slots [any number], the same for all heads.
    indptr      [heads + 1]: heads lie one after the other in data [rows, channels], head h from row indptr[h] to indptr[h + 1].
                What compact_to_flat() and gather() leave, with the plan's indptr. With lengths there is room behind each head's rows.
    pages       data is a pool [pages, heads, page_tokens, channels], whose channels follow each other: transpose it to that.
    scales      of 8-bit rows, which are scale * (code - zero): a number, or float32 with the axes of data, each as long or 1
    zeros       none if not given, else as scales, with its shape and strides

    Errors: TypeError for data that cannot be viewed, ValueError for two layouts at once or tables that do not fit data, Refused for
    numbers that do not fit.
    """

    def __init__(self, data: npt.NDArray[Any] | SupportsDLPack, *, element: str | None = None,
                 lengths: Sequence[int] | npt.NDArray[Any] | None = None,
                 indices: Sequence[int] | npt.NDArray[Any] | None = None,
                 indptr: Sequence[int] | npt.NDArray[Any] | None = None, pages: Pages | None = None,
                 scales: float | npt.NDArray[Any] | SupportsDLPack | None = None,
                 zeros: float | npt.NDArray[Any] | SupportsDLPack | None = None) -> None:
        memory = memory_of(data)
        if (indices is not None) + (indptr is not None) + (pages is not None) + (lengths is not None and indptr is None) > 1:
            raise ValueError("rows have lengths, indices, an indptr or pages, not two of them")
        axes = (["rows", "channels"] if indptr is not None else
                ["heads", "tokens", "channels"] if pages is None else ["pages", "heads", "page_tokens", "channels"])
        if len(memory.shape) != len(axes):
            raise ValueError(f"rows of shape {memory.shape}: {len(axes)} axes are needed, [{', '.join(axes)}]")
        self.writable = memory.writable
        self._keep: list[Any] = [memory.owner]
        self.view = _c.View(data=memory.address)
        self.pages: Pages | None = None
        shape, strides = self._elements(memory, element)
        if indptr is not None:
            self._flat(indptr, shape, strides)
        elif pages is not None:
            self._paged(pages, shape, strides)
        else:
            self.view.extents[:] = shape
            self.view.strides[:] = strides
        if lengths is not None:
            self.view.lengths = _int_pointer(self._table(lengths, np.int64, self.view.extents[0]), c_int64)
        if indices is not None:
            table = self._table(indices, np.int32)
            self.view.layout, self.view.index_count = _c.INDEXED, table.size
            self.view.indices = _int_pointer(table, c_int32)
        self._scaled(scales, zeros, shape, paged=pages is not None)

    @classmethod
    def _of(cls, view: _c.View, owner: Any) -> Rows:
        """Of memory that an object of the library holds."""
        rows = cls.__new__(cls)
        rows.view, rows.writable, rows.pages, rows._keep = view, False, None, [owner]
        return rows

    def read(self, head: int, first: int, count: int) -> npt.NDArray[np.float32]:
        """The floats [count, channels] that the library reads of a head, a copy. Error: Refused for rows that are not there."""
        out = np.empty((max(count, 0), int(self.view.extents[2])), dtype=np.float32)
        check(_c.lib.kvtrim_view_read(self.view, head, first, count, out.ctypes.data_as(_c.Floats), out.size))
        return out

    def _elements(self, memory: _Memory, element: str | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sets the element; the shape in channels, and the strides as the view has them."""
        shape, strides = memory.shape, memory.strides
        if memory.element != _ANY:
            if element is not None:
                raise ValueError(f"element={element!r} is for arrays of bytes")
            self.view.element = memory.element
            return shape, strides
        if element in _BYTES:
            self.view.element = _BYTES[element]
        elif element in _BLOCKS:
            self.view.element, block = _BLOCKS[element]
            if shape[-1] % block != 0 or (shape[-1] > 1 and strides[-1] != 1):
                raise ValueError(f"rows of {element} are blocks of {block} bytes, one after the other, not {shape[-1]} bytes")
            shape, strides = (*shape[:-1], shape[-1] // block * _BLOCK), (*strides[:-1], block)
        else:
            raise TypeError(f"what bytes hold is to be said: element= one of {', '.join([*_BYTES, *_BLOCKS])}, not {element!r}")
        return shape, strides

    def _flat(self, indptr: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        table = self._table(indptr, np.int32)
        size = _SIZES.get(self.view.element, 0)
        if shape[0] > 0 and strides != (shape[1] * size, size):
            raise ValueError("rows with indptr lie one after the other: data must be contiguous, and no blocks")
        if table.size > 0 and table.max() > shape[0]:
            raise ValueError(f"indptr names row {table.max()} of {shape[0]}")
        self.view.layout, self.view.indptr = _c.RAGGED, _int_pointer(table, c_int32)
        self.view.extents[:] = (table.size - 1, shape[0], shape[1])

    def _paged(self, pages: Pages, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.pages = pages
        view, last_page = self.view, self._table(pages.last_page, np.int32)
        indices, indptr = self._table(pages.indices, np.int32), self._table(pages.indptr, np.int32, last_page.size + 1)
        view.layout = _c.PAGED_PER_HEAD if pages.per_head else _c.PAGED
        view.indices, view.index_count = _int_pointer(indices, c_int32), indices.size
        view.indptr, view.last_page = _int_pointer(indptr, c_int32), _int_pointer(last_page, c_int32)
        view.table_rows, view.row = last_page.size, pages.row
        view.pages, heads, view.page_tokens, channels = shape
        view.page_stride, view.strides[:] = strides[0], strides[1:]
        view.extents[:] = heads, 0, channels  # tables say how many

    def _scaled(self, scales: Any, zeros: Any, shape: tuple[int, ...], *, paged: bool) -> None:
        if scales is None:
            if zeros is not None:
                raise ValueError("zeros are of rows with scales")
            return
        if _SIZES.get(self.view.element) != 1:
            raise ValueError("scales are of 8-bit rows")
        factors = self._scale_array(scales, shape)
        strides = [0 if n == 1 else s for n, s in zip(factors.shape, factors.strides)]
        if self.view.layout == _c.RAGGED:
            strides = [0, *strides]
        if paged:
            self.view.scale_page_stride = strides.pop(0)
        self.view.scale_strides[:] = strides
        self.view.scales = ctypes.cast(factors.address, POINTER(c_float))
        moved = [factors] if self.view.scale_strides[1] or self.view.scale_page_stride else []  # with their rows
        if zeros is not None:
            offsets = self._scale_array(zeros, shape)
            if (offsets.shape, offsets.strides) != (factors.shape, factors.strides):
                raise ValueError("zeros lie as scales do: the same shape and strides")
            self.view.zeros = ctypes.cast(offsets.address, POINTER(c_float))
            moved += [offsets] if moved else []
        self.writable = self.writable and all(memory.writable for memory in moved)

    def _scale_array(self, given: Any, shape: tuple[int, ...]) -> _Memory:
        array = np.full([1] * len(shape), given, dtype=np.float32) if isinstance(given, (int, float)) else given
        memory = memory_of(array)
        if memory.element != _c.F32:
            raise TypeError("scales and zeros are float32")
        if len(memory.shape) != len(shape) or any(n not in (1, whole) for n, whole in zip(memory.shape, shape)):
            raise ValueError(f"scales and zeros of shape {memory.shape}: each axis is 1 or that of {shape}")
        self._keep.append(memory.owner)
        return memory

    def _table(self, numbers: Any, kind: Any, count: int | None = None) -> npt.NDArray[Any]:
        given = np.asarray(numbers)
        table = np.ascontiguousarray(given, dtype=kind)
        if table.ndim != 1 or (count is not None and table.size != count) or not np.array_equal(given, table):
            raise ValueError(f"a table of row numbers must be integers [{'any number' if count is None else count}]")
        self._keep.append(table)
        return table


RowsLike: TypeAlias = Union[Rows, npt.NDArray[Any], SupportsDLPack]


def rows_of(data: RowsLike) -> Rows:
    return data if isinstance(data, Rows) else Rows(data)


def view_of(data: RowsLike | None, keep: list[Any], *, written: bool = False) -> Any:
    """A pointer to the view, null for None; what it needs to live is added to `keep`."""
    if data is None:
        return None
    rows = rows_of(data)
    if written and not rows.writable:
        raise ValueError("rows that are written are in an array that is read-only")
    keep.append(rows)
    return ctypes.pointer(rows.view)
