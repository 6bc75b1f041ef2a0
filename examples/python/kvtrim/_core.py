# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Policies, plans, scores and what is done with them: kvtrim_c.h as Python objects."""
from __future__ import annotations

import ctypes
import dataclasses
import enum
import functools
import operator
import threading
import weakref
from typing import TYPE_CHECKING, Any, Iterator, Sequence, TypeAlias, TypedDict, Union

import numpy as np
import numpy.typing as npt

from . import _c
from ._c import lib
from ._errors import Code, Refused, check
from ._rows import Pages, Rows, RowsLike, SupportsDLPack, memory_of, rows_of, view_of

if TYPE_CHECKING:
    from typing_extensions import Required, Unpack


class Handle:
    """An object of the library, destroyed when nothing refers to it."""

    def __init__(self, kind: str, *arguments: Any) -> None:
        made = ctypes.c_void_p()
        check(getattr(lib, f"kvtrim_{kind}_create")(*arguments, ctypes.byref(made)))
        self._as_parameter_ = made
        weakref.finalize(self, getattr(lib, f"kvtrim_{kind}_destroy"), made)

    def array(self, pointer: Any, count: int, kind: Any) -> npt.NDArray[Any]:
        """The `count` numbers at a pointer that this object handed out: read-only, and the object lives as long."""
        if count == 0:
            return np.empty(0, dtype=kind)
        memory = (kind * count).from_address(ctypes.addressof(pointer.contents))
        memory.owner = self
        numbers = np.frombuffer(memory, dtype=kind)
        numbers.flags.writeable = False
        return numbers


_of_thread = threading.local()


def context() -> Handle:
    """Scratch memory, one for each thread: it grows with the largest call and stays."""
    if not hasattr(_of_thread, "context"):
        _of_thread.context = Handle("context", None)
    found: Handle = _of_thread.context
    return found


# ---- Policies ----


class Needs(enum.IntFlag):
    """What a policy reads beside keys, and what it can do."""

    VALUES = 1
    QUERIES = 2
    OUTPUT_PROJECTION = 4
    REPLAY = 8
    STATISTICS = 16
    RUNNING = 32
    LAYER_SHARES = 64
    TAKES_LAYERS = 128
    TAKES_CASCADE = 256
    SCORES = 512
    MEANS = 1024
    PROFILE = 2048
    TAKES_NORMS = 4096
    ROPE = 8192


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a policy: `choices` where it is one of several words, else the range [lowest, highest]."""

    name: str
    text: str
    default: float | int | str
    lowest: float = 0
    highest: float = 0
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class PolicyInfo:
    """A policy of the library: what it is and where it is from, what it reads, its options."""

    name: str
    text: str
    needs: Needs
    options: tuple[Option, ...]


def _option(policy: int, index: int) -> Option:
    o = _c.OptionInfo()
    check(lib.kvtrim_policy_describe_option(policy, index, ctypes.byref(o)))
    name, text = o.name.decode(), o.text.decode()
    if o.type == _c.CHOICE:
        choices = tuple(o.choices.decode().split("|"))
        return Option(name, text, choices[int(o.by_default)], choices=choices)
    number = int if o.type == _c.INTEGER else float
    return Option(name, text, number(o.by_default), number(o.lowest), number(o.highest))


@functools.cache
def _policies() -> dict[str, PolicyInfo]:
    found = {}
    for index in range(lib.kvtrim_policy_count()):
        p = _c.PolicyInfo()
        check(lib.kvtrim_policy_describe(index, ctypes.byref(p)))
        options = tuple(_option(index, i) for i in range(p.option_count))
        found[p.name.decode()] = PolicyInfo(p.name.decode(), p.text.decode(), Needs(p.needs), options)
    return found


def policies() -> dict[str, PolicyInfo]:
    """All policies by name, as the library lists them."""
    return dict(_policies())


class Policy(Handle):
    """A policy by its name, with options: Policy("ada_snapkv", kernel_tokens=7, pooling="maximum").

    Errors: Refused for a name, an option or a value that policies() does not have.
    """

    def __init__(self, name: str, **options: float | int | str) -> None:
        values = {key: int(value) if isinstance(value, bool) else value for key, value in options.items()}
        text = " ".join(f"{key}={value}" for key, value in values.items())
        super().__init__("policy", name.encode(), text.encode())
        self.name, self.options = name, options

    @property
    def info(self) -> PolicyInfo:
        return _policies()[self.name]

    def __repr__(self) -> str:
        return f"Policy({', '.join([repr(self.name), *(f'{k}={v!r}' for k, v in self.options.items())])})"


PolicyLike: TypeAlias = Union[Policy, str]


def policy_of(policy: PolicyLike) -> Policy:
    return Policy(policy) if isinstance(policy, str) else policy


# ---- Layers and requests ----


@dataclasses.dataclass(frozen=True)
class Rope:
    """A model's rotary embedding: inverse_frequencies [pairs], radians per position; `interleaved` where channels 2 i and 2 i + 1
    are a pair, and not i and i + pairs."""

    inverse_frequencies: Sequence[float] | npt.NDArray[Any]
    attention_factor: float = 1
    interleaved: bool = False


@dataclasses.dataclass(frozen=True)
class Layer:
    """One attention layer, RoPE applied. What a policy does not read may be left out (policies() says it).

    keys               [kv_heads, tokens, head_dim]
    values             [kv_heads, tokens, value_dim]
    queries            [q_heads, queries, head_dim], the newest ones
    output_projection  [q_heads, value_dim, hidden]: W_O. Of torch: o_proj.weight.detach().view(hidden, q_heads, -1).permute(1, 2, 0)
    scores             [kv_heads, tokens] of your own, for "given" and the policies of thresholds, which read nothing else
    norms              of all values behind W_O, taken when tokens came, for policies with Needs.TAKES_NORMS
    projection         W_O prepared, in place of output_projection, for Norms and replays
    """

    keys: RowsLike | None = None
    queries: RowsLike | None = None
    values: RowsLike | None = None
    output_projection: RowsLike | None = None
    replay: "Replay | None" = None
    statistics: "Statistics | None" = None
    rope: Rope | None = None
    scores: RowsLike | None = None
    means: "Means | None" = None
    norms: "Norms | None" = None
    projection: "Projection | None" = None


class Options(TypedDict, total=False):
    """What a request may say beside its budget. Counts are tokens.

    sink_tokens      first tokens, which always stay
    pinned_tokens    a shared prefix
    window_tokens    newest tokens, which always stay: as many as there are queries, if not given
    rollback_tokens  speculative tokens behind the window
    scale            of the logits, 1 / sqrt(head_dim) if not given
    soft_cap, sliding_window, sink_logits [q_heads]   of the model's attention
    layer_shares     [layers], for policies that take them
    profile          for policies that take one
    """

    sink_tokens: int
    pinned_tokens: int
    window_tokens: int
    rollback_tokens: int
    scale: float
    soft_cap: float
    sliding_window: int
    sink_logits: Sequence[float] | npt.NDArray[Any]
    layer_shares: Sequence[float] | npt.NDArray[Any]
    profile: "Profile"


class Request(Options, total=False):
    """What is asked of a policy: Options, and

    budget  tokens that stay, protected ones included: of each KV head on average, or as `scope` says
    scope   "head", "layer" or "model": what the budget is of
    """

    budget: Required[int]
    scope: str


_SCOPES = ("head", "layer", "model")
_TABLES = {"sink_logits": ctypes.c_float, "layer_shares": ctypes.c_double}


def _numbers(given: Any, kind: Any, keep: list[Any]) -> tuple[Any, int]:
    table = np.ascontiguousarray(given, dtype=kind).reshape(-1)
    keep.append(table)
    return table.ctypes.data_as(ctypes.POINTER(kind)), table.size


def _c_rope(rope: Rope, keep: list[Any]) -> Any:
    pointer, pairs = _numbers(rope.inverse_frequencies, ctypes.c_float, keep)
    return ctypes.pointer(_c.Rope(inverse_frequencies=pointer, pairs=pairs, interleaved=rope.interleaved,
                                  attention_factor=rope.attention_factor))


def _c_layer(layer: Layer, keep: list[Any]) -> _c.Layer:
    made = _c.Layer()
    for name in ("keys", "values", "queries", "output_projection"):
        view = view_of(getattr(layer, name), keep)
        if view is not None:
            setattr(made, name, view)
    if layer.scores is not None:
        rows: Any = layer.scores
        made.scores = view_of(rows if isinstance(rows, Rows) or getattr(rows, "ndim", 3) != 2 else rows[:, :, None], keep)
    for name in ("replay", "statistics", "means", "norms", "projection"):
        state = getattr(layer, name)
        if state is not None:
            setattr(made, name, state._as_parameter_)
    if layer.rope is not None:
        made.rope = _c_rope(layer.rope, keep)
    keep.append(layer)
    return made


def _c_request(first: _c.Layer, options: dict[str, Any], keep: list[Any]) -> _c.Request:
    request = _c.Request()
    if first.queries:
        request.window_tokens = first.queries.contents.extents[1]
    for name, value in options.items():
        if name not in Request.__annotations__:
            raise TypeError(f"a request has no {name!r}; it has {', '.join(Request.__annotations__)}")
        if name == "scope":
            if value not in _SCOPES:
                raise ValueError(f"scope is one of {', '.join(_SCOPES)}, not {value!r}")
            request.budget_scope = _SCOPES.index(value)
        elif name in _TABLES:
            pointer, count = _numbers(value, _TABLES[name], keep)
            setattr(request, name, pointer)
            setattr(request, f"{name}_count", count)
        elif name in ("scale", "soft_cap"):
            setattr(request, name, value)
        elif name == "profile":
            keep.append(value)
            request.profile = value._as_parameter_
        else:  # NumPy refuses what 64 bits cannot hold; ctypes would cut it
            setattr(request, "budget_tokens" if name == "budget" else name, int(np.int64(operator.index(value))))
    return request


# ---- Plans ----


class _RaggedRows:
    """One row per KV head, of different lengths, behind each other."""

    indptr: npt.NDArray[np.int32] | npt.NDArray[np.int64]

    def __len__(self) -> int:
        """KV heads."""
        return len(self.indptr) - 1

    def _row(self, head: int) -> slice:
        head = range(len(self))[head]
        return slice(self.indptr[head], self.indptr[head + 1])


class Plan(_RaggedRows):
    """Which rows of each KV head stay; it never changes. Kept rows of head h are indices[indptr[h]:indptr[h + 1]], ascending.

    indptr   [kv_heads + 1] int32, the cumulative lengths of the cut cache
    indices  [kept rows of all heads] int32
    Both are the library's own memory, read-only.
    """

    def __init__(self, indptr: Sequence[int] | npt.NDArray[Any], indices: Sequence[int] | npt.NDArray[Any]) -> None:
        """A plan from tables of your own. Errors: Refused (INVALID_TABLE) for rows that do not ascend."""
        offsets, kept = (np.ascontiguousarray(table, dtype=np.int32) for table in (indptr, indices))
        if offsets.ndim != 1 or kept.ndim != 1 or offsets.size == 0 or offsets[-1] > kept.size:
            raise Refused(Code.INVALID_TABLE, "a plan of tables: indptr [kv_heads + 1], indices [indptr[-1]]")
        handle = Handle("plan")
        pointers = (table.ctypes.data_as(_c.Int32s) for table in (offsets, kept))
        check(lib.kvtrim_plan_assign(handle, next(pointers), offsets.size - 1, next(pointers)))
        self._take(handle)

    @classmethod
    def _of(cls, handle: Handle) -> Plan:
        plan = cls.__new__(cls)
        plan._take(handle)
        return plan

    def _take(self, handle: Handle) -> None:
        self._handle = handle
        rows = lib.kvtrim_plan_rows(handle)
        self.indptr = handle.array(lib.kvtrim_plan_offsets(handle), rows + 1, ctypes.c_int32)
        self.indices = handle.array(lib.kvtrim_plan_kept(handle), int(self.indptr[-1]), ctypes.c_int32)

    def __getitem__(self, head: int) -> npt.NDArray[np.int32]:
        """Kept rows of a KV head."""
        return self.indices[self._row(head)]

    def __iter__(self) -> Iterator[npt.NDArray[np.int32]]:
        return (self[head] for head in range(len(self)))

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """[kv_heads] kept rows of each."""
        return np.diff(self.indptr)

    @property
    def uniform(self) -> bool:
        """Whether all heads keep equally many rows."""
        lengths = self.lengths
        return bool((lengths == lengths[:1]).all())

    def mask(self, tokens: int) -> npt.NDArray[np.bool_]:
        """[kv_heads, tokens]: true where a row stays. Error: Refused (PLAN_MISMATCH) if a kept row is beyond."""
        if self.indices.size and int(self.indices.max()) >= tokens:
            raise Refused(Code.PLAN_MISMATCH, "the plan keeps rows that the cache does not have", int(self.indices.max()) + 1)
        kept = np.zeros((len(self), tokens), dtype=bool)
        kept[np.repeat(np.arange(len(self)), self.lengths), self.indices] = True
        return kept

    def share(self, tokens: int, kept_tokens: int = 0) -> Plan:
        """One token set for all heads of caches of `tokens` rows: the kept_tokens that most heads keep; 0: all that some head keeps."""
        handle = Handle("plan")
        check(lib.kvtrim_plan_share(self._handle, tokens, kept_tokens, handle, context()))
        return Plan._of(handle)

    def __repr__(self) -> str:
        return f"<Plan: {len(self)} KV heads keep {self.lengths.tolist()} rows>"


def plan_layers(policy: PolicyLike, layers: Sequence[Layer], **request: Unpack[Request]) -> list[Plan]:
    """Decides which rows of each layer stay, under one budget for all of them where the policy takes layers; other policies plan each
    layer alone, with the same request.

    Errors: Refused for numbers, shapes and views that do not fit; TypeError for an unknown member of the request.
    """
    policy = policy_of(policy)
    keep: list[Any] = []
    made = [_c_layer(layer, keep) for layer in layers]
    calls = [made] if Needs.TAKES_LAYERS in policy.info.needs else [[layer] for layer in made]
    plans: list[Handle] = []
    for call in calls:
        c_request = _c_request(call[0] if call else _c.Layer(), dict(request), keep)
        handles = [Handle("plan") for _ in call]
        pointers = (ctypes.c_void_p * len(call))(*(handle._as_parameter_.value for handle in handles))
        check(lib.kvtrim_plan_layers(policy, (_c.Layer * len(call))(*call), len(call), ctypes.byref(c_request),
                                     pointers, len(call), context()))
        plans += handles
    return [Plan._of(handle) for handle in plans]


def plan(policy: PolicyLike, keys: RowsLike | None = None, queries: RowsLike | None = None, values: RowsLike | None = None,
         output_projection: RowsLike | None = None, *, replay: Replay | None = None, statistics: Statistics | None = None,
         rope: Rope | None = None, scores: RowsLike | None = None, means: Means | None = None, norms: Norms | None = None,
         **request: Unpack[Request]) -> Plan:
    """Decides which rows of one layer stay: plan("snapkv", keys, queries, budget=200, sink_tokens=4). Shapes: those of Layer;
    errors: those of plan_layers."""
    layer = Layer(keys, queries, values, output_projection, replay, statistics, rope, scores, means, norms)
    return plan_layers(policy, [layer], **request)[0]


class Scores(_RaggedRows):
    """Scores of one layer's candidates, read-only: candidate c of KV head h is cache row `first` + c.

    indptr      [kv_heads + 1] int64
    importance  [candidates of all heads] float32
    first       sink_tokens or pinned_tokens of the request, the larger one
    """

    def __init__(self, handle: Handle, first: int) -> None:
        rows = lib.kvtrim_scores_rows(handle)
        self.first = first
        self.indptr = handle.array(lib.kvtrim_scores_offsets(handle), rows + 1, ctypes.c_int64)
        self.importance = handle.array(lib.kvtrim_scores_importance(handle), int(self.indptr[-1]), ctypes.c_float)

    def __getitem__(self, head: int) -> npt.NDArray[np.float32]:
        """Scores of a KV head's candidates."""
        return self.importance[self._row(head)]


def scores(policy: PolicyLike, keys: RowsLike | None = None, queries: RowsLike | None = None, values: RowsLike | None = None,
           output_projection: RowsLike | None = None, *, replay: Replay | None = None, statistics: Statistics | None = None,
           rope: Rope | None = None, means: Means | None = None, norms: Norms | None = None, **request: Unpack[Options]) -> Scores:
    """The scores alone, of one layer; arguments and errors are those of plan(), but for the budget, which is not needed."""
    keep: list[Any] = []
    layer = _c_layer(Layer(keys, queries, values, output_projection, replay, statistics, rope, means=means, norms=norms), keep)
    asked = _c_request(layer, dict(request), keep)
    handle = Handle("scores")
    check(lib.kvtrim_score_layer(policy_of(policy), ctypes.byref(layer), ctypes.byref(asked), handle, context()))
    return Scores(handle, max(asked.sink_tokens, asked.pinned_tokens))


# ---- Plans carried out ----


def compact_in_place(plan: Plan, keys: RowsLike, values: RowsLike | None = None) -> None:
    """Moves the survivors of each head to its first rows: of head h they are [h, :plan.lengths[h]] then, to be described by
    Rows(keys, lengths=plan.lengths). Errors: Refused (PLAN_MISMATCH, VIEWS_OVERLAP), ValueError for read-only arrays."""
    keep: list[Any] = []
    check(lib.kvtrim_compact_in_place(view_of(keys, keep, written=True), view_of(values, keep, written=True), plan._handle))


def compact_to_flat(plan: Plan, keys: RowsLike, values: RowsLike | None = None) -> None:
    """Moves all survivors to the front of the buffer, head by head: for contiguous arrays [heads, tokens, channels] they are
    keys.reshape(-1, channels)[:plan.indptr[-1]] then, to be described by Rows(..., indptr=plan.indptr). Errors: as compact_in_place."""
    keep: list[Any] = []
    check(lib.kvtrim_compact_to_flat(view_of(keys, keep, written=True), view_of(values, keep, written=True), plan._handle))


def gather(plan: Plan, rows: RowsLike, out: npt.NDArray[Any] | SupportsDLPack | None = None) -> Any:
    """Copies all survivors, head by head, to `out` [plan.indptr[-1], channels], contiguous, float32, float16 or bfloat16; bits are
    copied where both have one element. Without `out`: to a new NumPy array of float32. Returns `out`.
    Errors: Refused (PLAN_MISMATCH, NO_ROOM), ValueError for another shape or a read-only array."""
    rows = rows_of(rows)
    shape = (int(plan.indptr[-1]), int(rows.view.extents[2]))
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    to = memory_of(out)
    if to.element not in (_c.F32, _c.F16, _c.BF16):
        raise TypeError("out is of float32, float16 or bfloat16")
    size = 4 if to.element == _c.F32 else 2
    contiguous = to.strides == (shape[1] * size, size) or 0 in shape
    if to.shape != shape or not contiguous or not to.writable:
        raise ValueError(f"out must be contiguous and writable, of shape {shape}")
    keep: list[Any] = []
    check(lib.kvtrim_gather(view_of(rows, keep), plan._handle, to.element, to.address, shape[0] * shape[1] * size))
    return out


@dataclasses.dataclass(frozen=True)
class MovedPages:
    """What compact_pages() did: the sequence's table is `pages` now.

    origins   [kv_heads] of each head the cache row that was in each token's place
    freed     pages that the sequence owned and no longer names
    released  shared pages that it no longer names: one reference less each
    taken     how many of the free pages it took, from the first on
    """

    pages: Pages
    origins: list[npt.NDArray[np.int32]]
    freed: npt.NDArray[np.int32]
    released: npt.NDArray[np.int32]
    taken: int


PAGE_ORDERS = ("fewest", "from_tail", "in_order")


def compact_pages(plan: Plan, keys: Rows, values: Rows | None = None, *, order: str = "fewest",
                  ref_counts: Sequence[int] | npt.NDArray[Any] | None = None,
                  free_pages: Sequence[int] | npt.NDArray[Any] | None = None, copy_shared: bool = False) -> MovedPages:
    """Moves the survivors of a sequence within its pages, with scales and zeros of their own, and tells which pages become free. Heads
    that share pages must keep equally many rows.

    order        "fewest" moves, "from_tail", or "in_order", which leaves tokens ascending
    ref_counts   [pages of the pool] sequences that name each page; none is shared if not given. Shared pages are not written.
    free_pages   for copies of shared pages that are kept in part, where copy_shared says so; such pages stay whole else

    Errors: as compact_in_place; ValueError for rows without pages; Refused (PAGE_SHARED, PAGES_TOO_FEW).
    """
    if order not in PAGE_ORDERS:
        raise ValueError(f"order is one of {', '.join(PAGE_ORDERS)}, not {order!r}")
    table = keys.pages
    if table is None:
        raise ValueError("compact_pages: of rows with pages; others are for compact_in_place")
    keep: list[Any] = []
    views = view_of(keys, keep, written=True), view_of(values, keep, written=True)
    check(lib.kvtrim_view_validate(views[0]))  # the tables too
    heads = int(keys.view.extents[0])
    first, count = (table.row * heads, heads) if table.per_head else (table.row, 1)
    indptr = np.asarray(table.indptr, dtype=np.int32)[first:first + count + 1]
    pool = _c.PagePool(table_rows=count, pages=keys.view.pages, page_tokens=keys.view.page_tokens, heads=1 if table.per_head else heads,
                       order=PAGE_ORDERS.index(order), copy_shared=copy_shared)
    pool.indices, pool.index_count = _numbers(np.asarray(table.indices)[indptr[0]:indptr[-1]], ctypes.c_int32, keep)
    pool.indptr, _ = _numbers(indptr - indptr[0], ctypes.c_int32, keep)
    pool.last_page, _ = _numbers(np.asarray(table.last_page)[first:first + count], ctypes.c_int32, keep)
    if ref_counts is not None:
        pool.ref_counts, counted = _numbers(ref_counts, ctypes.c_int32, keep)
        if counted != pool.pages:
            raise ValueError(f"ref_counts [{counted}]: the pool has {pool.pages} pages")
    if free_pages is not None:
        pool.free_pages, pool.free_count = _numbers(free_pages, ctypes.c_int32, keep)
    moves = Handle("moves")
    check(lib.kvtrim_moves_plan(moves, plan._handle, ctypes.byref(pool), context()))
    check(lib.kvtrim_moves_run(moves, *views, context()))

    def ints(part: str, *row: int) -> npt.NDArray[np.int32]:
        found = getattr(lib, f"kvtrim_moves_{part}")(moves, *row)
        return moves.array(found.data, found.count, ctypes.c_int32)

    pages = Pages(ints("indices"), ints("indptr"), ints("last_page"), per_head=table.per_head)
    origins = [ints("origins", row) for row in range(lib.kvtrim_moves_rows(moves))]
    return MovedPages(pages, origins, ints("freed"), ints("released"), int(lib.kvtrim_moves_taken(moves)))


# ---- What some policies read beside a layer ----


class State(Handle):
    """An object that becomes bytes and comes back: for a file, another process, a request that is swapped out. Read by the version of
    the library that wrote them."""

    _kind: str

    def __init__(self, *arguments: Any) -> None:
        super().__init__(self._kind, *arguments)

    def save(self) -> bytes:
        needed = ctypes.c_int64()
        save = getattr(lib, f"kvtrim_{self._kind}_save")
        save(self, None, 0, ctypes.byref(needed))  # asks
        out = ctypes.create_string_buffer(needed.value)
        check(save(self, out, needed.value, ctypes.byref(needed)))
        return out.raw

    def restore(self, saved: bytes) -> None:
        """Error: Refused for bytes that are no such state; this one then stays as it was."""
        check(getattr(lib, f"kvtrim_{self._kind}_restore")(self, saved, len(saved)))


class Replay(State):
    """What a second pass over the prompt wants of each cached token (KVzip), for the policies that need a replay; one per layer.

    loss  "attention_maximum", "output_maximum" or "output_square_sum"; the two of outputs read values and, if given, W_O
    """

    _kind = "replay"
    LOSSES = ("attention_maximum", "output_maximum", "output_square_sum")

    def __init__(self, kv_heads: int, tokens: int, loss: str = "attention_maximum") -> None:
        if loss not in self.LOSSES:
            raise ValueError(f"loss is one of {', '.join(self.LOSSES)}, not {loss!r}")
        super().__init__(kv_heads, tokens, self.LOSSES.index(loss))

    def add(self, layer: Layer, **request: Unpack[Options]) -> None:
        """Adds the next queries of the replay and the cache they saw; of the request only attention options are read."""
        keep: list[Any] = []
        asked = _c_request(_c.Layer(), dict(request), keep)
        check(lib.kvtrim_replay_add(self, ctypes.byref(_c_layer(layer, keep)), ctypes.byref(asked), context()))

    def add_own(self, layer: Layer, nearest: int = 32, **request: Unpack[Options]) -> None:
        """Adds the prompt's own queries, those of the newest rows; they score rows at least `nearest` before their own."""
        keep: list[Any] = []
        asked = _c_request(_c.Layer(), dict(request), keep)
        check(lib.kvtrim_replay_add_own(self, ctypes.byref(_c_layer(layer, keep)), ctypes.byref(asked), nearest, context()))

    def add_pass(self, other: "Replay", own_nearest: int = -1, weight: float = 1.0) -> None:
        """Adds what another pass made of the same rows, `weight` times its squares; of maxima the larger stays.

        own_nearest  if not negative, `other` is of the prompt's own pass (add_own), all of it, with this as its `nearest`; -1: of a replay
        """
        check(lib.kvtrim_replay_add_pass(self, other, own_nearest, weight))

    def weigh(self, norms: Norms) -> None:
        """Multiplies every score by the norm of its token's value, after the last add: for "attention_maximum"."""
        check(lib.kvtrim_replay_weigh(self, norms))

    def scores(self, head: int, tokens: int) -> npt.NDArray[np.float32]:
        """[tokens] of a head, a copy. Error: Refused (NO_ROOM) if it has more."""
        out = np.zeros(tokens, dtype=np.float32)
        check(lib.kvtrim_replay_scores(self, head, out.ctypes.data_as(_c.Floats), tokens))
        return out


class Statistics(State):
    """Mean and covariance of the queries before RoPE, from position skip_positions on, for "expected_attention"; one per layer."""

    _kind = "statistics"

    def __init__(self, q_heads: int, head_dim: int, skip_positions: int = 0) -> None:
        super().__init__(q_heads, head_dim, skip_positions)

    def add(self, queries: RowsLike) -> None:
        """Adds the sequence's next queries [q_heads, any number, head_dim], before RoPE."""
        keep: list[Any] = []
        check(lib.kvtrim_statistics_add(self, view_of(queries, keep), context()))


class Means(State):
    """Mean query before RoPE of any text, for "triattention"; made once per model layer."""

    _kind = "means"

    def __init__(self, q_heads: int, head_dim: int, rope: Rope) -> None:
        super().__init__(q_heads, head_dim, _c_rope(rope, []))

    def add(self, queries: RowsLike) -> None:
        """Adds queries [q_heads, any number, head_dim], before RoPE."""
        keep: list[Any] = []
        check(lib.kvtrim_means_add(self, view_of(queries, keep), context()))


class Queries(State):
    """The newest queries of a layer, across chunks of a prompt and decode steps: what policies with a window read while a sequence grows.

    window           queries that rows() has
    rollback_tokens  how many newer ones may be undone (speculative decoding)
    element          "float32", "float16" or "bfloat16", as they are kept
    """

    _kind = "queries"
    ELEMENTS = ("float32", "float16", "bfloat16")

    def __init__(self, q_heads: int, window: int, head_dim: int, rollback_tokens: int = 0, element: str = "float32") -> None:
        if element not in self.ELEMENTS:
            raise ValueError(f"element is one of {', '.join(self.ELEMENTS)}, not {element!r}")
        super().__init__(q_heads, window, head_dim, rollback_tokens, self.ELEMENTS.index(element))

    def append(self, newest: RowsLike) -> None:
        """Takes the newest queries [q_heads, any number, head_dim], RoPE applied."""
        check(lib.kvtrim_queries_append(self, view_of(newest, [])))

    def rollback(self, count: int) -> None:
        """Undoes the newest `count`."""
        check(lib.kvtrim_queries_rollback(self, count))

    def __len__(self) -> int:
        """Queries held."""
        return int(lib.kvtrim_queries_held(self))

    def rows(self, rollback_tokens: int = 0) -> Rows:
        """The newest `window` before the newest `rollback_tokens`, for a layer's queries: this object's memory, to be read before it changes
        or is asked again."""
        view = _c.View()
        check(lib.kvtrim_queries_view(self, rollback_tokens, ctypes.byref(view)))
        return Rows._of(view, self)


class Projection(Handle):
    """W_O [q_heads, value_dim, hidden] prepared, once per model layer.

    form  "packed" as the kernels read it, or "gram": norms are L2 in place of L1, at far fewer operations
    """

    FORMS = ("packed", "gram")

    def __init__(self, output_projection: RowsLike, form: str = "packed") -> None:
        if form not in self.FORMS:
            raise ValueError(f"form is one of {', '.join(self.FORMS)}, not {form!r}")
        super().__init__("projection", view_of(output_projection, []), self.FORMS.index(form))


class Norms(State):
    """Norms of the cached tokens' values behind W_O, taken when tokens come; one per layer and sequence."""

    _kind = "norms"

    def __init__(self, kv_heads: int) -> None:
        super().__init__(kv_heads)

    def append(self, layer: Layer, count: int) -> None:
        """Takes those of the newest `count` tokens of each head: of keys, values, and output_projection or projection."""
        keep: list[Any] = []
        check(lib.kvtrim_norms_append(self, ctypes.byref(_c_layer(layer, keep)), count, context()))

    def rollback(self, count: int) -> None:
        """Forgets those of the newest `count` tokens."""
        check(lib.kvtrim_norms_rollback(self, count))

    def compact(self, plan: Plan) -> None:
        """Keeps those of the plan's rows."""
        check(lib.kvtrim_norms_compact(self, plan._handle))

    def __getitem__(self, head: int) -> npt.NDArray[np.float32]:
        """[tokens] of a KV head, a copy. Error: IndexError."""
        count = ctypes.c_int64()
        found = lib.kvtrim_norms_of_head(self, head, ctypes.byref(count))
        if not found:
            raise IndexError(f"there is no KV head {head}")
        return np.ctypeslib.as_array(found, (count.value,)).copy() if count.value else np.empty(0, dtype=np.float32)


class Profile(State):
    """How scores fall in each (layer, KV head) row, over prompts, for "profiled"; made once per model."""

    _kind = "profile"

    def add(self, policy: PolicyLike, layers: Sequence[Layer], **request: Unpack[Options]) -> None:
        """Adds one prompt: what the policy ("layer_replay") scores in all of its layers."""
        keep: list[Any] = []
        made = [_c_layer(layer, keep) for layer in layers]
        asked = _c_request(made[0] if made else _c.Layer(), dict(request), keep)
        check(lib.kvtrim_profile_add(self, policy_of(policy), (_c.Layer * len(made))(*made), len(made), ctypes.byref(asked), context()))

    @property
    def prompts(self) -> int:
        """Prompts added."""
        return int(lib.kvtrim_profile_prompts(self))

    @property
    def rows(self) -> int:
        """(layer, KV head) rows, 0 before the first prompt."""
        return int(lib.kvtrim_profile_rows(self))


def layer_preference(layer: Layer, *, tau1: float = 0, tau2: float = 0, **request: Unpack[Options]) -> float:
    """How much of the cache a layer should get by the spread of its attention: layer_shares of "cake". A tau of 0: the authors'."""
    keep: list[Any] = []
    made = _c_layer(layer, keep)
    asked = _c_request(made, dict(request), keep)
    found = ctypes.c_double()
    check(lib.kvtrim_layer_preference(ctypes.byref(made), ctypes.byref(asked), tau1, tau2, ctypes.byref(found), context()))
    return found.value
