#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""The references' formulas in plain torch, written for this benchmark: what their users run on a CPU.

  torch_reference.py --serve PREFIX   rows for kvtrim_bench, one repetition each time it asks (torch.cpp)
  torch_reference.py --check FOLDER   compares with kvtrim on the layer that kvtrim_bench --write-reference wrote

One thread, random data of the same shape. Formulas: SnapKV, Ada-KV and CriticalKV as kvpress has them, keys repeated
for the query heads; DefensiveKV's worst case as the paper has it. Torch's own best form stands beside, where the plain
one wastes memory: norms in tiles of rows, rows picked by index_select.
"""
import array
import math
import os
import pathlib
import sys
import time

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import torch
import torch.nn.functional as F

Q_HEADS, KV_HEADS, HEAD_DIM, HIDDEN, WINDOW, KERNEL = 32, 8, 128, 4096, 32, 5
SAFEGUARD = 0.2


# ---- Formulas -----------------------------------------------------------------------------------

def window_weights(k, q):
    """Attention of the window's queries q [Hq, w, d] to the tokens before it, keys k [Hkv, n, d]: [Hq, w, n - w]."""
    group, w, n = q.shape[0] // k.shape[0], q.shape[1], k.shape[1]
    logits = q @ k.repeat_interleave(group, dim=0).transpose(1, 2) / math.sqrt(q.shape[2])
    logits[:, :, n - w:] += torch.triu(torch.full((w, w), float("-inf"), dtype=q.dtype), diagonal=1)
    return torch.softmax(logits, dim=-1, dtype=torch.float32).to(q.dtype)[:, :, :n - w]


def pooled(x):
    return F.avg_pool1d(x, kernel_size=KERNEL, padding=KERNEL // 2, stride=1)


def snapkv(k, q):
    scores = pooled(window_weights(k, q).mean(dim=1))
    return scores.view(k.shape[0], -1, scores.shape[1]).mean(dim=1)


def defensive(k, q):
    a = window_weights(k, q)
    r = pooled(a)
    r *= a.sum(dim=-1, keepdim=True) / r.sum(dim=-1, keepdim=True)
    worst = r.view(k.shape[0], -1, r.shape[2]).amax(dim=1)
    return torch.maximum(worst, worst.mean(dim=-1, keepdim=True))


def norms(v, w_o):
    """|| v W_O ||_1, mean over the group: v [Hkv, n, d], w_o [Hq, d, hidden] -> [Hkv, n]."""
    group = w_o.shape[0] // v.shape[0]
    each = [torch.linalg.vector_norm(v[h // group] @ w_o[h], ord=1, dim=-1) for h in range(w_o.shape[0])]
    return torch.stack(each).view(v.shape[0], group, -1).mean(dim=1)


def tiled_norms(v, w_o, tile=512):
    return torch.cat([norms(v[:, t:t + tile], w_o) for t in range(0, v.shape[1], tile)], dim=1)


def adaptive(scores, kept_per_head):
    """Tokens that each head keeps, by Ada-KV: scores [Hkv, n] -> [Hkv]."""
    heads, n = scores.shape
    safe = scores.topk(int(kept_per_head * SAFEGUARD), dim=-1).indices
    scores = scores.scatter(-1, safe, torch.finfo(scores.dtype).max)
    pruned = (-scores.flatten()).topk(heads * (n - kept_per_head)).indices
    return n - torch.bincount(pruned // n, minlength=heads)


def gather(k, kept):
    return k.gather(1, kept.unsqueeze(-1).expand(-1, -1, k.shape[2]))


def index_select(k, kept):
    return [k[h].index_select(0, kept[h]) for h in range(k.shape[0])]


# ---- Rows ---------------------------------------------------------------------------------------

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
cache = {}


def made_once(key, make):
    if key not in cache:
        cache[key] = make()
    return cache[key]


def random(name, dtype, *shape):
    return made_once((name, dtype, shape), lambda: (torch.rand(*shape) - 0.5).to(DTYPES[dtype]))


def keys(dtype, n):
    return random("k", dtype, KV_HEADS, n, HEAD_DIM)


def attention_like(n):
    return made_once(("scores", n), lambda: torch.rand(KV_HEADS, n) ** 8)


def kept_rows(n):
    return made_once(("kept", n), lambda: attention_like(n).topk(n // 5, dim=-1).indices.sort(dim=-1).values)


def rows(prefix):
    """(name, row of ours, note, share of the work, function)."""
    for n in (1024, 2048):  # a layer of SmolLM2-135M
        name = f"score_f32/small_layer_snapkv/tokens:{n}"
        yield name, name, "", 1, lambda n=n: snapkv(random("k", "f32", 3, n, 64), random("q", "f32", 9, WINDOW, 64))
    for n in (8192, 32768, 131072):
        for dtype in DTYPES:
            end, ours = f"tokens:{n}", f"tokens:{n}/threads:1"
            q = lambda d=dtype: random("q", d, Q_HEADS, WINDOW, HEAD_DIM)
            yield f"score_{dtype}/snapkv/{end}", f"score_{dtype}/snapkv/{ours}", "", 1, \
                lambda d=dtype, n=n, q=q: snapkv(keys(d, n), q())
            yield f"score_{dtype}/defensive/{end}", f"score_{dtype}/defensive/{ours}", "", 1, \
                lambda d=dtype, n=n, q=q: defensive(keys(d, n), q())
            yield f"compact/gather_{dtype}/{end}", f"compact/gather_{dtype}/{end}", "", 1, \
                lambda d=dtype, n=n: gather(keys(d, n), kept_rows(n))
            yield f"compact/index_select_{dtype}/{end}", f"compact/gather_{dtype}/{end}", "", 1, \
                lambda d=dtype, n=n: index_select(keys(d, n), kept_rows(n))
        yield f"allocate/adaptive/tokens:{n}", f"allocate/adaptive/tokens:{n}", "", 1, \
            lambda n=n: adaptive(attention_like(n), n // 5)
        yield f"select/topk/tokens:{n}", f"plan/given_scores_uniform/tokens:{n}", "", 1, \
            lambda n=n: attention_like(n).topk(n // 5, dim=-1)
    if prefix != "torch":
        return
    heads, n = 4, 32768  # one KV head of eight: the cost is linear in heads
    for dtype in DTYPES:
        v = lambda d=dtype: random("v", d, 1, n, HEAD_DIM)
        w_o = lambda d=dtype: random("w", d, heads, HEAD_DIM, HIDDEN)
        note = f"scaled from {heads} of {Q_HEADS} query heads"
        for form, f in (("exact_l1", norms), ("exact_l1_tiled", tiled_norms)):
            yield f"norm/{form}_{dtype}/tokens:{n}", f"norm/exact_l1_{dtype}/tokens:{n}/threads:1", note, \
                heads / Q_HEADS, lambda f=f, v=v, w_o=w_o: f(v(), w_o())


def peak_bytes():
    with open("/proc/self/status") as status:
        return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in status if line.startswith("Vm")}


def extra_memory(f):
    """Peak memory of a call beyond what is there before it."""
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = peak_bytes()["VmRSS"]
    f()
    return max(0, peak_bytes()["VmHWM"] - before)


def serve(prefix):
    offered = {f"{prefix}/{name}": (share, f) for name, _, _, share, f in rows(prefix)}
    for name, ours, note, _, _ in rows(prefix):
        print(f"{prefix}/{name}\t{ours}\t{note}", flush=True)
    print(flush=True)
    memory = {}
    for line in sys.stdin:
        name = line.strip()
        share, f = offered[name]
        if name not in memory:
            f()  # makes its data
            memory[name] = extra_memory(f)
        start = time.perf_counter()
        f()
        print((time.perf_counter() - start) / share, memory[name], flush=True)


# ---- Check --------------------------------------------------------------------------------------

def check(folder):
    def read(name, *shape):
        values = array.array("f")
        values.frombytes((pathlib.Path(folder) / f"{name}.bin").read_bytes())
        return torch.tensor(values).view(*shape)

    n = len((pathlib.Path(folder) / "k.bin").read_bytes()) // (4 * KV_HEADS * HEAD_DIM)
    k, v = read("k", KV_HEADS, n, HEAD_DIM), read("v", KV_HEADS, n, HEAD_DIM)
    q = read("q", Q_HEADS, WINDOW, HEAD_DIM)
    w_o = read("w_o", Q_HEADS, HEAD_DIM, HIDDEN)
    scores, kept = read("given", KV_HEADS, n), read("kept", KV_HEADS, n // 5).long()
    pairs = {
        "snapkv": (snapkv(k, q), read("snapkv", KV_HEADS, -1)),
        "defensive": (defensive(k, q), read("defensive", KV_HEADS, -1)),
        "norms": (norms(v, w_o), read("norms", KV_HEADS, n)),
        "tiled norms": (tiled_norms(v, w_o, 96), read("norms", KV_HEADS, n)),
        "adaptive": (adaptive(scores, n // 5), read("budgets", KV_HEADS)),
        "topk": (scores.topk(n // 5, dim=-1).indices.sort(dim=-1).values, kept),
        "gather": (gather(k, kept), read("gathered", KV_HEADS, n // 5, HEAD_DIM)),
        "index_select": (torch.stack(index_select(k, kept)), read("gathered", KV_HEADS, n // 5, HEAD_DIM)),
    }
    worst = 0.0
    for name, (torchs, kvtrims) in pairs.items():
        difference = ((torchs - kvtrims).abs().max() / kvtrims.abs().max()).item()
        print(f"{name:14} largest difference {difference:.1e} of the largest value")
        worst = max(worst, difference)
    sys.exit(0 if worst < 1e-5 else "torch and kvtrim differ")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(1)
    with torch.no_grad():
        {"--serve": serve, "--check": check}[sys.argv[1]](sys.argv[2])
