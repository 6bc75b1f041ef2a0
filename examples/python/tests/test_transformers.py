# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""The helper for transformers, on a tiny model of random weights; skipped where torch or transformers are not there."""
import pathlib
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import kvtrim
import kvtrim.transformers as kt

PROMPT, WINDOW = 60, 8


def random_model(attention="sdpa", family="Llama"):
    torch.manual_seed(1)
    kind = getattr(transformers, f"{family}Config")
    config = kind(vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
                  head_dim=8, max_position_embeddings=256, sliding_window=None)
    config._attn_implementation = attention
    made = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4)  # attention that tells tokens apart
    return made


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    return random_model(request.param)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def prefilled(model, chunks=(PROMPT,)):
    torch.manual_seed(2)
    prompt = torch.randint(97, (PROMPT,))
    cache, at = transformers.DynamicCache(), 0
    with kt.observe(model, WINDOW) as queries:
        for count in chunks:
            kt.forward(model, prompt[at:at + count], cache, at)
            at += count
    return prompt, cache, queries


def rewind(cache):
    cache.crop(PROMPT - cache.get_seq_length())


def following(count=5):
    torch.manual_seed(3)
    return torch.randint(97, (count,))


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_observed_queries_are_those_that_attention_uses(family, monkeypatch):
    model, seen = random_model(family=family), []
    module = sys.modules[type(kt.attentions(model)[0]).__module__]
    original = module.ALL_ATTENTION_FUNCTIONS.get_interface

    def get_interface(*args, **kwargs):
        attend = original(*args, **kwargs)
        return lambda attention, query, *rest, **more: (seen.append(query), attend(attention, query, *rest, **more))[1]

    monkeypatch.setattr(module.ALL_ATTENTION_FUNCTIONS, "get_interface", get_interface)
    _, _, queries = prefilled(model)
    assert len(seen) == len(queries) == 3
    for layer, used in enumerate(seen):
        torch.testing.assert_close(queries[layer], used[0, :, -WINDOW:])


def test_a_prompt_in_chunks_gives_the_same_window(model):
    _, _, whole = prefilled(model)
    _, _, parts = prefilled(model, (53, 4, 3))
    for layer in whole:
        torch.testing.assert_close(parts[layer], whole[layer], rtol=1e-4, atol=1e-5)


def test_layers_are_views_of_the_model_and_its_cache(model):
    _, cache, queries = prefilled(model)
    for attention, cached, layer in zip(kt.attentions(model), cache.layers, kt.layers(model, cache, queries)):
        assert layer.keys.data_ptr() == cached.keys.data_ptr() == kvtrim.Rows(layer.keys).view.data
        assert kvtrim.Rows(layer.output_projection).view.data == attention.o_proj.weight.data_ptr()
        head = torch.zeros(6, 8)
        head[2, 5] = 1
        torch.testing.assert_close(layer.output_projection[2, 5], attention.o_proj(head.flatten()))


def test_a_uniform_cut_gives_the_outputs_of_a_mask(model):
    prompt, cache, queries = prefilled(model)
    plans = kt.plan(model, cache, queries, "snapkv", budget=20, sink_tokens=2)
    assert kt.uniform(plans) and not np.array_equal(plans[0][0], plans[0][1])
    full = kt.forward(model, following(), cache, PROMPT)
    rewind(cache)
    with kt.masked(model, cache, plans):
        first = kt.forward(model, following(), cache, PROMPT)
        second = kt.forward(model, following(1), cache, PROMPT + 5)
    rewind(cache)
    before = [layer.keys.clone() for layer in cache.layers]
    kt.cut(cache, plans)
    assert cache.get_seq_length() == 20
    for plan, layer, old in zip(plans, cache.layers, before):
        for head, kept in enumerate(plan):
            assert torch.equal(layer.keys[0, head], old[0, head, kept.tolist()])
        assert layer.keys.untyped_storage().nbytes() == 2 * 20 * 8 * 4  # the rest is freed
    torch.testing.assert_close(kt.forward(model, following(), cache, PROMPT), first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kt.forward(model, following(1), cache, PROMPT + 5), second, rtol=1e-4, atol=1e-4)
    assert (first - full).abs().max() > 1e-2  # and of another cache than the full one


def test_logits_are_scaled_as_the_model_does(model):
    _, cache, queries = prefilled(model)
    plain = kt.plan(model, cache, queries, "snapkv", budget=20)
    for attention in kt.attentions(model):
        attention.scaling *= 4
    scaled = kt.plan(model, cache, queries, "snapkv", budget=20)
    alone = kvtrim.plan("snapkv", cache.layers[0].keys[0], queries[0], budget=20, scale=4 / 8**0.5)
    np.testing.assert_array_equal(scaled[0].indices, alone.indices)
    assert not np.array_equal(scaled[0].indices, plain[0].indices)


@pytest.mark.parametrize("loss", kvtrim.Replay.LOSSES)
def test_a_replay_scores_what_it_reads_of_the_cache(model, loss):
    prompt, cache, queries = prefilled(model)
    replays = kt.replay(model, cache, prompt, lead=[1, 2, 3], loss=loss, chunk_tokens=40)
    assert cache.get_seq_length() == PROMPT
    plans = kt.plan(model, cache, queries, "layer_replay", replays=replays, budget=20)
    assert sum(len(plan.indices) for plan in plans) == 3 * 2 * 20
    if loss != "attention_maximum" or model.config._attn_implementation != "eager":
        return
    expected = torch.zeros(3, 2, PROMPT)
    for part in prompt.split(40):
        fed = torch.cat([torch.tensor([1, 2, 3]), part])[None]
        positions = torch.arange(PROMPT, PROMPT + fed.shape[1])[None]
        weights = model(fed, position_ids=positions, past_key_values=cache, output_attentions=True).attentions
        cache.crop(-fed.shape[1])
        for layer, of_layer in enumerate(weights):
            largest = of_layer[0, :, :, :PROMPT].amax(1).unflatten(0, (2, 3)).amax(1)
            expected[layer] = torch.maximum(expected[layer], largest)
    for layer, scores in enumerate(replays):
        for head in range(2):
            np.testing.assert_allclose(scores.scores(head, PROMPT), expected[layer, head], rtol=1e-3, atol=1e-6)


def test_masks_hide_of_each_head_what_its_plan_drops(model):
    _, cache, queries = prefilled(model)
    plans = kt.plan(model, cache, queries, kvtrim.Policy("layer_defensivekv", safeguard_ratio=0), budget=20, sink_tokens=2)
    assert not kt.uniform(plans) and sum(len(plan.indices) for plan in plans) == 3 * 2 * 20
    with pytest.raises(ValueError, match="masked"):
        kt.cut(cache, plans)
    with kt.masked(model, cache, plans):
        logits = kt.forward(model, following(), cache, PROMPT)
    rewind(cache)
    for plan, layer in zip(plans, cache.layers):
        for head, row in enumerate(plan.mask(PROMPT)):
            hidden = torch.from_numpy(~row)
            layer.keys[0, head, hidden] = torch.nan_to_num(layer.keys[0, head, hidden] * 0 + 7)
            layer.values[0, head, hidden] = 1e6
    with kt.masked(model, cache, plans):
        torch.testing.assert_close(kt.forward(model, following(), cache, PROMPT), logits)
    rewind(cache)
    assert (kt.forward(model, following(), cache, PROMPT) - logits).abs().max() > 1e-2  # hooks are gone


def test_a_mask_that_hides_nothing_changes_nothing(model):
    _, cache, _ = prefilled(model)
    everything = [kvtrim.Plan([0, PROMPT, 2 * PROMPT], np.tile(np.arange(PROMPT), 2))] * 3
    full = kt.forward(model, following(), cache, PROMPT)
    rewind(cache)
    with kt.masked(model, cache, everything):
        torch.testing.assert_close(kt.forward(model, following(), cache, PROMPT), full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torch_tensors_of_16_bits_are_views(dtype):
    keys = torch.randn(2, 50, 16).to(dtype)
    queries = torch.randn(4, 8, 16).to(dtype)
    plan = kvtrim.plan("snapkv", keys, queries, budget=20)
    assert kvtrim.Rows(keys).view.data == keys.data_ptr()
    again = kvtrim.plan("snapkv", keys.float(), queries.float(), budget=20)
    np.testing.assert_array_equal(plan.indices, again.indices)
    gathered = kvtrim.gather(plan, keys, torch.empty(40, 16, dtype=dtype))
    assert torch.equal(gathered, torch.cat([keys[head, kept.tolist()] for head, kept in enumerate(plan)]))
    turned = keys.transpose(0, 1).contiguous().transpose(0, 1)
    kvtrim.compact_in_place(plan, turned)
    assert all(torch.equal(turned[head, :20], keys[head, kept.tolist()]) for head, kept in enumerate(plan))


def test_a_plan_for_another_cache_leaves_the_cache_as_it_is(model):
    _, cache, queries = prefilled(model)
    plans = kt.plan(model, cache, queries, "snapkv", budget=20)
    plans[2] = kvtrim.Plan([0, 20, 40], np.tile(np.arange(20) + PROMPT - 10, 2))
    before = [layer.keys for layer in cache.layers]
    with pytest.raises(kvtrim.Refused):
        kt.cut(cache, plans)
    assert all(layer.keys is old for layer, old in zip(cache.layers, before))
    with pytest.raises(kvtrim.Refused), kt.masked(model, cache, plans):
        pass


def test_what_the_helper_cannot_do_is_said(model):
    with pytest.raises(TypeError, match="q_proj"):
        kt.attentions(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="one sequence"), kt.observe(model):
        model(torch.zeros(2, 4, dtype=torch.long))
    cache = transformers.DynamicCache(config=transformers.MistralConfig(sliding_window=16, num_hidden_layers=3))
    kt.forward(model, [1, 2, 3], cache, 0)
    with pytest.raises(TypeError, match="DynamicSlidingWindowLayer"):
        kt.layers(model, cache, {})
