#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""One row of docs/quality.md's table of running text, measured with transformers in place of kvtrim's own engine.

    ./dev run -p "Who are you?" && pip install './examples/python[gguf]'    # fetches the weights; the package with torch
    python examples/python/measure/running_text.py layer_defensivekv --option safeguard_ratio=0 --keep 0.2 --json rows.json
"""
import argparse
import json
import pathlib
import statistics

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import kvtrim
import kvtrim.transformers as kt

TOKENS, NEXT, WINDOW, SINKS = 1024, 256, 32, 4
TEXT = pathlib.Path(__file__).parents[2] / "model/data/beagle.txt"
FIRST_PARAGRAPHS = 234, 42, 130, 53, 180, 169, 106, 17  # at which ./dev quality begins its samples 1000, 1001, ...

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("policy")
options.add_argument("--option", action="append", default=[], help="NAME=VALUE of the policy")
options.add_argument("--keep", type=float, default=0.2, help="share of the cache")
options.add_argument("--samples", type=int, default=8, choices=range(2, 9))
options.add_argument("--model", type=pathlib.Path, default=pathlib.Path.home() / ".cache/kvtrim/SmolLM2-135M-Instruct.Q4_1.gguf")
options.add_argument("--json", type=pathlib.Path, help="a file of results, to which the row is added")
given = options.parse_args()

tokenizer = AutoTokenizer.from_pretrained(given.model.parent, gguf_file=given.model.name)
model = AutoModelForCausalLM.from_pretrained(given.model.parent, gguf_file=given.model.name, dtype=torch.float32).eval()
LEAD = tokenizer("\n\nRepeat the previous context exactly.\n", add_special_tokens=False)["input_ids"]
paragraphs = [line for line in TEXT.read_text().splitlines() if line]
policy = kvtrim.Policy(given.policy, **dict(option.split("=") for option in given.option))


@torch.no_grad()
def kl_of_sample(at):
    tokens = []
    while len(tokens) < TOKENS + NEXT:
        tokens += tokenizer(paragraphs[at % len(paragraphs)] + "\n", add_special_tokens=False)["input_ids"]
        at += 1
    context, following, cache = tokens[:TOKENS], tokens[TOKENS:TOKENS + NEXT], DynamicCache()
    with kt.observe(model, WINDOW) as queries:
        kt.forward(model, context, cache, 0)
    replays = kt.replay(model, cache, context, LEAD) if kvtrim.Needs.REPLAY in policy.info.needs else None
    plans = kt.plan(model, cache, queries, policy, replays=replays, budget=int(TOKENS * given.keep), sink_tokens=SINKS)
    full = kt.forward(model, following, cache, TOKENS).log_softmax(-1)
    cache.crop(-NEXT)
    with kt.masked(model, cache, plans):  # kt.cut() does as well where kt.uniform(plans)
        less = kt.forward(model, following, cache, TOKENS).log_softmax(-1)
    return (full.exp() * (full - less)).sum(-1).mean().item()


kls = [kl_of_sample(paragraph) for paragraph in FIRST_PARAGRAPHS[:given.samples]]
error = statistics.stdev(kls) / len(kls) ** 0.5
if given.json:
    results = json.loads(given.json.read_text()) if given.json.exists() else {"rows": []}
    results |= {"transformers": transformers.__version__, "torch": torch.__version__, "model": given.model.name, "tokens": TOKENS, "next": NEXT}
    results["rows"].append({"policy": ":".join([given.policy, *given.option]), "kept_ratio": given.keep, "kl_mean": statistics.mean(kls),
                            "kl_standard_error": error, "kl": kls})
    given.json.write_text(json.dumps(results, indent=1) + "\n")
print(f"{policy!r} keeps {given.keep:g}: KL {statistics.mean(kls):.4f} ± {error:.4f} over {len(kls)} samples")
