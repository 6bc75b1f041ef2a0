# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Arrays of any strides and element are read and written where they lie."""
import gc
import tracemalloc

import numpy as np
import pytest

import kvtrim
from kvtrim import _c
from kvtrim._rows import memory_of


class Tensor:
    """A tensor of another framework: `array`, by DLPack; bfloat16 is the upper half of its floats."""

    def __init__(self, array, bfloat=False, device=1):
        self.array, self.bfloat, self.device, self.freed = array, bfloat, device, []

    def __dlpack__(self):
        import ctypes as ct

        class Managed(ct.Structure):
            _fields_ = [("data", ct.c_void_p), ("device_type", ct.c_int32), ("device_id", ct.c_int32), ("ndim", ct.c_int32),
                        ("code", ct.c_uint8), ("bits", ct.c_uint8), ("lanes", ct.c_uint16), ("shape", ct.POINTER(ct.c_int64)),
                        ("strides", ct.POINTER(ct.c_int64)), ("byte_offset", ct.c_uint64)]

        a = self.array
        numbers = ct.c_int64 * a.ndim
        # half of the offset in the pointer, half beside it
        tensor = Managed(a.ctypes.data - 8, self.device, 0, a.ndim, 4 if self.bfloat else 2, a.itemsize * 8, 1, numbers(*a.shape),
                         numbers(*(s // a.itemsize for s in a.strides)), 8)
        new = ct.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ct.py_object, (ct.c_void_p, ct.c_char_p, ct.c_void_p)
        self.keep = tensor
        return new(ct.addressof(tensor), b"dltensor", None)


def as_bfloat(array):
    return np.ascontiguousarray((array.view(np.uint32) >> 16).astype(np.uint16))


def plan_of(keys, queries, values=None):
    return kvtrim.plan("ada_snapkv", keys, queries, values, budget=20, sink_tokens=2)


def same(a, b):
    return np.array_equal(a.indptr, b.indptr) and np.array_equal(a.indices, b.indices)


@pytest.mark.parametrize("how", ["token-major", "channels first", "reversed", "every second", "fortran"])
def test_plans_are_equal_for_any_strides(layer, how):
    keys, queries, _ = layer
    other = {
        "token-major": lambda: np.ascontiguousarray(keys.transpose(1, 0, 2)).transpose(1, 0, 2),
        "channels first": lambda: np.ascontiguousarray(keys.transpose(0, 2, 1)).transpose(0, 2, 1),
        "reversed": lambda: np.ascontiguousarray(keys[:, ::-1])[:, ::-1],
        "every second": lambda: np.repeat(keys, 2, axis=1)[:, ::2],
        "fortran": lambda: np.asfortranarray(keys),
    }[how]()
    assert other.strides != keys.strides and np.array_equal(other, keys)
    assert same(plan_of(other, queries), plan_of(keys, queries))


def test_views_point_to_the_arrays_memory(layer):
    keys = layer[0]
    part = keys[1:, 3::2, ::-1]
    view = kvtrim.Rows(part).view
    assert view.data == part.ctypes.data == keys.ctypes.data + keys.strides[0] + 3 * keys.strides[1] + 15 * 4
    assert tuple(view.strides) == part.strides and tuple(view.extents) == part.shape


def test_nothing_of_the_size_of_the_cache_is_allocated_by_python(rng):
    keys = rng.standard_normal((8, 4096, 64), dtype=np.float32)  # 8 MiB
    queries = rng.standard_normal((8, 8, 64), dtype=np.float32)
    tracemalloc.start()
    try:
        plan = kvtrim.plan("snapkv", keys, queries, budget=100)
        kvtrim.compact_in_place(plan, keys)
        assert tracemalloc.get_traced_memory()[1] < 256 * 1024
    finally:
        tracemalloc.stop()


def test_plans_hold_the_librarys_memory_and_keep_it(layer):
    plan = plan_of(*layer[:2])
    address = _c.lib.kvtrim_plan_kept(plan._handle)
    assert plan.indices.ctypes.data == __import__("ctypes").addressof(address.contents)
    indices, copy = plan.indices, plan.indices.copy()
    del plan, address
    gc.collect()
    for _ in range(50):
        plan_of(*layer[:2])
    np.testing.assert_array_equal(indices, copy)
    with pytest.raises(ValueError):
        indices[0] = 1


def test_half_precision_rows_are_read_as_the_floats_they_hold(layer):
    keys, queries, _ = (a.astype(np.float16) for a in layer)
    assert same(plan_of(keys, queries), plan_of(keys.astype(np.float32), queries.astype(np.float32)))


def test_bfloat16_of_another_framework_is_read_where_it_lies(layer):
    keys, queries, _ = layer
    short, short_queries = as_bfloat(keys), as_bfloat(queries)
    rounded = (short.astype(np.uint32) << 16).view(np.float32)
    rounded_queries = (short_queries.astype(np.uint32) << 16).view(np.float32)
    tensor = Tensor(short, bfloat=True)
    memory = memory_of(tensor)
    assert memory.address == short.ctypes.data and memory.element == _c.BF16 and memory.strides == short.strides
    plan = plan_of(tensor, Tensor(short_queries, bfloat=True))
    assert same(plan, plan_of(rounded, rounded_queries))
    before = short.copy()
    kvtrim.compact_in_place(plan, tensor)
    for head, kept in enumerate(plan):
        np.testing.assert_array_equal(short[head, :len(kept)], before[head, kept])


def test_strided_tensors_of_another_framework(layer):
    keys, queries, _ = layer
    turned = np.ascontiguousarray(keys.transpose(1, 0, 2)).transpose(1, 0, 2)
    assert same(plan_of(Tensor(turned), Tensor(queries)), plan_of(keys, queries))


@pytest.mark.parametrize("view", ["contiguous", "token-major"])
def test_compact_in_place_moves_survivors_to_the_front(layer, view):
    keys, queries, values = layer
    plan = plan_of(keys, queries)
    assert not plan.uniform
    before = keys.copy(), values.copy()
    own = [a if view == "contiguous" else np.ascontiguousarray(a.transpose(1, 0, 2)).transpose(1, 0, 2) for a in (keys, values)]
    kvtrim.compact_in_place(plan, *own)
    for now, old in zip(own, before):
        for head, kept in enumerate(plan):
            np.testing.assert_array_equal(now[head, :len(kept)], old[head, kept])
            np.testing.assert_array_equal(now[head, len(kept):], old[head, len(kept):])


def test_a_cut_cache_is_planned_again_by_its_lengths(layer):
    keys, queries, values = layer
    plan = plan_of(keys, queries)
    whole = [keys[head, kept] for head, kept in enumerate(plan)]
    kvtrim.compact_in_place(plan, keys, values)
    again = kvtrim.plan("key_norm", kvtrim.Rows(keys, lengths=plan.lengths), budget=10)
    for head, rows in enumerate(whole):
        alone = kvtrim.plan("key_norm", rows[None], budget=10)
        np.testing.assert_array_equal(again[head], alone[0])


def test_compact_to_flat_and_gather_leave_the_survivors_head_by_head(layer):
    keys, queries, values = layer
    plan = plan_of(keys, queries)
    expected = [np.concatenate([a[head, kept] for head, kept in enumerate(plan)]) for a in (keys, values)]
    np.testing.assert_array_equal(kvtrim.gather(plan, keys), expected[0])
    out = np.empty(expected[0].shape, dtype=np.float16)
    assert kvtrim.gather(plan, keys, out) is out
    np.testing.assert_array_equal(out, expected[0].astype(np.float16))
    kvtrim.compact_to_flat(plan, keys, values)
    flat = [a.reshape(-1, a.shape[2])[:plan.indptr[-1]] for a in (keys, values)]
    np.testing.assert_array_equal(flat, expected)
    ragged = kvtrim.Rows(flat[0], indptr=plan.indptr)
    again = kvtrim.plan("key_norm", ragged, budget=10)
    alone = kvtrim.plan("key_norm", expected[0][None, :plan.indptr[1]], budget=10)
    np.testing.assert_array_equal(again[0], alone[0])


def test_rows_of_a_pool_by_their_slots(layer, rng):
    keys, queries, _ = layer
    slots = rng.permutation(300)[:100]
    pool = rng.standard_normal((300, 2, 16), dtype=np.float32)
    pool[slots] = keys.transpose(1, 0, 2)
    assert same(plan_of(kvtrim.Rows(pool.transpose(1, 0, 2), indices=slots), queries), plan_of(keys, queries))


def test_window_is_the_queries_unless_said(layer):
    keys, queries, _ = layer
    kept = plan_of(keys, queries)
    assert all(np.array_equal(rows[-8:], np.arange(92, 100)) for rows in kept)
    assert same(kvtrim.plan("ada_snapkv", keys, queries, budget=20, sink_tokens=2, window_tokens=8), kept)
    assert kvtrim.plan("random", keys, budget=1).lengths.tolist() == [1, 1]


def test_a_plan_as_mask_and_shared_by_heads(layer):
    plan = plan_of(*layer[:2])
    mask = plan.mask(100)
    assert mask.sum() == len(plan.indices) and all(np.array_equal(np.flatnonzero(mask[h]), plan[h]) for h in range(2))
    shared = plan.share(100)
    np.testing.assert_array_equal(shared[0], np.flatnonzero(mask.any(axis=0)))
    own = kvtrim.Plan(plan.indptr, plan.indices)
    assert same(own, plan) and own.indices.ctypes.data != plan.indices.ctypes.data


def test_replay_scores_choose_its_rows(layer):
    keys, queries, _ = layer
    replay = kvtrim.Replay(2, 100)
    replay.add(kvtrim.Layer(keys, queries))
    scores = replay.scores(0, 100)
    weights = np.exp(np.einsum("qd,td->qt", queries[:2].reshape(-1, 16), keys[0]) / 4)  # the whole cache is seen
    np.testing.assert_allclose(scores, (weights / weights.sum(axis=1, keepdims=True)).max(axis=0), rtol=1e-4)
    plan = kvtrim.plan("replay_uniform", replay=replay, budget=10)
    assert set(plan[0]) == set(np.argsort(-scores, kind="stable")[:10])


def test_scores_of_ones_own_choose_rows_up_to_a_budget_or_a_threshold(rng):
    scores = rng.random((2, 100), dtype=np.float32)
    plan = kvtrim.plan("given", scores=scores, budget=10)
    assert [set(row) for row in plan] == [set(np.argsort(-row)[:10]) for row in scores]
    above = kvtrim.plan(kvtrim.Policy("above_threshold", threshold=0.75), scores=scores, budget=100)
    assert [row.tolist() for row in above] == [np.flatnonzero(row > 0.75).tolist() for row in scores]
    assert same(kvtrim.plan("given", scores=kvtrim.Rows(scores[:, :, None]), budget=10), plan)
    layers = [kvtrim.Layer(scores=scores), kvtrim.Layer(scores=scores[::-1])]
    together = kvtrim.plan_layers("layer_given", layers, budget=10)
    assert sum(len(plan.indices) for plan in together) == 40 and same(together[0], kvtrim.plan("ada_given", scores=scores, budget=10))


def test_states_come_back_from_their_bytes(layer):
    keys, queries, values = layer
    rope = kvtrim.Rope(0.1 ** np.arange(8))
    statistics, means, replay = kvtrim.Statistics(4, 16), kvtrim.Means(4, 16, rope), kvtrim.Replay(2, 100)
    statistics.add(queries), means.add(queries), replay.add(kvtrim.Layer(keys, queries))
    profile = kvtrim.Profile()
    layers = [kvtrim.Layer(replay=replay)] * 2
    profile.add("layer_replay", layers)
    assert (profile.prompts, profile.rows) == (1, 4)
    others = kvtrim.Statistics(1, 1), kvtrim.Means(1, 16, rope), kvtrim.Replay(1, 1), kvtrim.Profile()
    for state, other in zip((statistics, means, replay, profile), others):
        with pytest.raises(kvtrim.Refused):
            other.restore(state.save()[:-1])
        other.restore(state.save())
        assert other.save() == state.save()
    plans = lambda statistics, means, replay, profile: [
        kvtrim.plan("expected_attention", keys, values=values, statistics=statistics, rope=rope, budget=20),
        kvtrim.plan("triattention", keys, means=means, rope=rope, budget=20),
        kvtrim.plan("replay", replay=replay, budget=20),
        *kvtrim.plan_layers("profiled", [kvtrim.Layer(replay=replay)] * 2, profile=profile, budget=20)]
    assert all(map(same, plans(statistics, means, replay, profile), plans(*others)))


def test_preferences_of_layers_are_the_shares_of_cake(layer):
    keys, queries, _ = layer
    layers = [kvtrim.Layer(keys, queries), kvtrim.Layer(keys * 3, queries)]  # attention that is sharper
    shares = [kvtrim.layer_preference(layer) for layer in layers]
    assert shares[0] != shares[1] and min(shares) > 0 and shares[0] == kvtrim.layer_preference(layers[0], tau1=1.6, tau2=0.6)
    plans = kvtrim.plan_layers("cake", layers, budget=30, layer_shares=shares)
    assert (len(plans[0].indices) > len(plans[1].indices)) == (shares[0] > shares[1])
