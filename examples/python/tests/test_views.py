# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Caches in pages, in blocks and in 8-bit codes are read and compacted where they lie."""
import numpy as np
import pytest

import kvtrim
from test_arrays import Tensor, plan_of, same

PAGE = 16


def paged(rng, keys, order, dtype=np.float32):
    """keys [heads, tokens, channels] as the second of three sequences in a pool [pages, heads, slots, channels] of strides `order`,
    beside pages of others."""
    heads, tokens, channels = keys.shape
    count = -(-tokens // PAGE)
    shape = (3 * count, heads, PAGE, channels) if order == "heads first" else (3 * count, PAGE, heads, channels)
    pool = rng.standard_normal(shape).astype(dtype)
    axes = pool if order == "heads first" else pool.transpose(0, 2, 1, 3)
    pages = rng.permutation(3 * count)
    for t in range(tokens):
        axes[pages[count + t // PAGE], :, t % PAGE] = keys[:, t]
    table = kvtrim.Pages(pages, [0, count, 2 * count, 3 * count], [3, tokens - (count - 1) * PAGE, 1], row=1)
    return kvtrim.Rows(axes, pages=table), axes, table


@pytest.mark.parametrize("moved", ["fewest", "from_tail", "in_order"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("order", ["heads first", "slots first"])
def test_pages_are_planned_and_compacted_as_rows_side_by_side(layer, order, dtype, moved):
    keys, queries, values = (a.astype(dtype) for a in layer)
    rows, pool, table = paged(np.random.default_rng(5), keys, order, dtype)
    value_rows, value_pool, _ = paged(np.random.default_rng(5), values, order, dtype)  # in the same pages
    np.testing.assert_array_equal(rows.read(1, 0, 100), keys[1])
    np.testing.assert_array_equal(rows.read(0, 33, 3), keys[0, 33:36])
    assert same(plan_of(rows, queries), plan_of(keys, queries))
    plan = kvtrim.plan("snapkv", rows, queries, budget=40)
    np.testing.assert_array_equal(kvtrim.gather(plan, rows), np.concatenate([keys[h, kept] for h, kept in enumerate(plan)]))
    own = np.asarray(table.indices)[7:14]
    others = np.setdiff1d(np.arange(len(pool)), own)
    before = pool.copy()
    done = kvtrim.compact_pages(plan, rows, value_rows, order=moved)
    assert len(done.pages.indices) == 3 and set(done.pages.indices) | set(done.freed) == set(own)
    assert len(done.freed) == 4 and len(done.released) == done.taken == 0
    now, now_values = (kvtrim.Rows(p, pages=done.pages) for p in (pool, value_pool))
    for head, kept in enumerate(plan):
        assert sorted(done.origins[head]) == kept.tolist()
        assert moved != "in_order" or done.origins[head].tolist() == kept.tolist()
        np.testing.assert_array_equal(now.read(head, 0, len(kept)), keys[head, done.origins[head]])
        np.testing.assert_array_equal(now_values.read(head, 0, len(kept)), values[head, done.origins[head]])
    np.testing.assert_array_equal(pool[others], before[others])


def test_shared_pages_are_not_written(layer, rng):
    keys, queries, _ = layer
    rows, pool, table = paged(rng, keys, "heads first")
    own = np.asarray(table.indices)[7:14]
    counts = np.zeros(len(pool), dtype=np.int32)
    counts[own] = 1
    counts[own[:2]] = 2  # a prefix of two pages
    before = pool.copy()
    plan = kvtrim.plan("snapkv", rows, queries, budget=60, pinned_tokens=2 * PAGE)
    done = kvtrim.compact_pages(plan, rows, ref_counts=counts)
    np.testing.assert_array_equal(pool[own[:2]], before[own[:2]])
    assert done.pages.indices[:2].tolist() == own[:2].tolist() and len(done.freed) == 3
    with pytest.raises(ValueError, match="the pool has"):
        kvtrim.compact_pages(plan, rows, ref_counts=counts[1:])
    with pytest.raises(kvtrim.Refused):  # the table is the old one
        kvtrim.compact_pages(plan, kvtrim.Rows(pool, pages=done.pages))
    with pytest.raises(ValueError, match="rows with pages"):
        kvtrim.compact_pages(plan, kvtrim.Rows(keys))
    with pytest.raises(ValueError, match="order is one of"):
        kvtrim.compact_pages(plan, rows, order="any")
    with pytest.raises(kvtrim.Refused):
        kvtrim.compact_in_place(plan, rows)
    with pytest.raises(kvtrim.Refused, match="equally many"):
        kvtrim.compact_pages(plan_of(keys, queries), rows)


def test_each_head_has_pages_of_its_own(layer, rng):
    keys, queries, _ = layer
    lengths = [100, 71]
    pool = rng.standard_normal((20, 1, PAGE, 16), dtype=np.float32)  # a page is of one head
    pages = rng.permutation(20)
    for head, first in ((0, 0), (1, 7)):
        for t in range(lengths[head]):
            pool[pages[first + t // PAGE], 0, t % PAGE] = keys[head, t]
    table = kvtrim.Pages(pages, [0, 7, 12], [4, 7], per_head=True)
    both = np.lib.stride_tricks.as_strided(pool, (20, 2, PAGE, 16), (pool.strides[0], 0, *pool.strides[2:]))
    rows = kvtrim.Rows(both, pages=table)
    plan = kvtrim.plan("key_norm", rows, budget=20)
    assert same(plan, kvtrim.plan("key_norm", kvtrim.Rows(keys, lengths=lengths), budget=20))
    with pytest.raises(ValueError, match="read-only"):
        kvtrim.compact_pages(plan, kvtrim.Rows(np.broadcast_to(pool, (20, 2, PAGE, 16)), pages=table))
    done = kvtrim.compact_pages(plan, rows)
    assert done.pages.per_head and len(done.freed) == 12 - 4
    now = kvtrim.Rows(both, pages=done.pages)
    for head, kept in enumerate(plan):
        np.testing.assert_array_equal(now.read(head, 0, 20), keys[head, done.origins[head]])


@pytest.mark.parametrize("wrong, complaint", [
    (lambda pool: kvtrim.Rows(pool[0], pages=kvtrim.Pages([0], [0, 1], [3])), "4 axes"),
    (lambda pool: kvtrim.Rows(pool, pages=kvtrim.Pages([0], [0, 1], [3]), lengths=[1, 2]), "not two"),
    (lambda pool: kvtrim.Rows(pool, pages=kvtrim.Pages([0], [0], [3])), r"integers \[2\]"),
    (lambda pool: kvtrim.Rows(pool, pages=kvtrim.Pages([0.5], [0, 1], [3])), "integers"),
    (lambda pool: kvtrim.plan("random", kvtrim.Rows(pool, pages=kvtrim.Pages([4], [0, 1], [3])), budget=1), "page"),
    (lambda pool: kvtrim.plan("random", kvtrim.Rows(pool, pages=kvtrim.Pages([0], [0, 1], [17])), budget=1), "page"),
    (lambda pool: kvtrim.plan("random", kvtrim.Rows(pool, pages=kvtrim.Pages([0], [0, 1], [3], row=1)), budget=1), "row|table"),
    (lambda pool: kvtrim.plan("random", kvtrim.Rows(pool.transpose(0, 1, 3, 2), pages=kvtrim.Pages([0], [0, 1], [3])), budget=1),
     "channels"),
])
def test_page_tables_that_do_not_fit_are_refused(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        wrong(np.zeros((4, 2, PAGE, 8), dtype=np.float32))


# ---- Blocks of ggml ----

IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
PARTS = {  # bytes of: scale, minimum, fifth bits, codes
    "q8_0": (2, 0, 0, 32), "q4_0": (2, 0, 0, 16), "q4_1": (2, 2, 0, 16), "q5_0": (2, 0, 4, 16), "q5_1": (2, 2, 4, 16),
    "iq4_nl": (2, 0, 0, 16)}


def blocks(rng, kind, *shape):
    """Random blocks [*shape, bytes], and the floats that they stand for."""
    scale, minimum, fifth, codes = PARTS[kind]
    factors = rng.uniform(0.01, 0.1, (*shape, 2)).astype(np.float16)
    bits = rng.integers(0, 256, (*shape, fifth + codes), dtype=np.uint8)
    raw = np.concatenate([factors.view(np.uint8)[..., :scale + minimum], bits], axis=-1)
    low = bits[..., fifth:]
    if kind == "q8_0":
        x = low.view(np.int8).astype(np.float32)
    else:
        x = np.concatenate([low & 15, low >> 4], axis=-1).astype(np.int32)
        if fifth:
            x |= np.unpackbits(bits[..., :4], axis=-1, bitorder="little").astype(np.int32) << 4
        x = {"q4_0": x - 8, "q5_0": x - 16, "iq4_nl": IQ4_NL[x % 16]}.get(kind, x).astype(np.float32)
    x = x * factors[..., :1].astype(np.float32)
    return raw, x + factors[..., 1:].astype(np.float32) if minimum else x


@pytest.mark.parametrize("kind", PARTS)
def test_blocks_are_the_floats_that_they_stand_for(rng, kind):
    raw, floats = blocks(rng, kind, 2, 100, 3)  # 96 channels
    data = np.zeros((2, 100, 3 * raw.shape[-1] + 10), dtype=np.uint8)  # rows with gaps
    data[..., :-10] = raw.reshape(2, 100, -1)
    keys = floats.reshape(2, 100, 96)
    rows = kvtrim.Rows(data[..., :-10], element=kind)
    np.testing.assert_allclose(rows.read(1, 10, 80), keys[1, 10:90], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(kvtrim.Rows(Tensor8(data[..., :-10]), element=kind).read(0, 0, 100), rows.read(0, 0, 100))
    queries = rng.standard_normal((4, 8, 96), dtype=np.float32)
    assert same(plan_of(rows, queries), plan_of(np.stack([rows.read(h, 0, 100) for h in range(2)]), queries))
    slots = rng.permutation(100)[:60]
    np.testing.assert_array_equal(kvtrim.Rows(data[..., :-10], element=kind, indices=slots).read(0, 0, 60), rows.read(0, 0, 100)[slots])


@pytest.mark.parametrize("kind", PARTS)
def test_blocks_move_as_they_are(rng, kind):
    raw, _ = blocks(rng, kind, 2, 100, 2)
    data = raw.reshape(2, 100, -1)
    before = data.copy()
    rows = kvtrim.Rows(data, element=kind)
    plan = kvtrim.plan("key_norm", rows, budget=20)
    kvtrim.compact_in_place(plan, rows)
    for head, kept in enumerate(plan):
        np.testing.assert_array_equal(data[head, :20], before[head, kept])


# ---- 8-bit codes ----


class Tensor8(Tensor):
    """Bytes by DLPack: its kind of unsigned integers."""

    def __dlpack__(self):
        capsule = super().__dlpack__()
        self.keep.code = 1
        return capsule


def e4m3(bits):
    sign, exponent, fraction = np.where(bits & 128, -1.0, 1.0), (bits >> 3 & 15).astype(int), bits & 7
    return (sign * np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0**(exponent - 7.0))).astype(np.float32)


@pytest.mark.parametrize("of", ["all", "head", "token", "channel", "token and head"])
@pytest.mark.parametrize("with_zeros", [False, True])
def test_codes_are_their_floats_by_scales_and_zeros(rng, of, with_zeros):
    codes = rng.integers(-128, 128, (2, 100, 16), dtype=np.int8)
    shape = {"all": (1, 1, 1), "head": (2, 1, 1), "token": (1, 100, 1), "channel": (1, 1, 16), "token and head": (2, 100, 1)}[of]
    scales = rng.uniform(0.01, 0.1, shape).astype(np.float32)
    zeros = rng.uniform(-20, 20, shape).astype(np.float32) if with_zeros else None
    keys = (codes - (zeros if with_zeros else 0)) * scales
    rows = kvtrim.Rows(codes, scales=float(scales[0, 0, 0]) if of == "all" and not with_zeros else scales, zeros=zeros)
    if of == "token":  # rows of one head would take the scales of the other's with them
        with pytest.raises(kvtrim.Refused, match="of one head each"):
            rows.read(0, 0, 100)
        return
    for head in range(2):
        np.testing.assert_allclose(rows.read(head, 0, 100), keys[head], rtol=1e-5, atol=1e-5)
    decoded = np.stack([rows.read(h, 0, 100) for h in range(2)])
    plan = kvtrim.plan("key_norm", rows, budget=20)
    assert same(plan, kvtrim.plan("key_norm", decoded, budget=20))
    slots = rng.permutation(100)[:60]
    np.testing.assert_array_equal(kvtrim.Rows(codes, scales=scales, zeros=zeros, indices=slots).read(1, 0, 60),
                                  kvtrim.Rows(codes, scales=scales, zeros=zeros).read(1, 0, 100)[slots])
    kvtrim.compact_in_place(plan, rows)
    for head, kept in enumerate(plan):
        np.testing.assert_array_equal(rows.read(head, 0, 20), decoded[head, kept])


def test_codes_in_pages_have_their_scales_there(rng):
    codes = rng.integers(0, 120, (10, PAGE, 2, 16), dtype=np.uint8)
    scales = rng.uniform(0.5, 2, (10, PAGE, 2, 1)).astype(np.float32)
    table = kvtrim.Pages([7, 2, 5], [0, 3], [4])
    pool = codes.transpose(0, 2, 1, 3)
    rows = kvtrim.Rows(pool, element="f8_e4m3", pages=table, scales=scales.transpose(0, 2, 1, 3))
    floats = (e4m3(pool) * scales.transpose(0, 2, 1, 3))[[7, 2, 5]].transpose(1, 0, 2, 3).reshape(2, 3 * PAGE, 16)[:, :2 * PAGE + 4]
    for head in range(2):
        np.testing.assert_allclose(rows.read(head, 0, 2 * PAGE + 4), floats[head], rtol=1e-6)
    assert same(kvtrim.plan("key_norm", rows, budget=9), kvtrim.plan("key_norm", np.ascontiguousarray(floats), budget=9))
    done = kvtrim.compact_pages(kvtrim.plan("key_norm", rows, budget=9), rows)
    now = kvtrim.Rows(pool, element="f8_e4m3", pages=done.pages, scales=scales.transpose(0, 2, 1, 3))
    for head in range(2):
        np.testing.assert_allclose(now.read(head, 0, 9), floats[head, done.origins[head]], rtol=1e-6)


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("error, complaint, wrong", [
    (TypeError, "what bytes hold", lambda b, s: kvtrim.Rows(b)),
    (TypeError, "what bytes hold", lambda b, s: kvtrim.Rows(b, element="q6_k")),
    (ValueError, "arrays of bytes", lambda b, s: kvtrim.Rows(s, element="q8_0")),
    (ValueError, "blocks of 34 bytes", lambda b, s: kvtrim.Rows(b, element="q8_0")),
    (ValueError, "no blocks", lambda b, s: kvtrim.Rows(np.zeros((9, 34), dtype=np.uint8), element="q8_0", indptr=[0, 9])),
    (ValueError, "8-bit", lambda b, s: kvtrim.Rows(s, scales=1.0)),
    (ValueError, "of rows with scales", lambda b, s: kvtrim.Rows(b, element="f8_e5m2", zeros=1.0)),
    (ValueError, "each axis", lambda b, s: kvtrim.Rows(b, element="f8_e5m2", scales=s[:, :3])),
    (ValueError, "each axis", lambda b, s: kvtrim.Rows(b, element="f8_e5m2", scales=s[0])),
    (TypeError, "float32", lambda b, s: kvtrim.Rows(b, element="f8_e5m2", scales=s.astype(np.float16))),
    (ValueError, "same shape", lambda b, s: kvtrim.Rows(b, element="f8_e5m2", scales=s, zeros=0.0)),
    (ValueError, "read-only", lambda b, s: kvtrim.compact_in_place(
        kvtrim.Plan([0, 1, 2], [1, 1]), kvtrim.Rows(b, element="f8_e5m2", scales=read_only(s[:, :, :1].copy())))),
    (TypeError, "out is of", lambda b, s: kvtrim.gather(kvtrim.Plan([0, 1, 2], [1, 1]), s, np.empty((2, 8), dtype=np.int8))),
])
def test_bytes_and_scales_that_do_not_fit_are_refused(error, complaint, wrong):
    with pytest.raises(error, match=complaint):
        wrong(np.zeros((2, 5, 8), dtype=np.uint8), np.ones((2, 5, 8), dtype=np.float32))


def test_rows_head_by_head_may_have_room_behind_them(layer):
    keys = layer[0]
    rows = kvtrim.Rows(keys.reshape(-1, 16), indptr=[0, 100, 200], lengths=[40, 70])
    assert same(kvtrim.plan("key_norm", rows, budget=10), kvtrim.plan("key_norm", kvtrim.Rows(keys, lengths=[40, 70]), budget=10))
    np.testing.assert_array_equal(rows.read(1, 60, 10), keys[1, 60:70])
    with pytest.raises(kvtrim.Refused):
        rows.read(1, 60, 11)


# ---- What a growing sequence keeps ----


@pytest.mark.parametrize("element", kvtrim.Queries.ELEMENTS)
def test_queries_of_chunks_are_the_newest_of_all(layer, rng, element):
    keys = layer[0]
    all_queries = rng.standard_normal((4, 30, 16), dtype=np.float32)
    kept = kvtrim.Queries(4, 8, 16, rollback_tokens=3, element=element)
    for begin, end in ((0, 1), (1, 20), (20, 27), (27, 30)):
        kept.append(all_queries[:, begin:end])
    assert len(kept) == 11
    tolerance = {"float32": 0, "float16": 1e-3, "bfloat16": 1e-2}[element]
    for rollback, end in ((0, 30), (3, 27)):
        rows = kept.rows(rollback)
        read = np.stack([rows.read(h, 0, 8) for h in range(4)])
        np.testing.assert_allclose(read, all_queries[:, end - 8:end], rtol=tolerance, atol=tolerance)
        assert same(plan_of(keys, rows), plan_of(keys, read))
    saved = kept.save()
    kept.rollback(3)
    np.testing.assert_allclose(kept.rows().read(2, 0, 8), all_queries[2, 19:27], rtol=tolerance, atol=tolerance)
    kept.restore(saved)
    assert len(kept) == 11 and kept.save() == saved
    with pytest.raises(kvtrim.Refused):
        kept.append(all_queries[:3])
    with pytest.raises(kvtrim.Refused):
        kept.rows(12)
    with pytest.raises(ValueError, match="element is one of"):
        kvtrim.Queries(4, 8, 16, element="int8")


@pytest.mark.parametrize("form", [None, "packed", "gram"])
def test_norms_taken_when_tokens_come_choose_as_those_taken_at_the_cut(layer, rng, form):
    keys, queries, values = layer
    w_o = rng.standard_normal((4, 16, 24), dtype=np.float32)
    projection = None if form is None else kvtrim.Projection(w_o, form)
    norms = kvtrim.Norms(2)
    for begin, end in ((0, 60), (60, 100)):
        norms.append(kvtrim.Layer(keys[:, :end], values=values[:, :end], output_projection=w_o if form is None else None,
                                  projection=projection), end - begin)
    projected = np.einsum("gtd,gqdh->gqth", values, w_o.reshape(2, 2, 16, 24))
    lengths = np.linalg.norm(projected, ord=2 if form == "gram" else 1, axis=-1).mean(axis=1)
    np.testing.assert_allclose([norms[0], norms[1]], lengths, rtol=1e-3)
    if form != "gram":
        asked = dict(budget=20, sink_tokens=2)
        assert same(kvtrim.plan("criticalkv", keys, queries, values, norms=norms, **asked),
                    kvtrim.plan("criticalkv", keys, queries, values, w_o, **asked))
        np.testing.assert_allclose(kvtrim.scores("criticalkv", keys, queries, values, norms=norms).importance,
                                   kvtrim.scores("criticalkv", keys, queries, values, w_o).importance, rtol=1e-4)
    plan, saved, before = plan_of(keys, queries), norms.save(), norms[1]
    norms.compact(plan)
    np.testing.assert_array_equal(norms[1], before[plan[1]])
    norms.restore(saved)
    norms.rollback(40)
    np.testing.assert_array_equal(norms[1], before[:60])
    with pytest.raises(IndexError):
        norms[2]
    with pytest.raises(kvtrim.Refused):
        norms.rollback(61)
    with pytest.raises(ValueError, match="form is one of"):
        kvtrim.Projection(w_o, "l2")


def test_a_replay_and_the_prompts_own_pass_are_added_up(layer):
    keys, queries, values = layer
    replay, own = (kvtrim.Replay(2, 100, "output_square_sum") for _ in range(2))
    replay.add(kvtrim.Layer(keys, queries, values))
    own.add_own(kvtrim.Layer(keys, queries, values), 10)
    before, more = replay.scores(1, 100), own.scores(1, 100)
    replay.add_pass(own, 10, 2)
    observers = np.maximum(1, 90 - np.arange(100))
    np.testing.assert_allclose(replay.scores(1, 100)**2, before**2 + 2 * 100 / observers * more**2, rtol=1e-4)
    with pytest.raises(kvtrim.Refused):
        replay.add_pass(kvtrim.Replay(2, 99, "output_square_sum"))


def test_a_replay_is_weighed_by_norms(layer, rng):
    keys, queries, values = layer
    norms, replay, plain = kvtrim.Norms(2), kvtrim.Replay(2, 100), kvtrim.Replay(2, 100)
    norms.append(kvtrim.Layer(keys, values=values, output_projection=rng.standard_normal((4, 16, 24), dtype=np.float32)), 100)
    for r in (replay, plain):
        r.add(kvtrim.Layer(keys, queries))
    replay.weigh(norms)
    np.testing.assert_allclose(replay.scores(1, 100), plain.scores(1, 100) * norms[1], rtol=1e-6)
