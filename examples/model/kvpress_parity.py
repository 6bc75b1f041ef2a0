#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Kept tokens of kvtrim and of kvpress on one prompt of a real model: rows that differ, policy by policy.

    python3 -m venv venv && venv/bin/pip install kvpress==0.5.5 torch==2.15.0
    ./dev quality --dump FOLDER --tokens 2048 --sinks 0 --window 32 --keep 0.5,0.2,0.1 \\
        --policies snapkv,ada_snapkv,criticalkv,ada_criticalkv,tova,key_diff,key_norm,lagkv,pyramidkv
    venv/bin/python examples/model/kvpress_parity.py FOLDER [--json FILE] [POLICY ...]

Both kvpress and kvtrim keep the window in every budget; "aligned" is kvpress told to leave it out of its safeguard (ada_*) and of its
first pass (*criticalkv), as kvtrim does.

kvpress's own code scores and selects; it is given the model's keys, values, W_O and queries before their rotation. Presses that
protect no window get kvtrim's: infinite scores. A row is one token of one (layer, KV head). Of the rows that differ, "ties" are those
whose kvpress score is within 1e-5, relatively, of the lowest score that kvpress keeps in the row's competition: sums in another order.
"""
import argparse
import json
from datetime import date
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import torch
from kvpress import (AdaKVPress, CriticalAdaKVPress, CriticalKVPress, ExpectedAttentionPress, KeyDiffPress, KnormPress,
                     LagKVPress, PyramidKVPress, SnapKVPress, TOVAPress)

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("folder")
arguments.add_argument("policies", nargs="*", metavar="POLICY")
arguments.add_argument("--json", help="write all results to this file")
chosen = arguments.parse_args()
folder = chosen.folder
info = SimpleNamespace(**json.load(open(f"{folder}/plans.json", encoding="ascii")))
sinks, window, n, d = info.sink_tokens, info.window_tokens, info.tokens, info.head_dim


def rotation(first, count):
    angles = np.outer(np.arange(first, first + count), info.frequencies)
    angles = np.concatenate([angles, angles], axis=1)
    return torch.tensor(np.cos(angles), dtype=torch.float32)[None], torch.tensor(np.sin(angles), dtype=torch.float32)[None]


class Attention(torch.nn.Module):
    """What presses ask of a layer's attention; its hidden states are the queries themselves."""

    def __init__(self, layer, wo):
        super().__init__()
        self.config = SimpleNamespace(num_attention_heads=info.q_heads, num_key_value_heads=info.kv_heads, head_dim=d,
                                      hidden_size=info.d_model, num_hidden_layers=info.layers, _attn_implementation="sdpa")
        self.head_dim, self.num_key_value_groups, self.layer_idx = d, info.q_heads // info.kv_heads, layer
        self.q_proj = torch.nn.Identity()
        self.o_proj = torch.nn.Linear(info.q_heads * d, info.d_model, bias=False)
        self.o_proj.weight.data = wo
        self.rotary_emb = lambda x, positions: rotation(int(positions[0, 0]), positions.shape[1])


def read(layer):
    floats = torch.from_numpy(np.fromfile(f"{folder}/layer_{layer}.f32", dtype=np.float32))
    parts = [(info.q_heads, n, d), (info.kv_heads, n, d), (info.kv_heads, n, d), (info.d_model, info.q_heads * d)]
    tensors = []
    for shape in parts:
        size = int(np.prod(shape))
        tensors.append(floats[:size].view(shape))
        floats = floats[size:]
    queries, keys, values, wo = tensors
    return queries.transpose(0, 1).reshape(1, n, -1), keys[None], values[None], Attention(layer, wo)


class HalfWithoutWindow:
    """A factor for budgets: the window, and half of the rest."""

    def __rmul__(self, budgets):
        return window + (budgets - window) // 2


def make(policy, ratio, count, aligned):
    snap = SnapKVPress(ratio, window, 5)
    alpha, first = 0.2, 0.5
    if aligned:  # so that their counts, rounded down, are those without the window
        alpha = (window + int((count - window) * alpha) + 0.5) / count
        first = (window + int((count - window) * first) + 0.5) / ((1 - ratio) * n)
    return {"snapkv": lambda: snap, "ada_snapkv": lambda: AdaKVPress(snap, alpha),
            "criticalkv": lambda: CriticalKVPress(snap, first_stage_ratio=first),
            "ada_criticalkv": lambda: CriticalAdaKVPress(snap, alpha, first_stage_ratio=HalfWithoutWindow() if aligned else 0.5),
            "tova": lambda: TOVAPress(ratio),
            "key_diff": lambda: KeyDiffPress(ratio), "key_norm": lambda: KnormPress(ratio),
            "lagkv": lambda: LagKVPress(ratio, n_sink=sinks), "pyramidkv": lambda: PyramidKVPress(ratio, window, 5),
            "expected_attention": lambda: ExpectedAttentionPress(ratio, n_sink=sinks)}[policy]()


def protected(scores):
    scores = scores.clone()
    scores[..., :sinks] = torch.inf
    scores[..., n - window:] = torch.inf
    return scores


@torch.no_grad()
def kept_by_kvpress(press, policy, count, queries, keys, values, module):
    """Kept [kv_heads, n], and how far each score is from the lowest kept one of its competition, relatively."""
    args = (module, queries, keys, values, None, {"position_embeddings": rotation(0, n)})
    if policy.startswith("ada_"):
        press.compress(*args)
        _, heads, tokens = module.masked_key_indices
        kept = torch.ones(info.kv_heads, n, dtype=torch.bool)
        kept[heads, tokens] = False
        scores = press.press.score(*args)[0]
        lowest = scores[kept].min()
    else:
        scores = protected(press.score(*args))[0]
        if policy == "pyramidkv":
            count = press.get_layer_budget(module, n)
        kept = torch.zeros(info.kv_heads, n, dtype=torch.bool)
        kept.scatter_(1, scores.topk(count, dim=-1).indices, True)
        lowest = torch.where(kept, scores, torch.inf).min(dim=1, keepdim=True).values
    return kept, ((scores - lowest).abs() / lowest.abs())


def compare(plan, aligned):
    """Rows, those that differ, of these ties, (layer, head)s with any, and those whose counts differ."""
    press = make(plan["policy"], 1 - plan["kept_ratio"], int(n * plan["kept_ratio"] + 1e-9), aligned)
    total = differ = ties = heads = counts = 0
    for layer in range(info.layers):
        queries, keys, values, module = read(layer)
        rows = plan["kept"][layer * info.kv_heads:(layer + 1) * info.kv_heads]
        theirs, distance = kept_by_kvpress(press, plan["policy"], len(rows[0]), queries, keys, values, module)
        for head, row in enumerate(rows):
            ours = torch.zeros(n, dtype=torch.bool)
            ours[row] = True
            other = ours & ~theirs[head]  # what kvtrim keeps and kvpress does not
            total += len(row)
            differ += int(other.sum())
            ties += int((distance[head][other] < 1e-5).sum())
            heads += bool(other.any())
            counts += len(row) != int(theirs[head].sum())
    return total, differ, ties, heads, counts


columns = ["policy", "kept_ratio", "rows", "differ", "ties", "heads_that_differ", "heads_with_other_counts", "differ_aligned", "ties_aligned"]
results = []
print("| " + " | ".join(columns) + " |")
print("|" + "---|" * len(columns))
for plan in info.plans:
    if chosen.policies and plan["policy"] not in chosen.policies:
        continue
    aligned = compare(plan, True)[1:3] if plan["policy"] in ("ada_snapkv", "criticalkv", "ada_criticalkv") else (None, None)
    cells = [plan["policy"], plan["kept_ratio"], *compare(plan, False), *aligned]
    print("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |", flush=True)
    results.append({key: cell for key, cell in zip(columns, cells) if cell is not None})
if chosen.json:
    about = {"date": date.today().isoformat(), "kvpress": version("kvpress"), "torch": version("torch"),
             **{key: value for key, value in vars(info).items() if isinstance(value, (int, str)) and not isinstance(value, bool)}}
    with open(chosen.json, "w", encoding="ascii") as out:
        rows = ",\n".join(map(json.dumps, results))
        out.write(f'{json.dumps(about)[:-1]}, "rows": [\n{rows}\n]}}\n')
