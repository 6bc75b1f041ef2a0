#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Writes data/torch_logits.txt: what transformers on torch makes of 2048 tokens of text with SmolLM2, for tests/torch.cpp.

    python3 -m venv venv && venv/bin/pip install torch==2.15.0 transformers==5.2.0 gguf==0.19.0
    venv/bin/python torch_logits.py ~/.cache/kvtrim/SmolLM2-135M-Instruct.Q4_1.gguf

In doubles, with the rotation's angles too: transformers rounds those to floats, which is 1e-4 radians at position 2000 and changes
logits by up to 4e-3.

A line for each position: the token, then of the logits behind it the largest one's index, the largest, its distance to the second,
log sum exp, and those of four fixed vocabulary entries. The tokens are transformers' own of the text.
"""
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOKENS = 2048
here = os.path.dirname(os.path.abspath(__file__))
folder, name = os.path.split(os.path.abspath(sys.argv[1]))

words = AutoTokenizer.from_pretrained(folder, gguf_file=name)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float64).eval()
THETA, HEAD_DIM = 100000.0, 64  # of the file


class Rotation(torch.nn.Module):
    def forward(self, x, position_ids):
        frequencies = THETA ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
        angles = position_ids[..., None].double() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


model.model.rotary_emb = Rotation()
with open(os.path.join(here, "../data/beagle.txt"), encoding="ascii") as text:
    tokens = words(text.read(16384), add_special_tokens=False)["input_ids"][:TOKENS]
assert len(tokens) == TOKENS

with torch.no_grad():
    logits = model(torch.tensor([tokens])).logits[0].double()
best = logits.topk(2, dim=-1)
sums = logits.logsumexp(dim=-1)
with open(os.path.join(here, "data/torch_logits.txt"), "w", encoding="ascii") as out:
    for t, token in enumerate(tokens):
        some = [(t * 7919 + j * 12289) % logits.shape[1] for j in range(4)]
        numbers = [best.values[t, 0], best.values[t, 0] - best.values[t, 1], sums[t], *(logits[t, v] for v in some)]
        out.write(f"{token} {best.indices[t, 0]} " + " ".join(f"{float(x):.4f}" for x in numbers) + "\n")
