# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Arrays of NumPy, torch, JAX, ... as views of the library: a pointer, extents and strides; no element is copied."""
from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from typing import Any, NamedTuple, Protocol, Sequence, TypeAlias, Union, runtime_checkable

import numpy as np
import numpy.typing as npt

from . import _c


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

_ELEMENTS = {"float32": _c.F32, "float16": _c.F16, "bfloat16": _c.BF16}
_DLPACK_ELEMENTS = {(2, 32): "float32", (2, 16): "float16", (4, 16): "bfloat16"}  # code and bits
_DLPACK_CPU = (1, 3)  # plain memory, and memory that is pinned for CUDA


class _Memory(NamedTuple):
    address: int
    element: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in bytes
    writable: bool
    owner: Any  # keeps the memory


def _element(name: str) -> int:
    if name not in _ELEMENTS:
        raise TypeError(f"rows of {name}: they must be of float32, float16 or bfloat16")
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


class Rows:
    """Rows of keys, values or queries in memory that lies elsewhere. Wherever rows are an argument, the array itself stands for
    `Rows(array)`.

    data        [heads, tokens, channels] of float32, float16 or bfloat16, with any strides: a NumPy array, or a tensor with
                __dlpack__ (torch, JAX, ...) on the CPU. It is not copied, and kept as long as the view is.
    lengths     [heads] how many rows of each head are filled; all of them if not given.
    indices     the rows that the sequence has, of a pool that all share: slots [any number], the same for all heads.
    indptr      [heads + 1]: heads lie one after the other in data [rows, channels], head h from row indptr[h] to indptr[h + 1].
                What compact_to_flat() and gather() leave, with the plan's indptr.

    Errors: TypeError for data that cannot be viewed, ValueError for two layouts at once, Refused for numbers that do not fit.
    """

    def __init__(self, data: npt.NDArray[Any] | SupportsDLPack, *, lengths: Sequence[int] | npt.NDArray[Any] | None = None,
                 indices: Sequence[int] | npt.NDArray[Any] | None = None,
                 indptr: Sequence[int] | npt.NDArray[Any] | None = None) -> None:
        memory = memory_of(data)
        if (lengths is not None) + (indices is not None) + (indptr is not None) > 1:
            raise ValueError("rows have lengths, indices or an indptr, not two of them")
        rank = 3 if indptr is None else 2
        if len(memory.shape) != rank:
            raise ValueError(f"rows of shape {memory.shape}: {rank} axes are needed, [heads, tokens, channels] or, "
                             "with indptr, [rows, channels]")
        self.writable = memory.writable
        self._keep: list[Any] = [memory.owner]
        self.view = _c.View(element=memory.element, data=memory.address)
        if indptr is None:
            self.view.extents[:] = memory.shape
            self.view.strides[:] = memory.strides
        else:
            table = self._table(indptr, np.int32)
            channels, size = memory.shape[1], 4 if memory.element == _c.F32 else 2
            if memory.shape[0] > 0 and memory.strides != (channels * size, size):
                raise ValueError("rows with indptr lie one after the other: data must be contiguous")
            if table.size > 0 and table.max() > memory.shape[0]:
                raise ValueError(f"indptr names row {table.max()} of {memory.shape[0]}")
            self.view.layout, self.view.indptr = _c.RAGGED, _int_pointer(table, c_int32)
            self.view.extents[:] = (table.size - 1, memory.shape[0], channels)
        if lengths is not None:
            table = self._table(lengths, np.int64, memory.shape[0])
            self.view.lengths = _int_pointer(table, c_int64)
        if indices is not None:
            table = self._table(indices, np.int32)
            self.view.layout, self.view.index_count = _c.INDEXED, table.size
            self.view.indices = _int_pointer(table, c_int32)

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
