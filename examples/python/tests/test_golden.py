# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Scores and kept rows are those of the golden vectors, which another implementation made (tests/golden/README.md)."""
import json
import pathlib

import numpy as np
import pytest

import kvtrim

GOLDEN = pathlib.Path(__file__).parents[3] / "tests/golden"


def arrays(folder, names):
    return {name: np.load(folder / f"{name}.npy") for name in names.split()}


def load(name):
    case = json.loads((GOLDEN / "cases" / name / "case.json").read_text())
    layers = []
    for inputs in case["inputs"].split():
        folder = GOLDEN / "inputs" / inputs
        layers.append(arrays(folder, json.loads((folder / "inputs.json").read_text())["arrays"]))
    return case, layers, arrays(GOLDEN / "cases" / name, case["arrays"])


def pooled(case):
    """The options of a mean of attention, in the words of kvtrim."""
    words = {"avg": "average", "max": "maximum"}
    options = {"kernel_tokens": case["kernel_size"], "pooling": words.get(case["pooling"], case["pooling"]),
               "group": words.get(case["group"], case["group"]), "pooling_order": case["order"]}
    return options


def kept(case, layer):
    return int(layer["keys"].shape[1] * (1 - case["ratio"]))  # kvpress truncates


@pytest.mark.parametrize("name", ["snapkv_mha_avg5", "snapkv_gqa_avg5", "snapkv_gqa_avg7_max_group", "snapkv_gqa_max7_group_first",
                                  "snapkv_gqa_max7_pool_first", "snapkv_mqa_max3_max_group"])
def test_snapkv(name):
    case, (layer,), expected = load(name)
    policy = kvtrim.Policy("snapkv", **pooled(case))
    plan = kvtrim.plan(policy, layer["keys"], layer["q_window"], budget=kept(case, layer))
    np.testing.assert_array_equal(plan.indptr, expected["offsets"])
    np.testing.assert_array_equal(plan.indices, expected["indices"])
    scores = kvtrim.scores(policy, layer["keys"], layer["q_window"])
    np.testing.assert_allclose(scores.importance.reshape(expected["scores"].shape), expected["scores"], rtol=1e-4)
    assert len(scores) == len(plan) and scores.first == 0
    np.testing.assert_array_equal(scores[-1], scores.importance[scores.indptr[-2]:])


@pytest.mark.parametrize("name, policy, reads, request_", [
    ("knorm", "key_norm", "keys", {}),
    ("keydiff", "key_diff", "keys", {}),
    ("streaming_llm", "streaming_llm", "keys", {"sink_tokens": 4}),
    ("observed_attention", "observed_attention", "keys q_all", {"window_tokens": 0}),
    ("tova", "tova", "keys q_window", {"window_tokens": 1}),
    ("lagkv_rank", kvtrim.Policy("lagkv", lag=32), "keys - values", {"sink_tokens": 4}),
    ("lagkv_cross", kvtrim.Policy("lagkv", lag=32, cross_scoring=True), "keys - values", {"sink_tokens": 4}),
])
def test_kept_rows(name, policy, reads, request_):
    case, (layer,), expected = load(name)
    given = [layer.get(part) for part in reads.split()]
    plan = kvtrim.plan(policy, *given, budget=kept(case, layer), **request_)
    np.testing.assert_array_equal(plan.indptr, expected["offsets"])
    np.testing.assert_array_equal(plan.indices, expected["indices"])


def test_layers_under_one_budget():
    case, layers, expected = load("pyramidkv_exact")
    policy = kvtrim.Policy("pyramidkv", beta=case["beta"], kernel_tokens=case["kernel_size"])
    plans = kvtrim.plan_layers(policy, [kvtrim.Layer(layer["keys"], layer["q_window"]) for layer in layers], budget=case["capacity"])
    np.testing.assert_array_equal(np.concatenate([plan.indices for plan in plans]), expected["indices"])
    np.testing.assert_array_equal(np.concatenate([plan.lengths for plan in plans]), np.diff(expected["offsets"]))


def test_statistics_of_queries_before_rope():
    case, (layer,), expected = load("expected_attention")
    statistics = kvtrim.Statistics(*layer["q_pre"].shape[::2], skip_positions=case["n_sink"])
    statistics.add(layer["q_pre"])
    policy = kvtrim.Policy("expected_attention", future_positions=case["n_future"], epsilon=case["epsilon"])
    plan = kvtrim.plan(policy, layer["keys"], values=layer["values"], statistics=statistics, rope=kvtrim.Rope(layer["inv_freq"]),
                       budget=kept(case, layer), sink_tokens=case["n_sink"])
    np.testing.assert_array_equal(plan.indices, expected["indices"])
