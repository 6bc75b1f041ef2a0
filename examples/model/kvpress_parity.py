#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Kept tokens of kvtrim and of kvpress on one prompt of a real model: rows that differ, policy by policy.

    python3 -m venv venv && venv/bin/pip install kvpress==0.5.5 torch==2.15.0
    ./dev quality --dump FOLDER --tokens 2048 --keep 0.5,0.2,0.1
    venv/bin/python examples/model/kvpress_parity.py FOLDER [--json FILE] [POLICY ...]

kvpress's own code scores and selects; it is given the model's keys, values, W_O, queries before their rotation and, for KVzip,
those of a replay. Presses that protect no window, or no sinks, get kvtrim's: infinite scores. A row is one token of one
(layer, KV head).

    differ      rows that kvtrim keeps and kvpress does not
    ties        of these, those whose kvpress score is within 1e-5, relatively, of the lowest score that kvpress keeps in the
                row's competition: sums in another order, or equal ones
    more        rows that kvpress keeps, less those that kvtrim does
    told        differ and ties once more, where one of the two is asked otherwise so that a known difference is none: what is
                asked stands in `presses` and the functions that it names
"""
import argparse
import functools
import json
import math
from datetime import date
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import torch
from kvpress import (AdaKVPress, BlockPress, ChunkKVPress, ChunkPress, CriticalAdaKVPress, CriticalKVPress, DMSPress,
                     ExpectedAttentionPress, ExpectedAttentionStatsPress, FinchPress, KeyDiffPress, KnormPress, KVzipPress,
                     LagKVPress, LUKVPress, ObservedAttentionPress, PyramidKVPress, ScorerPress, SnapKVPress, StreamingLLMPress,
                     TOVAPress)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("folder")
arguments.add_argument("policies", nargs="*", metavar="POLICY")
arguments.add_argument("--json", help="write all results to this file")
chosen = arguments.parse_args()
folder = chosen.folder
info = SimpleNamespace(**json.load(open(f"{folder}/plans.json", encoding="ascii")))
n, d, group = info.tokens, info.head_dim, info.q_heads // info.kv_heads


# ---- What presses ask of a model ----

def rotation(first, count):
    angles = np.outer(np.arange(first, first + count), info.frequencies)
    angles = np.concatenate([angles, angles], axis=1)
    return torch.tensor(np.cos(angles), dtype=torch.float32)[None], torch.tensor(np.sin(angles), dtype=torch.float32)[None]


class Attention(torch.nn.Module):
    """A layer's attention; its hidden states are the queries themselves."""

    def __init__(self, layer, wo):
        super().__init__()
        self.config = SimpleNamespace(num_attention_heads=info.q_heads, num_key_value_heads=info.kv_heads, head_dim=d,
                                      hidden_size=info.d_model, num_hidden_layers=info.layers, _attn_implementation="sdpa")
        self.head_dim, self.num_key_value_groups, self.layer_idx = d, group, layer
        self.q_proj = torch.nn.Identity()
        self.o_proj = torch.nn.Linear(info.q_heads * d, info.d_model, bias=False)
        self.o_proj.weight.data = wo
        self.rotary_emb = lambda x, positions: rotation(int(positions[0, 0]), positions.shape[1])
        self.masked_key_indices = None


def floats_of(name, shapes):
    floats = torch.from_numpy(np.fromfile(f"{folder}/{name}.f32", dtype=np.float32))
    return [part.view(shape) for part, shape in zip(floats.split([math.prod(shape) for shape in shapes]), shapes)]


class Layer:
    def __init__(self, index):
        queries, self.keys, self.values, wo = floats_of(f"layer_{index}", [
            (info.q_heads, n, d), (1, info.kv_heads, n, d), (1, info.kv_heads, n, d), (info.d_model, info.q_heads * d)])
        self.queries = queries.transpose(0, 1).reshape(1, n, -1)
        self.module = Attention(index, wo)
        self.kwargs = {"position_embeddings": rotation(0, n)}

    def score(self, press, attention=None):
        return press.score(self.module, self.queries, self.keys, self.values, attention, self.kwargs)

    def compress(self, press):
        """Kept rows [kv_heads, n], of presses that score without values: these stand for the tokens' numbers."""
        self.module.masked_key_indices = None
        numbers = torch.arange(n)[None, None, :, None].expand(self.values.shape)
        _, left = press.compress(self.module, self.queries, self.keys, numbers, None, self.kwargs)
        return self.unmasked() if self.module.masked_key_indices is not None else rows_at(left[0, :, :, 0])

    def unmasked(self):
        _, heads, tokens = self.module.masked_key_indices
        kept = torch.ones(info.kv_heads, n, dtype=torch.bool)
        kept[heads, tokens] = False
        return kept

    def attention(self):
        """What an eager attention hands to presses: [1, q_heads, n, n]."""
        queries = self.queries.view(1, n, info.q_heads, d).transpose(1, 2)
        queries, _ = apply_rotary_pos_emb(queries, queries, *self.kwargs["position_embeddings"])
        logits = queries @ self.keys.repeat_interleave(group, 1).transpose(2, 3) / math.sqrt(d)
        return logits.masked_fill_(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


class Given(ScorerPress):
    """Scores that are there already."""

    def __init__(self, ratio, scores):
        super().__init__(ratio)
        self.scores = scores

    def score(self, *_):
        return self.scores.clone()


def rows_at(tokens):
    return torch.zeros(info.kv_heads, n, dtype=torch.bool).scatter_(1, tokens, True)


def best(scores, counts):
    """The `counts` best rows of each head; of equal ones the earlier."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return torch.stack([torch.zeros(n, dtype=torch.bool).index_fill_(0, row[:count], True) for row, count in zip(order, counts)])


# ---- Kept rows of kvpress: (layer, plan) -> rows [kv_heads, n], the scores that competed, and whether heads did ----

def ratio_of(plan):
    return 1 - plan.kept_ratio


def protected(scores, plan):
    scores = scores[0].clone()
    scores[..., :plan.sink_tokens] = torch.inf
    scores[..., n - plan.window_tokens:] = torch.inf
    return scores


def scored(make):
    def theirs(layer, plan):
        scores = protected(layer.score(make(plan)), plan)
        return rows_at(scores.topk(len(plan.rows[0]), dim=-1).indices), scores, False
    return theirs


def snap_press(plan):
    return SnapKVPress(ratio_of(plan), plan.window_tokens, 5)


def share_without_window(plan, share, count):
    """A share of count that is, rounded down, the window and the share of the rest."""
    return (plan.window_tokens + int((count - plan.window_tokens) * share) + 0.5) / count


def count_of(plan):
    return int(n * plan.kept_ratio + 1e-9)


def ada(layer, plan, told=None):
    alpha = share_without_window(plan, 0.2, count_of(plan)) if told else 0.2
    press = AdaKVPress(snap_press(plan), alpha)
    return layer.compress(press), layer.score(press.press)[0], True


def critical(layer, plan, told=None):
    first = share_without_window(plan, 0.5, count_of(plan)) * count_of(plan) / (plan.kept_ratio * n) if told else 0.5
    return scored(lambda plan: CriticalKVPress(snap_press(plan), first_stage_ratio=first))(layer, plan)


class HalfWithoutWindow:
    """A factor for budgets: the window, and half of the rest."""

    def __init__(self, window):
        self.window = window

    def __rmul__(self, budgets):
        return self.window + (budgets - self.window) // 2


def ada_critical(layer, plan, told=None):
    alpha = share_without_window(plan, 0.2, count_of(plan)) if told else 0.2
    first = HalfWithoutWindow(plan.window_tokens) if told else 0.5
    layer.module.masked_key_indices = None
    CriticalAdaKVPress(snap_press(plan), alpha, first_stage_ratio=first).compress(
        layer.module, layer.queries, layer.keys, layer.values, None, layer.kwargs)
    return layer.unmasked(), layer.score(snap_press(plan))[0], True


def ada_then_critical(layer, plan):
    """Budgets of kvpress's Ada-KV, then its CriticalKV in each head: nobody is marked but by a first pass."""
    budgets = ada(layer, plan, told=True)[0].sum(1).tolist()
    kept, scores = [], layer.score(snap_press(plan))
    for head, budget in enumerate(budgets):
        first = plan.window_tokens + (budget - plan.window_tokens) // 2
        press = CriticalKVPress(Given(ratio_of(plan), scores), first_stage_ratio=(first + 0.5) / (plan.kept_ratio * n))
        kept.append(best(layer.score(press)[0], [budget] * info.kv_heads)[head])
    return torch.stack(kept), scores[0], True


def pyramid(layer, plan, told=None):
    press = PyramidKVPress(ratio_of(plan), plan.window_tokens, 5)
    scores = protected(layer.score(press), plan)
    counts = [len(row) for row in plan.rows] if told else [press.get_layer_budget(layer.module, n)] * info.kv_heads
    return best(scores, counts), scores, False


def lag(layer, plan, told=None):
    kept, scores, _ = scored(lambda plan: LagKVPress(ratio_of(plan), n_sink=plan.sink_tokens))(layer, plan)
    return best(scores, kept.sum(1)) if told else kept, scores, False


def observed(layer, plan):
    scores = protected(layer.score(ObservedAttentionPress(ratio_of(plan)), layer.attention()), plan)
    return rows_at(scores.topk(len(plan.rows[0]), dim=-1).indices), scores, False


def expected_given_statistics(layer, plan):
    press = ExpectedAttentionStatsPress(ratio_of(plan), n_sink=plan.sink_tokens)
    queries = layer.queries[0, plan.sink_tokens:].view(-1, info.q_heads, d).transpose(0, 1)
    press.mu = {layer.module.layer_idx: queries.mean(1)}
    press.cov = {layer.module.layer_idx: torch.stack([torch.cov(head.T, correction=0) for head in queries])}
    return scored(lambda _: press)(layer, plan)


def finch(layer, plan, told=None):
    press = FinchPress(ratio_of(plan), normalize_scores=not told, rerotate_keys=False)
    press.window_size = plan.window_tokens
    return layer.compress(press), layer.score(press)[0], False


def whole_chunks(layer, plan, told=None):
    scores = layer.score(snap_press(plan))
    if not told:
        return layer.compress(ChunkKVPress(snap_press(plan), 20)), scores[0], True
    # Its chunks of what competes, one after the other until the budget is met; of the last the best tokens.
    candidates = n - plan.window_tokens
    budget, chunks = len(plan.rows[0]) - plan.window_tokens, math.ceil(candidates / 20)
    kept = torch.zeros(candidates, dtype=torch.bool)
    for count in range(1, chunks + 1):
        press = ChunkKVPress(Given(1 - (count + 0.5) / chunks, scores[..., :candidates]), 20)
        numbers = torch.arange(candidates)[None, None, :, None].expand(1, info.kv_heads, candidates, d)
        _, left = press.compress(layer.module, None, layer.keys[:, :, :candidates], numbers, None, layer.kwargs)
        now = torch.zeros(candidates, dtype=torch.bool).index_fill_(0, left[0, 0, :, 0], True)
        if now.sum() > budget:
            summed = scores[0, :, :candidates].sum(0).masked_fill(~now | kept, -torch.inf)
            kept[summed.topk(budget - int(kept.sum())).indices] = True
            break
        kept = now
    kept = torch.cat([kept, torch.ones(plan.window_tokens, dtype=torch.bool)])
    return kept.expand(info.kv_heads, n), scores[0], True


def by_shares(layer, plan, told=None):
    press = LUKVPress(snap_press(plan), ratio_of(plan), sink=plan.sink_tokens, window=plan.window_tokens)
    shares = np.array(plan.shares).reshape(info.layers, info.kv_heads)
    kept = plan.kept_ratio * shares / shares.mean()
    if told:
        kept[layer.module.layer_idx] = [len(row) / n for row in plan.rows]
    press._budget_curves = np.tile(1 - kept, (99, 1, 1))
    return layer.compress(press), layer.score(press.press)[0], False


def above_threshold(layer, plan):
    press = DMSPress(snap_press(plan), plan.threshold, plan.window_tokens)
    layer.module.masked_key_indices = None
    cache = SimpleNamespace(layers={layer.module.layer_idx: SimpleNamespace(keys=layer.keys, values=layer.values)})
    press.forward_hook(layer.module, [], layer.kwargs | {"hidden_states": layer.queries, "past_key_values": cache,
                                                         "cache_position": torch.arange(n)}, [None, None])
    return layer.unmasked(), layer.score(press.press)[0], False


@functools.cache
def zip_scores(first_part, end_part, sink_tokens):
    """KVzip's scores [layers, 1, kv_heads, n] of a replay in these parts, and the layers' attention."""
    press = KVzipPress(0.5, n_sink=sink_tokens)
    press.context_length, press.score_val = n, torch.zeros(info.layers, 1, info.kv_heads, n)
    modules = []
    parts = [(*info.replay_parts[i], floats_of(f"replay_{i}", [
        (info.q_heads, info.replay_parts[i][2], d), (1, info.kv_heads, info.replay_parts[i][2], d)] * info.layers))
        for i in range(first_part, end_part)]
    for index in range(info.layers):
        layer = Layer(index)
        modules.append(layer.module)
        for first, count, fed, tensors in parts:
            queries, keys = tensors[2 * index:2 * index + 2]
            press.start_idx, press.end_idx = first, first + count
            press.score_kvzip(layer.module, queries.transpose(0, 1).reshape(1, fed, -1), torch.cat([layer.keys, keys], 2),
                              torch.cat([layer.values, keys], 2), None, {"position_embeddings": rotation(n, fed)})
    return press.score_val, modules


def replayed(plan):
    """Kept rows of every layer, by KVzip."""
    parts = (1, len(info.replay_parts)) if plan.policy.endswith("parts") else (0, 1)
    scores, modules = zip_scores(*parts, plan.sink_tokens)
    rows = info.layers * info.kv_heads * n  # as many stay as with kvtrim, which rounds in every row
    press = KVzipPress((rows - sum(map(len, plan.kept)) + 0.5) / rows, plan.policy.startswith("replay"), plan.sink_tokens)
    press.score_val = scores.clone()
    press.score_val[..., n - plan.window_tokens:] = torch.inf
    press.compress_post(SimpleNamespace(model=SimpleNamespace(layers=[SimpleNamespace(self_attn=one) for one in modules])))
    layers = []
    for index, module in enumerate(modules):
        kept = torch.ones(info.kv_heads, n, dtype=torch.bool)
        kept[module.masked_key_indices[1], module.masked_key_indices[2]] = False
        layers.append((kept, scores[index, 0], True))
    return layers


# Of a policy: what kvpress keeps, and what it keeps when it is asked otherwise.
presses = {
    "snapkv": [scored(snap_press)],
    "ada_snapkv": [ada, lambda *args: ada(*args, told=True)],
    "criticalkv": [critical, lambda *args: critical(*args, told=True)],
    "ada_criticalkv": [ada_critical, lambda *args: ada_critical(*args, told=True), ada_then_critical],
    "tova": [scored(lambda plan: TOVAPress(ratio_of(plan)))],
    "key_diff": [scored(lambda plan: KeyDiffPress(ratio_of(plan)))],
    "key_diff_in_blocks": [lambda layer, plan: (layer.compress(BlockPress(KeyDiffPress(ratio_of(plan)), 128)),
                                                layer.score(KeyDiffPress(0))[0], False)],
    "key_diff_in_chunks": [lambda layer, plan: (layer.compress(ChunkPress(KeyDiffPress(ratio_of(plan)), 1024)),
                                                layer.score(KeyDiffPress(0))[0], False)],
    "key_norm": [scored(lambda plan: KnormPress(ratio_of(plan)))],
    "lagkv": [lag, lambda *args: lag(*args, told=True)],
    "pyramidkv": [pyramid, lambda *args: pyramid(*args, told=True)],
    "streaming_llm": [scored(lambda plan: StreamingLLMPress(ratio_of(plan), n_sink=plan.sink_tokens))],
    "observed_attention": [observed],
    "expected_attention": [scored(lambda plan: ExpectedAttentionPress(ratio_of(plan), n_sink=plan.sink_tokens))],
    "expected_attention, given statistics": [expected_given_statistics],
    "snapkv:pool=none": [finch, lambda *args: finch(*args, told=True)],
    "chunked": [whole_chunks, lambda *args: whole_chunks(*args, told=True)],
    "snapkv_by_shares": [by_shares, lambda *args: by_shares(*args, told=True)],
    "snapkv_above_threshold": [above_threshold],
    **{name: replayed for name in ("replay", "layer_replay", "replay_in_parts", "layer_replay_in_parts")},
}


# ---- Counting ----

class Count:
    """What compare() counts: rows as said above, and heads with rows that differ or with another number of them."""

    def __init__(self):
        self.rows = self.differ = self.ties = self.more = self.heads = self.other_counts = 0

    def add(self, rows, theirs, scores, is_shared):
        of_heads = torch.where(theirs, scores, torch.inf).min(dim=1, keepdim=True).values
        lowest = of_heads.min() if is_shared else of_heads
        distance = (scores - lowest).abs() / lowest.abs()
        for head, row in enumerate(rows):
            other = torch.zeros(n, dtype=torch.bool)
            other[row] = True
            other &= ~theirs[head]
            self.rows += len(row)
            self.differ += int(other.sum())
            self.ties += int((distance[head][other] < 1e-5).sum())
            self.more += int(theirs[head].sum()) - len(row)
            self.heads += bool(other.any())
            self.other_counts += len(row) != int(theirs[head].sum())


def rows_of(plan, layer):
    return plan.kept[layer * info.kv_heads:(layer + 1) * info.kv_heads]


@torch.no_grad()
def compare(name, plan):
    """A Count for each way to ask kvpress, or kvtrim, for the same."""
    if presses[name] is replayed:
        counts, asked = [], [plan]
        if name.endswith("_in_parts"):  # kvtrim, told to see a part alone
            asked += [other for other in plans
                      if other.policy == name.replace("_in_", "_of_") and other.kept_ratio == plan.kept_ratio]
        for one in asked:
            counts.append(Count())
            for layer, kept in enumerate(replayed(plan)):
                counts[-1].add(rows_of(one, layer), *kept)
        return counts
    counts = [Count() for _ in presses[name]]
    for index in range(info.layers):
        layer, plan.rows = Layer(index), rows_of(plan, index)
        for count, theirs in zip(counts, presses[name]):
            count.add(plan.rows, *theirs(layer, plan))
    return counts


plans = [SimpleNamespace(**plan) for plan in info.plans]
results = []
print("| policy | kept_ratio | rows | differ | ties | more | heads that differ | with other counts | told: differ, ties |")
print("|---|---|---|---|---|---|---|---|---|")
for name in presses:
    for plan in plans:
        if plan.policy != name.partition(",")[0] or (chosen.policies and name not in chosen.policies):
            continue
        first, *told = compare(name, plan)
        print(f"| {name} | {plan.kept_ratio} | {first.rows} | {first.differ} | {first.ties} | {first.more} | {first.heads} | "
              f"{first.other_counts} | {' / '.join(f'{count.differ}, {count.ties}' for count in told)} |", flush=True)
        results.append({"policy": name, "kept_ratio": plan.kept_ratio, "sink_tokens": plan.sink_tokens,
                        "window_tokens": plan.window_tokens, "rows": first.rows, "differ": first.differ, "ties": first.ties,
                        "more": first.more, "heads_that_differ": first.heads, "heads_with_other_counts": first.other_counts,
                        "told": [count.differ for count in told], "told_ties": [count.ties for count in told]})
if chosen.json:
    about = {"date": date.today().isoformat(), "kvpress": version("kvpress"), "torch": version("torch"),
             **{key: value for key, value in vars(info).items() if isinstance(value, (int, str)) and not isinstance(value, bool)}}
    with open(chosen.json, "w", encoding="ascii") as out:
        rows = ",\n".join(map(json.dumps, results))
        out.write(f'{json.dumps(about)[:-1]}, "rows": [\n{rows}\n]}}\n')
