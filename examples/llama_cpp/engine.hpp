// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A llama.cpp context whose cache kvtrim cuts, on the CPU, through llama.h and ggml.h alone: nothing is patched.
//
//     engine e(model, params);
//     e.decode(prompt);                         // the newest queries are copied as they pass; keys and values stay where they are
//     e.cut({.kept = 512}, [&](kvtrim::cell_scores& all, const kvtrim::llama_layer& l, std::span<const std::int32_t> cells) {
//         return all.add(kvtrim::snapkv(), l.inputs(cells), l.attention, memory);
//     });

#include <kvtrim/adapter/llama_graph.hpp>
#include <kvtrim/compact/edit_cells.hpp>

#include <llama.h>

#include <functional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace llama_example {

using kvtrim::index_t;

inline void refuse_if(bool wrong, std::string_view why) {
    if (wrong) { throw std::runtime_error(std::string(why)); }
}
inline void require(const kvtrim::status& s) {
    refuse_if(!s.ok(), s.what());
}

// Adds the scores of a layer, whose tokens are in these cells.
using add_scores = std::function<kvtrim::status(kvtrim::cell_scores&, const kvtrim::llama_layer&,
                                                std::span<const std::int32_t> cells)>;

struct cut_options {
    index_t kept = 0; // cells of the sequence that stay
    kvtrim::protection protect = {.sink_tokens = 4, .window_tokens = 32};
    kvtrim::head_reduction fold = kvtrim::head_reduction::squares;
    kvtrim::closing close = kvtrim::closing::keep_positions;
    std::set<int> layers = {}; // whose scores count; none: all
    bool moves_cells = true;   // to the front, so that attention becomes shorter
    llama_seq_id sequence = 0;
};

struct cut_report {
    index_t freed = 0; // cells that no sequence uses any more
    int removals = 0, shifts = 0;
};

class engine {
  public:
    // window: newest queries that are kept. Throws std::runtime_error for what llama.cpp cannot do or this example does not.
    engine(llama_model* model, llama_context_params params, index_t window = 32);
    engine(const engine&) = delete;
    engine& operator=(const engine&) = delete;
    ~engine() { llama_free(context_); }

    // Appends tokens to a sequence. Returns false where there are too few cells, or the tokens more than n_batch.
    bool decode(std::span<const llama_token> tokens, llama_seq_id sequence = 0, bool all_logits = false) {
        return decode(tokens, std::vector(tokens.size(), sequence), all_logits);
    }
    // Appends each token to its sequence.
    bool decode(std::span<const llama_token> tokens, std::span<const llama_seq_id> sequences,
                bool all_logits = true);
    // Of the last decode's token i; of the last one for -1.
    [[nodiscard]] std::span<const float> logits(std::int32_t i = -1) const {
        return {llama_get_logits_ith(context_, i), static_cast<std::size_t>(vocabulary_)};
    }

    // Keeps one token set for all layers and heads, by the folded scores of the layers.
    cut_report cut(const cut_options& chosen, const add_scores& add);

    // As llama_memory_seq_rm, _add and _cp. A split cache copies in the next decode: of `to`, before anything else is done with it.
    void remove(llama_seq_id sequence, index_t begin, index_t end = -1);
    void shift(llama_seq_id sequence, const kvtrim::position_shift& by);
    void copy(llama_seq_id from, llama_seq_id to);
    // Saves, removes and restores a sequence: seq_rm leaves holes, and llama.cpp attends up to the last cell in use. Refused between
    // a shift and the next decode.
    void move_cells(llama_seq_id sequence);

    [[nodiscard]] index_t next_position(llama_seq_id sequence = 0) const {
        return llama_memory_seq_pos_max(memory(), sequence) + 1;
    }
    [[nodiscard]] kvtrim::llama_graph& seen() { return seen_; }

    // Asked about each operation of a graph, as llama_graph::see; may write what was computed.
    std::function<bool(ggml_tensor&, bool ask)> on_operation;
    bool observes = true; // else queries are not copied, and no cut may follow

  private:
    static bool see(ggml_tensor* t, bool ask, void* self);
    [[nodiscard]] llama_memory_t memory() const { return llama_get_memory(context_); }
    // What a sequence holds in all caches, or only in that of sliding windows.
    [[nodiscard]] std::vector<std::uint8_t> state(llama_seq_id sequence, llama_state_seq_flags which) const;
    void put_back(const std::vector<std::uint8_t>& state, llama_seq_id sequence, llama_state_seq_flags which);

    kvtrim::llama_graph seen_;
    llama_context* context_ = nullptr;
    std::int32_t vocabulary_;
    index_t sliding_window_; // tokens; 0: none
};

} // namespace llama_example
