// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "engine.hpp"

#include <algorithm>

namespace llama_example {
namespace {

index_t streams_of(const llama_context_params& p) {
    return p.kv_unified ? 1 : std::max<index_t>(p.n_seq_max, 1);
}
index_t cells_of(const llama_context_params& p) {
    return GGML_PAD(p.n_ctx / streams_of(p), 256);
}

} // namespace

engine::engine(llama_model* model, llama_context_params params, index_t window)
    : seen_(window, streams_of(params), cells_of(params)),
      vocabulary_(llama_vocab_n_tokens(llama_model_get_vocab(model))),
      sliding_window_(llama_model_n_swa(model)) {
    refuse_if(llama_model_is_recurrent(model) || llama_model_is_hybrid(model),
              "recurrent memory has no tokens that could be removed");
    if (sliding_window_ > 0) {
        params.swa_full = false;
        const index_t sequences = params.kv_unified ? std::max<index_t>(params.n_seq_max, 1) : 1;
        const index_t least = GGML_PAD(sliding_window_ * sequences + params.n_ubatch, 256) + 256;
        refuse_if(cells_of(params) < least,
                  std::string("cells needed beside sliding windows: ").append(std::to_string(least)));
    }
    params.cb_eval = see;
    params.cb_eval_user_data = this;
    context_ = llama_init_from_model(model, params);
    refuse_if(context_ == nullptr, "llama.cpp makes no context of these parameters");
    refuse_if(llama_n_ctx_seq(context_) != seen_.cells(0).cells(), "llama.cpp made another number of cells");
}

bool engine::see(ggml_tensor* t, bool ask, void* self) {
    engine& e = *static_cast<engine*>(self);
    const bool is_wanted = e.on_operation && e.on_operation(*t, ask);
    return e.seen_.see(*t, ask) || is_wanted;
}

bool engine::decode(std::span<const llama_token> tokens, std::span<const llama_seq_id> sequences,
                    bool all_logits) {
    // llama_decode would abort on too many.
    if (tokens.empty() || tokens.size() > llama_n_batch(context_)) { return tokens.empty(); }
    std::map<llama_seq_id, index_t> next;
    std::vector<kvtrim::llama_token_place> places;
    llama_batch batch = llama_batch_init(static_cast<std::int32_t>(tokens.size()), 0, 1);
    for (const llama_seq_id s : sequences) {
        const std::int32_t i = batch.n_tokens++;
        places.push_back({s, static_cast<llama_pos>(next.try_emplace(s, next_position(s)).first->second++)});
        batch.token[i] = tokens[places.size() - 1];
        batch.pos[i] = places.back().position;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = s;
        batch.logits[i] = all_logits || places.size() == tokens.size();
    }
    seen_.begin(places, observes);
    const int answer = llama_decode(context_, batch);
    llama_batch_free(batch);
    require(seen_.validate());
    refuse_if(answer != 0 && answer != 1, "llama_decode failed");
    return answer == 0;
}

cut_report engine::cut(const cut_options& chosen, const add_scores& add) {
    const auto& layers = seen_.layers(chosen.sequence);
    refuse_if(layers.empty(), "no layer was seen that attends to all tokens");
    const auto was_seen = [&](int layer) { return layers.contains(layer); };
    refuse_if(!std::ranges::all_of(chosen.layers, was_seen), "a layer to be scored was not seen");
    refuse_if(chosen.close != kvtrim::closing::keep_positions &&
                  !(llama_memory_can_shift(memory()) && seen_.can_shift(chosen.sequence)),
              "llama.cpp cannot shift the positions of this cache: keep them");
    kvtrim::cell_mirror& mirror = seen_.cells(chosen.sequence);
    std::vector<std::int32_t> room(static_cast<std::size_t>(mirror.cells())), positions;
    kvtrim::cell_list list;
    require(mirror.list(chosen.sequence, room, list));
    for (const auto c : list.cells) { positions.push_back(mirror.positions()[static_cast<std::size_t>(c)]); }

    const kvtrim::cell_scores::request asked{std::ssize(positions), chosen.kept, chosen.protect, chosen.fold};
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(asked.workspace_bytes());
    kvtrim::cell_scores all(asked, scratch);
    for (const auto& [number, layer] : layers) {
        if (chosen.layers.empty() || chosen.layers.contains(number)) { require(add(all, layer, list.cells)); }
    }
    kvtrim::keep_plan plan;
    require(all.plan(plan));

    cut_report report{.freed = -mirror.free_cells()};
    std::vector<kvtrim::position_shift> shifts;
    // seq_rm takes tokens from the cache of sliding windows too, which loses none by a cut.
    std::vector<std::uint8_t> windows;
    if (seen_.has_windows()) { windows = state(chosen.sequence, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY); }
    require(kvtrim::edit_cells(
        plan.row(0), positions, {.close = chosen.close},
        [&](kvtrim::token_range r) { remove(chosen.sequence, r.begin, r.end), ++report.removals; },
        [&](const kvtrim::position_shift& by) { shifts.push_back(by), ++report.shifts; }));
    if (chosen.moves_cells) { move_cells(chosen.sequence); }
    if (!windows.empty()) { put_back(windows, chosen.sequence, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY); }
    // Last: llama.cpp turns shifted keys in the next decode, and would save them unturned.
    for (const kvtrim::position_shift& by : shifts) { shift(chosen.sequence, by); }
    report.freed += mirror.free_cells();
    return report;
}

void engine::remove(llama_seq_id sequence, index_t begin, index_t end) {
    const index_t oldest =
        llama_memory_seq_pos_min(memory(), sequence); // in the cache of windows, if there is one
    refuse_if(seen_.has_windows() && end < 0 && begin > 0 &&
                  oldest > std::max<index_t>(0, begin - sliding_window_ + 1),
              "tokens that the sliding window before this position needs are gone");
    refuse_if(
        !llama_memory_seq_rm(memory(), sequence, static_cast<llama_pos>(begin), static_cast<llama_pos>(end)),
        "llama.cpp cannot remove a part of this sequence");
    require(seen_.cells(sequence).remove(sequence, begin, end));
}

void engine::shift(llama_seq_id sequence, const kvtrim::position_shift& by) {
    llama_memory_seq_add(memory(), sequence, static_cast<llama_pos>(by.begin), static_cast<llama_pos>(by.end),
                         static_cast<llama_pos>(by.delta));
    require(seen_.cells(sequence).shift(sequence, by.begin, by.end, by.delta));
}

void engine::copy(llama_seq_id from, llama_seq_id to) {
    require(seen_.copy(from, to));
    llama_memory_seq_cp(memory(), from, to, -1, -1);
}

void engine::move_cells(llama_seq_id sequence) {
    kvtrim::cell_mirror moved = seen_.cells(sequence);
    require(moved.restore(sequence)); // says whether there is room
    const auto all = state(sequence, LLAMA_STATE_SEQ_FLAGS_NONE);
    llama_memory_seq_rm(memory(), sequence, -1, -1);
    put_back(all, sequence, LLAMA_STATE_SEQ_FLAGS_NONE);
    seen_.cells(sequence) = std::move(moved);
}

std::vector<std::uint8_t> engine::state(llama_seq_id sequence, llama_state_seq_flags which) const {
    std::vector<std::uint8_t> saved(llama_state_seq_get_size_ext(context_, sequence, which));
    saved.resize(llama_state_seq_get_data_ext(context_, saved.data(), saved.size(), sequence, which));
    return saved;
}

void engine::put_back(const std::vector<std::uint8_t>& state, llama_seq_id sequence,
                      llama_state_seq_flags which) {
    refuse_if(llama_state_seq_set_data_ext(context_, state.data(), state.size(), sequence, which) == 0,
              "llama.cpp did not restore the sequence");
}

} // namespace llama_example
