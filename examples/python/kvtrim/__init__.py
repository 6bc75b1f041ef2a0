# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""KV-cache eviction policies for LLM inference, over NumPy arrays and tensors of any framework, without a copy.

    plan = kvtrim.plan("ada_snapkv", keys, queries, budget=200, sink_tokens=4)   # which rows of each KV head stay
    kvtrim.compact_in_place(plan, keys, values)                                  # they are the first ones of each head now

keys, values [kv_heads, tokens, head_dim]; queries [q_heads, window, head_dim], the newest ones, RoPE applied. policies() lists what
there is; kvtrim.transformers cuts the caches of transformers' models. What the library refuses is a `Refused`, with nothing written.

Through ctypes over the library's C interface: nothing is compiled against Python, so one wheel serves every version of it, and a view is
a pointer with strides either way.
"""
from ._c import lib as _lib
from ._core import (Layer, Means, MovedPages, Needs, Norms, Option, Plan, Policy, PolicyInfo, Profile, Projection, Queries, Replay, Request, Rope,
                    Scores, State, Statistics, compact_in_place, compact_pages, compact_to_flat, gather, layer_preference, plan, plan_layers, policies,
                    scores)
from ._errors import Code, Refused
from ._rows import Pages, Rows, RowsLike, SupportsDLPack

__version__: str = _lib.kvtrim_version().decode()
cpu_level: str = _lib.kvtrim_cpu_level().decode()

__all__ = [
    "Code", "Layer", "Means", "MovedPages", "Needs", "Norms", "Option", "Pages", "Plan", "Policy", "PolicyInfo", "Profile", "Projection", "Queries",
    "Refused", "Replay", "Request", "Rope", "Rows", "RowsLike", "Scores", "State", "Statistics", "SupportsDLPack", "compact_in_place", "compact_pages", "compact_to_flat", "cpu_level", "gather",
    "layer_preference", "plan", "plan_layers", "policies", "scores",
]
