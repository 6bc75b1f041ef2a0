# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""What does not fit is an exception that says so, with nothing written."""
import concurrent.futures
import pickle

import numpy as np
import pytest

import kvtrim
from test_arrays import Tensor, plan_of


@pytest.mark.parametrize("code, change", [
    ("BUDGET_ZERO", {"budget": 0}),
    ("BUDGET_BELOW_PROTECTION", {"budget": 9}),
    ("BUDGET_ZERO", {"budget": -1}),
    ("INVALID_PARAMETER", {"scale": -1.0}),
    ("HEADS_NOT_DIVISIBLE", {"queries": np.ones((3, 8, 16), dtype=np.float32)}),
])
def test_refusals_have_a_code_and_a_sentence(layer, code, change):
    with pytest.raises(kvtrim.Refused) as refused:
        kvtrim.plan("snapkv", layer[0], **{"queries": layer[1], "budget": 20, "sink_tokens": 4} | change)
    assert refused.value.code is kvtrim.Code[code]
    assert len(str(refused.value)) > 10


def test_refusals_can_be_pickled():
    with pytest.raises(kvtrim.Refused) as refused:
        kvtrim.Policy("snapkv", kernel=5)
    again = pickle.loads(pickle.dumps(refused.value))
    assert (again.code, again.needed, str(again)) == (refused.value.code, refused.value.needed, str(refused.value))


def test_needed_is_what_would_have_been_enough(layer):
    with pytest.raises(kvtrim.Refused, match="needed: 24") as refused:
        kvtrim.plan("snapkv", layer[0], layer[1], budget=9, sink_tokens=4)  # 4 + 8 of each of two heads
    assert refused.value.needed == 24


@pytest.mark.parametrize("name, options", [("snap", {}), ("snapkv", {"kernel": 5}), ("snapkv", {"kernel_tokens": 0}),
                                           ("snapkv", {"pooling": "median"}), ("tova", {"kernel_tokens": 5})])
def test_policies_refuse_what_the_table_does_not_have(name, options):
    with pytest.raises(kvtrim.Refused):
        kvtrim.Policy(name, **options)


def test_policies_are_listed_with_their_options():
    listed = kvtrim.policies()
    assert len(listed) > 30
    for info in listed.values():
        defaults = {option.name: option.default for option in info.options}
        assert kvtrim.Policy(info.name, **defaults).info is info
        assert info.text
    pooling = next(option for option in listed["snapkv"].options if option.name == "pooling")
    assert pooling.default == "average" and "maximum" in pooling.choices
    assert listed["layer_defensivekv"].needs == (kvtrim.Needs.VALUES | kvtrim.Needs.QUERIES | kvtrim.Needs.OUTPUT_PROJECTION |
                                                 kvtrim.Needs.TAKES_LAYERS | kvtrim.Needs.TAKES_CASCADE | kvtrim.Needs.TAKES_NORMS)


@pytest.mark.parametrize("wrong, complaint", [
    (lambda k: k.astype(np.float64), "rows of float64"),
    (lambda k: k.astype(">f4"), "byte-swapped"),
    (lambda k: k.tolist(), "list"),
    (lambda k: Tensor(k, device=2), "another device"),
    (lambda k: Tensor(k.astype(np.float64)), "DLPack's kind 2 of 64 bits"),
])
def test_rows_that_cannot_be_viewed_are_a_type_error(layer, wrong, complaint):
    with pytest.raises(TypeError, match=complaint):
        plan_of(wrong(layer[0]), layer[1])


@pytest.mark.parametrize("wrong, complaint", [
    (lambda k: kvtrim.Rows(k[0]), "3 axes"),
    (lambda k: kvtrim.Rows(k, lengths=[1]), r"integers \[2\]"),
    (lambda k: kvtrim.Rows(k, lengths=[1, 2.5]), "integers"),
    (lambda k: kvtrim.Rows(k, indices=[2**40]), "integers"),
    (lambda k: kvtrim.Rows(k, lengths=[1, 2], indices=[1]), "not two"),
    (lambda k: kvtrim.Rows(k.reshape(-1, 16), indptr=[0, 201]), "row 201 of 200"),
    (lambda k: kvtrim.Rows(k.reshape(-1, 16)[:, ::2], indptr=[0, 2]), "contiguous"),
    (lambda k: kvtrim.plan("random", kvtrim.Rows(k, lengths=[1, 101]), budget=1), "length"),
    (lambda k: kvtrim.plan("random", kvtrim.Rows(k, indices=[1, 100]), budget=1), "ind|slot|row"),
    (lambda k: kvtrim.plan("random", kvtrim.Rows(k.reshape(-1, 16), indptr=[0, 5, 4]), budget=1), "."),
    (lambda k: kvtrim.plan("random", kvtrim.Rows(k.reshape(-1, 16), indptr=[]), budget=1), "."),
])
def test_tables_that_do_not_fit_are_refused(layer, wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        wrong(layer[0])


def test_requests_have_no_other_members(layer):
    with pytest.raises(TypeError, match="window_token"):
        kvtrim.plan("snapkv", *layer[:2], budget=20, window_token=8)
    with pytest.raises(ValueError, match="scope"):
        kvtrim.plan("snapkv", *layer[:2], budget=20, scope="token")
    for budget in (20.5, "20", 2**64 + 20):
        with pytest.raises((TypeError, OverflowError)):
            kvtrim.plan("snapkv", *layer[:2], budget=budget)


def test_nothing_is_written_by_a_call_that_is_refused(layer):
    keys, queries, values = layer
    plan = plan_of(keys, queries)
    before = keys.copy(), values.copy()
    with pytest.raises(kvtrim.Refused) as refused:
        kvtrim.compact_in_place(plan, keys, values[:, :50])
    assert refused.value.code is kvtrim.Code.PLAN_MISMATCH
    with pytest.raises(kvtrim.Refused) as refused:
        kvtrim.compact_in_place(plan, keys, keys[:, ::-1])
    assert refused.value.code is kvtrim.Code.VIEWS_OVERLAP
    with pytest.raises(ValueError, match="out must be"):
        kvtrim.gather(plan, keys, np.empty((3, 16), dtype=np.float32))
    keys.flags.writeable = False
    for call in (kvtrim.compact_in_place, kvtrim.compact_to_flat):
        with pytest.raises(ValueError, match="read-only"):
            call(plan, keys, values)
    np.testing.assert_array_equal(keys, before[0])
    np.testing.assert_array_equal(values, before[1])


@pytest.mark.parametrize("indptr, indices", [([], []), ([0, 2], [1]), ([0, 2], [1, 1]), ([0, 1, 0], [1]), ([1, 2], [1, 2])])
def test_plans_of_wrong_tables_are_refused(indptr, indices):
    with pytest.raises(kvtrim.Refused) as refused:
        kvtrim.Plan(indptr, indices)
    assert refused.value.code is kvtrim.Code.INVALID_TABLE


def test_missing_parts_of_a_layer_are_refused(layer):
    for policy in ("snapkv", "criticalkv", "replay", "expected_attention", "cake", "running"):
        with pytest.raises(kvtrim.Refused):
            kvtrim.plan(policy, layer[0], budget=20)
    with pytest.raises(kvtrim.Refused):
        kvtrim.plan_layers("layer_ada_snapkv", [], budget=20)


def test_threads_plan_at_the_same_time(layer):
    alone = plan_of(*layer[:2]).indices
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for plan in threads.map(lambda _: plan_of(*layer[:2]), range(40)):
            np.testing.assert_array_equal(plan.indices, alone)
