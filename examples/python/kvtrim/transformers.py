# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""kvtrim for transformers' models: queries gathered by hooks, a DynamicCache cut after the prefill, ragged budgets emulated by masks.

    cache = DynamicCache()
    with torch.no_grad(), observe(model, window_tokens=32) as queries:
        forward(model, prompt, cache, 0)
    plans = plan(model, cache, queries, "defensivekv", budget=200, sink_tokens=4)
    if uniform(plans):
        cut(cache, plans)                                   # memory becomes free
        logits = forward(model, tokens, cache, len(prompt))
    else:
        with masked(model, cache, plans):                   # same outputs as a cache of ragged heads, no memory saved
            logits = forward(model, tokens, cache, len(prompt))

For models whose attention has q_proj, o_proj and a rotary embedding (Llama, Mistral, Qwen2, Qwen3, SmolLM, ...), one sequence at a
time, on the CPU, with "sdpa" or "eager" attention and without sliding windows.
"""
from __future__ import annotations

import contextlib
import inspect
import sys
from typing import TYPE_CHECKING, Any, Iterator, Sequence

import torch

from . import _core
from ._core import Layer, Plan, PolicyLike, Replay, gather

if TYPE_CHECKING:
    from typing_extensions import Unpack


def attentions(model: Any) -> list[Any]:
    """The model's attention modules, by layer. Error: TypeError for a model that has none with q_proj and o_proj."""
    found = [m for m in model.modules() if all(hasattr(m, name) for name in ("q_proj", "o_proj", "layer_idx"))]
    if not found:
        raise TypeError(f"{type(model).__name__} has no attention with q_proj and o_proj")
    return sorted(found, key=lambda attention: attention.layer_idx)


def _window_queries(attention: Any, hidden: Any, rotation: tuple[Any, Any], window_tokens: int) -> Any:
    """[q_heads, window or fewer, head_dim], RoPE applied by the model's own function."""
    newest = hidden[:, -window_tokens:]
    queries = attention.q_proj(newest).unflatten(-1, (-1, attention.head_dim))
    if hasattr(attention, "q_norm"):  # Qwen3
        queries = attention.q_norm(queries)
    queries = queries.transpose(1, 2)
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    cos, sin = (part[:, -newest.shape[1]:] for part in rotation)
    return rotate(queries, queries, cos, sin)[0][0].detach()


@contextlib.contextmanager
def _before_attention(modules: Sequence[Any], hook: Any) -> Iterator[None]:
    """Calls hook(attention, hidden states, keyword arguments) before each of them, which may change these arguments."""
    def call(attention: Any, args: Any, kwargs: Any) -> Any:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if hidden.shape[0] != 1:
            raise ValueError(f"one sequence at a time, not {hidden.shape[0]}")
        hook(attention, hidden, kwargs)
        return args, kwargs

    handles = [module.register_forward_pre_hook(call, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def observe(model: Any, window_tokens: int = 32) -> Iterator[dict[int, Any]]:
    """Gathers the newest queries of every layer while the context is open: {layer: [q_heads, window_tokens, head_dim]}, RoPE applied.
    A prompt may be given in chunks."""
    queries: dict[int, Any] = {}

    def gather_queries(attention: Any, hidden: Any, kwargs: Any) -> None:
        newest = _window_queries(attention, hidden, kwargs["position_embeddings"], window_tokens)
        before = queries.get(attention.layer_idx, newest[:, :0])
        queries[attention.layer_idx] = torch.cat([before, newest], dim=1)[:, -window_tokens:]

    with _before_attention(attentions(model), gather_queries):
        yield queries


def layers(model: Any, cache: Any, queries: dict[int, Any], replays: Sequence[Replay] | None = None) -> list[Layer]:
    """The model's layers for kvtrim.plan_layers(): views of the cache, the observed queries, W_O, replays; nothing is copied.
    Error: TypeError for caches that are not transformers' DynamicCache without sliding windows."""
    found = []
    for index, (attention, cached) in enumerate(zip(attentions(model), cache.layers, strict=True)):
        if getattr(cached, "is_sliding", False) or type(cached).__name__ != "DynamicLayer":
            raise TypeError(f"a layer of the cache is a {type(cached).__name__}, not a DynamicLayer")
        wo = attention.o_proj.weight.detach()
        found.append(Layer(keys=cached.keys[0], values=cached.values[0], queries=queries.get(attention.layer_idx),
                           output_projection=wo.unflatten(1, (-1, attention.head_dim)).permute(1, 2, 0),
                           replay=replays[index] if replays else None))
    return found


def replay(model: Any, cache: Any, prompt: Any, lead: Sequence[int] = (), loss: str = "attention_maximum",
           chunk_tokens: int = 512) -> list[Replay]:
    """Feeds the prompt once more behind the cache that it left, in chunks behind the tokens `lead` ("Repeat the previous context
    exactly."), and returns what each layer's cached tokens were wanted for, for plan(). The cache is as before in the end."""
    modules, tokens, prompt = attentions(model), cache.get_seq_length(), torch.as_tensor(prompt)
    replays = [Replay(layer.keys.shape[1], tokens, loss) for layer in cache.layers]
    for part in prompt.split(chunk_tokens):
        fed = torch.cat([torch.as_tensor(lead, dtype=part.dtype), part])
        with observe(model, len(fed)) as queries:
            forward(model, fed, cache, tokens)
        for scores, layer in zip(replays, layers(model, cache, queries)):
            scores.add(layer, scale=modules[0].scaling)
        cache.crop(-len(fed))
    return replays


def plan(model: Any, cache: Any, queries: dict[int, Any], policy: PolicyLike, *, replays: Sequence[Replay] | None = None,
         **request: Unpack[_core.Request]) -> list[Plan]:
    """A plan for each layer of the cache; the request is that of kvtrim.plan(), with the scale of the model's own attention."""
    request.setdefault("scale", attentions(model)[0].scaling)
    return _core.plan_layers(policy, layers(model, cache, queries, replays), **request)


def uniform(plans: Sequence[Plan]) -> bool:
    """Whether all heads of all layers keep equally many rows."""
    return len({int(kept) for p in plans for kept in p.lengths}) == 1


def _gathered(p: Plan, rows: Any) -> Any:
    out = rows.new_empty(1, len(p), int(p.lengths[0]), rows.shape[-1])
    gather(p, rows[0], out.view(-1, rows.shape[-1]))
    return out


def cut(cache: Any, plans: Sequence[Plan]) -> None:
    """Leaves in a DynamicCache what the plans keep, and frees the rest. The next token's position is still the one it would have had:
    forward(model, tokens, cache, tokens seen so far).

    Errors: ValueError for plans that are not uniform (see masked()), Refused for those of another cache; the cache is as it was then.
    """
    if not uniform(plans):
        raise ValueError("heads keep different numbers of rows, which a DynamicCache cannot hold: see masked()")
    kept = [(_gathered(p, layer.keys), _gathered(p, layer.values)) for p, layer in zip(plans, cache.layers, strict=True)]
    for layer, (keys, values) in zip(cache.layers, kept):
        layer.keys, layer.values = keys, values


@contextlib.contextmanager
def masked(model: Any, cache: Any, plans: Sequence[Plan]) -> Iterator[None]:
    """While the context is open, queries do not see rows that the plans drop of the cache as it was when the context was opened. Rows
    that are added later are seen by those behind them. Error: Refused for plans of another cache."""
    tokens = cache.get_seq_length()
    modules = attentions(model)
    dropped = {m.layer_idx: torch.from_numpy(~p.mask(tokens)) for m, p in zip(modules, plans, strict=True)}

    def mask(attention: Any, hidden: Any, kwargs: Any) -> None:
        own = kwargs.get("cache", kwargs.get("past_key_values"))
        before, new = own.get_seq_length(attention.layer_idx), hidden.shape[1]
        rows = dropped[attention.layer_idx]
        never = torch.finfo(hidden.dtype).min
        logits = hidden.new_zeros(len(rows), new, before + new)
        logits[:, :, :tokens].masked_fill_(rows[:, None], never)
        logits[:, :, before:] = torch.full((new, new), never).triu(1)
        kwargs["attention_mask"] = logits.repeat_interleave(attention.num_key_value_groups, dim=0)[None]

    with _before_attention(modules, mask):
        yield


def forward(model: Any, tokens: Any, cache: Any, first_position: int) -> Any:
    """Logits [tokens, vocabulary] of one sequence's next tokens [any number], which are added to the cache; first_position is that of the
    first of them in the text, however many rows the cache still has."""
    ids = torch.as_tensor(tokens).reshape(1, -1)
    positions = torch.arange(first_position, first_position + ids.shape[1])[None]
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # its old name
    return model(input_ids=ids, position_ids=positions, use_cache=True, **{name: cache}).logits[0]
