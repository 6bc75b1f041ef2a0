# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""kvtrim_c.h for ctypes: the structs, numbers and functions that this package uses, by the names they have there.

tests/test_declarations.py compares all of them with the header.
"""
from __future__ import annotations

import ctypes
import pathlib
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_void_p
from typing import Any

API_VERSION = 2

F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, I8, F8_E4M3, F8_E5M2 = range(12)
STRIDED, INDEXED, PAGED, PAGED_PER_HEAD, RAGGED = range(5)
INTEGER, CHOICE = 0, 2


class Status(Structure):
    _fields_ = [("code", c_int32), ("reserved", c_int32), ("needed", c_int64), ("text", c_char_p)]


class Ints(Structure):
    _fields_ = [("data", POINTER(c_int32)), ("count", c_int64)]


class _Sized(Structure):
    """A struct that begins with its size; members are 0 unless given."""

    def __init__(self, **members: Any) -> None:
        super().__init__(size=ctypes.sizeof(type(self)), **members)


class View(_Sized):
    _fields_ = [
        ("size", c_size_t), ("element", c_int32), ("layout", c_int32), ("data", c_void_p),
        ("extents", c_int64 * 3), ("strides", c_int64 * 3), ("lengths", POINTER(c_int64)),
        ("indices", POINTER(c_int32)), ("index_count", c_int64), ("indptr", POINTER(c_int32)),
        ("last_page", POINTER(c_int32)), ("table_rows", c_int64), ("row", c_int64), ("page_tokens", c_int64),
        ("page_stride", c_int64), ("pages", c_int64), ("scales", POINTER(c_float)), ("zeros", POINTER(c_float)),
        ("scale_strides", c_int64 * 3), ("scale_page_stride", c_int64),
    ]


class PolicyInfo(_Sized):
    _fields_ = [("size", c_size_t), ("name", c_char_p), ("text", c_char_p), ("needs", c_int32), ("option_count", c_int32)]


class OptionInfo(_Sized):
    _fields_ = [
        ("size", c_size_t), ("name", c_char_p), ("text", c_char_p), ("choices", c_char_p), ("type", c_int32),
        ("reserved", c_int32), ("by_default", c_double), ("lowest", c_double), ("highest", c_double),
    ]


class Rope(_Sized):
    _fields_ = [
        ("size", c_size_t), ("inverse_frequencies", POINTER(c_float)), ("pairs", c_int64),
        ("attention_factor", c_float), ("interleaved", c_int32),
    ]


class Layer(_Sized):
    _fields_ = [
        ("size", c_size_t), ("keys", POINTER(View)), ("values", POINTER(View)), ("queries", POINTER(View)),
        ("output_projection", POINTER(View)), ("replay", c_void_p), ("running", c_void_p),
        ("statistics", c_void_p), ("rope", POINTER(Rope)), ("scores", POINTER(View)), ("means", c_void_p),
        ("norms", c_void_p), ("projection", c_void_p),
    ]


class Request(_Sized):
    _fields_ = [
        ("size", c_size_t), ("budget_tokens", c_int64), ("budget_scope", c_int32), ("scale", c_float),
        ("soft_cap", c_float), ("reserved", c_int32), ("sink_tokens", c_int64), ("pinned_tokens", c_int64),
        ("window_tokens", c_int64), ("rollback_tokens", c_int64), ("sliding_window", c_int64),
        ("sink_logits", POINTER(c_float)), ("sink_logits_count", c_int64), ("layer_shares", POINTER(c_double)),
        ("layer_shares_count", c_int64), ("profile", c_void_p),
    ]


class PagePool(_Sized):
    _fields_ = [
        ("size", c_size_t), ("indptr", POINTER(c_int32)), ("indices", POINTER(c_int32)), ("index_count", c_int64),
        ("last_page", POINTER(c_int32)), ("table_rows", c_int64), ("pages", c_int64), ("page_tokens", c_int64), ("heads", c_int64),
        ("ref_counts", POINTER(c_int32)), ("free_pages", POINTER(c_int32)), ("free_count", c_int64), ("order", c_int32),
        ("copy_shared", c_int32),
    ]


Int32s, Int64s, Floats = POINTER(c_int32), POINTER(c_int64), POINTER(c_float)
Views, Layers, Requests = POINTER(View), POINTER(Layer), POINTER(Request)
Handle, Made = c_void_p, POINTER(c_void_p)

_STATES = ("replay", "statistics", "means", "profile", "queries", "norms")

FUNCTIONS: dict[str, tuple[Any, ...]] = {  # what it returns, and its arguments
    "api_version": (c_int32,),
    "version": (c_char_p,),
    "cpu_level": (c_char_p,),
    "view_validate": (Status, Views),
    "view_read": (Status, Views, c_int64, c_int64, c_int64, Floats, c_int64),
    "context_create": (Status, c_void_p, Made),
    "context_destroy": (None, Handle),
    "policy_count": (c_int64,),
    "policy_describe": (Status, c_int64, POINTER(PolicyInfo)),
    "policy_describe_option": (Status, c_int64, c_int64, POINTER(OptionInfo)),
    "policy_create": (Status, c_char_p, c_char_p, Made),
    "policy_destroy": (None, Handle),
    "plan_create": (Status, Made),
    "plan_destroy": (None, Handle),
    "plan_rows": (c_int64, Handle),
    "plan_offsets": (Int32s, Handle),
    "plan_kept": (Int32s, Handle),
    "plan_assign": (Status, Handle, Int32s, c_int64, Int32s),
    "plan_share": (Status, Handle, c_int64, c_int64, Handle, Handle),
    "plan_layers": (Status, Handle, Layers, c_int64, Requests, POINTER(Handle), c_int64, Handle),
    "scores_create": (Status, Made),
    "scores_destroy": (None, Handle),
    "scores_rows": (c_int64, Handle),
    "scores_offsets": (Int64s, Handle),
    "scores_importance": (Floats, Handle),
    "score_layer": (Status, Handle, Layers, Requests, Handle, Handle),
    "compact_in_place": (Status, Views, Views, Handle),
    "compact_to_flat": (Status, Views, Views, Handle),
    "gather": (Status, Views, Handle, c_int32, c_void_p, c_int64),
    "moves_create": (Status, Made),
    "moves_destroy": (None, Handle),
    "moves_plan": (Status, Handle, Handle, POINTER(PagePool), Handle),
    "moves_rows": (c_int64, Handle),
    "moves_origins": (Ints, Handle, c_int64),
    **{f"moves_{part}": (Ints, Handle) for part in ("indptr", "indices", "last_page", "freed", "released")},
    "moves_taken": (c_int64, Handle),
    "moves_run": (Status, Handle, Views, Views, Handle),
    "replay_create": (Status, c_int64, c_int64, c_int32, Made),
    "replay_destroy": (None, Handle),
    "replay_add": (Status, Handle, Layers, Requests, Handle),
    "replay_add_own": (Status, Handle, Layers, Requests, c_int64, Handle),
    "replay_add_pass": (Status, Handle, Handle, c_int64, c_double),
    "replay_weigh": (Status, Handle, Handle),
    "replay_scores": (Status, Handle, c_int64, Floats, c_int64),
    "queries_create": (Status, c_int64, c_int64, c_int64, c_int64, c_int32, Made),
    "queries_destroy": (None, Handle),
    "queries_append": (Status, Handle, Views),
    "queries_rollback": (Status, Handle, c_int64),
    "queries_held": (c_int64, Handle),
    "queries_view": (Status, Handle, c_int64, Views),
    "projection_create": (Status, Views, c_int32, Made),
    "projection_destroy": (None, Handle),
    "norms_create": (Status, c_int64, Made),
    "norms_destroy": (None, Handle),
    "norms_append": (Status, Handle, Layers, c_int64, Handle),
    "norms_rollback": (Status, Handle, c_int64),
    "norms_compact": (Status, Handle, Handle),
    "norms_of_head": (Floats, Handle, c_int64, Int64s),
    "statistics_create": (Status, c_int64, c_int64, c_int64, Made),
    "statistics_destroy": (None, Handle),
    "statistics_add": (Status, Handle, Views, Handle),
    "means_create": (Status, c_int64, c_int64, POINTER(Rope), Made),
    "means_destroy": (None, Handle),
    "means_add": (Status, Handle, Views, Handle),
    "profile_create": (Status, Made),
    "profile_destroy": (None, Handle),
    "profile_add": (Status, Handle, Handle, Layers, c_int64, Requests, Handle),
    "profile_prompts": (c_int64, Handle),
    "profile_rows": (c_int64, Handle),
    "layer_preference": (Status, Layers, Requests, c_double, c_double, POINTER(c_double), Handle),
    **{f"{state}_save": (Status, Handle, c_void_p, c_int64, Int64s) for state in _STATES},
    **{f"{state}_restore": (Status, Handle, c_void_p, c_int64) for state in _STATES},
}


def _load() -> ctypes.CDLL:
    here = pathlib.Path(__file__).parent
    names = ("libkvtrim_c.so", "libkvtrim_c.dylib", "kvtrim_c.dll", "libkvtrim_c.dll")
    found = [here / name for name in names if (here / name).exists()]
    if not found:
        raise ImportError(f"{here} has no libkvtrim_c: pip install ./examples/python builds it")
    loaded = ctypes.CDLL(str(found[0]))
    for name, (returns, *arguments) in FUNCTIONS.items():
        function = getattr(loaded, f"kvtrim_{name}")
        function.restype, function.argtypes = returns, arguments
    if loaded.kvtrim_api_version() != API_VERSION:
        raise ImportError(f"{found[0]} has another interface than this package: {loaded.kvtrim_api_version()}")
    return loaded


lib = _load()
