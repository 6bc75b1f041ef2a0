// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What a program that runs llama.cpp cannot ask of it: where the cache of each layer lies, the newest queries, which cell holds
// what. Seen as llama_decode's graphs pass, through llama_context_params::cb_eval; nothing of llama.cpp is patched or included.
//
//     kvtrim::llama_graph seen(window, streams, cells);              // streams: 1 if the cache is unified, else sequences
//     params.cb_eval = kvtrim::llama_graph::callback, params.cb_eval_user_data = &seen;
//     seen.begin(sequence, position);                                // before each llama_decode, of one sequence's next tokens
//     ... llama_decode(context, batch) ...
//     s = seen.validate();                                           // whether all of it could be read
//     for (const auto& [number, layer] : seen.layers()) { all.add(policy, layer.inputs(list.cells), layer.attention, memory); }
//     seen.cells(sequence).remove(sequence, begin, end);             // beside each llama_memory_seq_rm (cache/cell_mirror.hpp)
//
// Keys and values are viewed where they lie, in any type, V also transposed (no flash attention); queries are copied. Scores
// need the newest `window` queries and those of tokens that are in the cache, so nothing may be decoded unseen before a cut.
// Known by what llama.cpp names its tensors: cache_k_l0, cache_v_l0, kq_soft_max-0, blk.0.attn_output.weight, attn_inp_v_rot
// (checked with the release that ./dev llama builds). Tensors must be in memory of the CPU.
// Not seen, and said by validate(): ALiBi; capped logits without flash attention; more than one sequence in a graph.
// Sliding-window layers have a second cache, of few cells, and llama.cpp names neither. They are told apart by that, so make the
// context with swa_full = false and more cells than window and micro-batch; they are not in layers(), and not mirrored. seq_rm
// takes from both caches: save and put back what the window held (LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) around a cut.
// Layers that read another one's cache (Gemma 3n) add no queries to it. Recurrent layers have no cells: refuse them.
// Cost: with queries, llama.cpp computes each layer as two graphs in place of one; a copy of each query.

#include <kvtrim/adapter/ggml_any_rows.hpp>
#include <kvtrim/cache/cell_mirror.hpp>
#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/layer.hpp>
#include <kvtrim/decode/recent_queries.hpp>

#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>

namespace KVTRIM_NAMESPACE {

/// What was seen of one layer.
struct llama_layer {
    ggml_tensor k{}; ///< what attention reads: [head_dim, cells, kv_heads] of the sequence's stream
    ggml_tensor v{}; ///< the same, or [cells, head_dim, kv_heads]
    bool v_is_transposed = false;           ///< the latter
    attention_options attention;            ///< scale, soft cap, sink logits
    const ggml_tensor* wo = nullptr;        ///< W_O, if it is a plain weight
    recent_queries<float> queries{0, 0, 0}; ///< [q_heads, window, head_dim]
    std::span<const float> v_rotation;      ///< [n, n] of a cache of quantised V; empty: none

    /// The cells of a sequence, in its order, as a policy's inputs. The cells must outlive them.
    [[nodiscard]] auto inputs(std::span<const std::int32_t> cells) const {
        const ggml_any_rows keys(k),
            values(v, v_is_transposed ? ggml_axes::transposed() : ggml_axes::attended());
        return layer(indexed_rows(keys, cells), indexed_rows(values, cells)).with_queries(queries.view());
    }
    /// W_O for the values as they lie in the cache. Not valid where there is none, or none that the CPU can read.
    [[nodiscard]] ggml_output_projection output_projection() const {
        ggml_output_projection w = wo != nullptr
                                       ? ggml_output_projection(*wo, queries.q_heads())
                                       : ggml_output_projection::invalid("llama.cpp: no W_O was seen");
        if (!v_rotation.empty() && w.validate().ok()) {
            if (!w.rotate(v_rotation).ok()) {
                return ggml_output_projection::invalid("llama.cpp: V is rotated otherwise");
            }
        }
        return w;
    }
};

/// The eyes of a program on a llama_context. Must not move while the context lives.
class llama_graph {
  public:
    /// window: newest queries that are kept. streams of cells each.
    llama_graph(index_t window, index_t streams, index_t cells) : window_(window) {
        for (index_t s = 0; s < streams; ++s) { streams_.emplace_back(cells); }
        if (streams <= 0 || !streams_[0].validate().ok() || window <= 0) {
            problem_ = {errc::invalid_parameter, "llama.cpp: a window, streams and cells are at least one"};
        }
    }
    llama_graph(const llama_graph&) = delete;
    llama_graph& operator=(const llama_graph&) = delete;

    /// Why something of the graphs so far could not be read, or ok.
    [[nodiscard]] status validate() const { return problem_; }
    [[nodiscard]] const std::map<int, llama_layer>& layers() const { return layers_; } ///< by number
    /// Which cells a sequence has, of its stream; to be told of everything that changes them but decoding.
    [[nodiscard]] cell_mirror& cells(int sequence) {
        return streams_[streams_.size() == 1 ? 0 : static_cast<std::size_t>(sequence)];
    }
    [[nodiscard]] bool is_unified() const {
        return streams_.size() == 1;
    } ///< whether sequences can share cells

    /// The next graphs are of this sequence's tokens from `position` on. observe: their queries are copied.
    void begin(int sequence, index_t position, bool observe = true) {
        sequence_ = sequence;
        position_ = position;
        observes_ = observe;
    }

    /// For llama_context_params::cb_eval, with a llama_graph as its data.
    static bool callback(ggml_tensor* t, bool ask, void* self) {
        return static_cast<llama_graph*>(self)->see(*t, ask);
    }

    /// The layer whose logits [cells, queries, q_heads] before softmax an operation computes, without flash attention; else -1.
    [[nodiscard]] static int layer_of_logits(const ggml_tensor& t) {
        return t.op == GGML_OP_MUL_MAT ? number_behind("cache_k_l", root(t.src[0])) : -1;
    }

    /// Whether a sliding-window layer was seen.
    [[nodiscard]] bool has_windows() const { return has_windows_; }

    /// Asked about each operation of a graph, in order; if it answers true, called again once that is computed.
    bool see(const ggml_tensor& t, bool ask) {
        if (!problem_.ok()) { return false; }
        if (t.op == GGML_OP_SET_ROWS) {
            if (ask) { see_written(number_behind("cache_k_l", root(&t)), root(&t), *t.src[1]); }
            return false;
        }
        if (!observes_) { return false; }
        switch (t.op) {
        case GGML_OP_FLASH_ATTN_EXT:
            if (!attends(*t.src[1], ask)) { return false; }
            if (!ask) {
                see_attention(t, t.src[4], parameter(t, 2));
                layers_[current_].v = *t.src[2];
                see_queries(*t.src[0], *t.src[1]);
            }
            return true;
        case GGML_OP_SOFT_MAX:
            if (ask && current_ >= 0 && number_behind("kq_soft_max-", t) == current_) {
                see_attention(t, t.src[2], 0);
                if (t.src[0]->op != GGML_OP_MUL_MAT) {
                    fail("llama.cpp: capped or biased logits are read with flash attention only");
                }
            }
            return false;
        case GGML_OP_MUL_MAT:
            return see_product(t, *t.src[0], ask);
        default:
            return false;
        }
    }

  private:
    // The cache's own tensor behind a view of it.
    [[nodiscard]] static const ggml_tensor& root(const ggml_tensor* t) {
        while (t->view_src != nullptr) { t = t->view_src; }
        return *t;
    }
    // N of a name "prefixN...", else -1.
    [[nodiscard]] static int number_behind(const char* prefix, const ggml_tensor& t) {
        const std::size_t n = std::strlen(prefix);
        return std::strncmp(t.name, prefix, n) == 0 ? std::atoi(t.name + n) : -1;
    }
    [[nodiscard]] static float parameter(const ggml_tensor& t, std::size_t i) {
        float x = 0;
        std::memcpy(&x, t.op_params + i, sizeof x);
        return x;
    }
    void fail(const char* what) { problem_ = {errc::invalid_parameter, what}; }

    // Tokens enter the cache of a layer, whose attention comes next.
    void see_written(int l, const ggml_tensor& cache, const ggml_tensor& cells) {
        if (l < 0) { return; }
        is_seen_ = false;
        current_ = cache.ne[1] == streams_[0].cells() ? l : -1;
        if (current_ < 0) {
            has_windows_ = true;
            return;
        }
        if (first_ < 0) { first_ = l; }
        if (l == first_) {
            written_ = &cells;
            see_cells(cells);
        } else if (&cells != written_) {
            fail("llama.cpp: the cache of sliding windows has as many cells as the other: swa_full = false "
                 "and more cells");
        }
    }

    // Whether the queries of the current layer meet its keys; of a layer that reads another one's cache nothing is seen.
    bool attends(const ggml_tensor& keys, bool ask) {
        if (ask && (is_seen_ || number_behind("cache_k_l", root(&keys)) != current_)) { current_ = -1; }
        is_seen_ = true;
        return current_ >= 0;
    }

    bool see_product(const ggml_tensor& t, const ggml_tensor& weight, bool ask) {
        if (number_behind("cache_k_l", root(&weight)) >= 0) {
            if (!attends(weight, ask)) { return false; }
            if (!ask) { see_queries(*t.src[1], weight); }
            return true;
        }
        if (!ask) { return false; }
        if (v_rotation_.empty() && std::strcmp(weight.name, "attn_inp_v_rot") == 0) {
            v_rotation_.resize(static_cast<std::size_t>(ggml_nelements(&weight)));
            ggml_backend_tensor_get(&weight, v_rotation_.data(), 0, ggml_nbytes(&weight));
        }
        if (current_ < 0) { return false; }
        if (number_behind("cache_v_l", root(&weight)) == current_) {
            layers_[current_].v = weight;
            layers_[current_].v_is_transposed = true;
        } else if (number_behind("blk.", weight) == current_ &&
                   std::strstr(weight.name, ".attn_output.weight") != nullptr) {
            layers_[current_].wo = &weight;
        }
        return false;
    }

    void see_attention(const ggml_tensor& t, const ggml_tensor* sinks, float soft_cap) {
        if (parameter(t, 1) != 0) { fail("llama.cpp: attention biased by distance (ALiBi) is not scored"); }
        attention_options& attention = layers_[current_].attention;
        attention = {.scale = parameter(t, 0), .soft_cap = soft_cap};
        if (sinks == nullptr) { return; }
        if (sinks->buffer != nullptr && !ggml_backend_buffer_is_host(sinks->buffer)) {
            return fail("llama.cpp: sink logits must be in memory of the CPU");
        }
        attention.sink_logits = {static_cast<const float*>(sinks->data),
                                 static_cast<std::size_t>(ggml_nelements(sinks))};
    }

    void see_queries(const ggml_tensor& q, const ggml_tensor& k) {
        if (q.ne[3] != 1) { return fail("llama.cpp: decode one sequence at a time"); }
        llama_layer& l = layers_[current_];
        l.k = k;
        l.v_rotation = v_rotation_;
        const ggml_any_rows queries(q);
        if (l.queries.window() == 0) { l.queries = {queries.extent(0), window_, queries.extent(2)}; }
        if (const status s = l.queries.append(queries); !s.ok()) { problem_ = s; }
    }

    // I64 cells of a graph's tokens, counted over all streams.
    void see_cells(const ggml_tensor& cells) {
        std::vector<std::int64_t> at(static_cast<std::size_t>(ggml_nelements(&cells)));
        std::vector<std::int32_t> positions(at.size());
        ggml_backend_tensor_get(&cells, at.data(), 0, at.size() * sizeof(std::int64_t));
        std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(position_));
        position_ += std::ssize(at);
        const index_t per_stream = streams_[0].cells();
        const index_t stream = at.empty() ? 0 : at[0] / per_stream;
        if (stream < 0 || stream >= std::ssize(streams_)) {
            return fail("llama.cpp: a stream that the program did not name");
        }
        for (auto& cell : at) { cell -= stream * per_stream; }
        const status s = streams_[static_cast<std::size_t>(stream)].fill(at, positions, sequence_);
        if (!s.ok()) { problem_ = s; }
    }

    index_t window_;
    std::vector<cell_mirror> streams_;
    std::map<int, llama_layer> layers_;
    std::vector<float> v_rotation_;
    int first_ = -1;                       // the layer whose writes tell what the cells hold
    int current_ = -1;                     // the layer whose attention is being computed, if it is seen
    bool is_seen_ = false;                 // its queries met its keys
    const ggml_tensor* written_ = nullptr; // cells of the graph's tokens
    bool has_windows_ = false;
    int sequence_ = 0;
    index_t position_ = 0;
    bool observes_ = true;
    status problem_;
};

} // namespace KVTRIM_NAMESPACE
