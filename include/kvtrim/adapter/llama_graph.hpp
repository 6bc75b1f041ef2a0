// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What a program that runs llama.cpp cannot ask of it: where the cache of each layer lies, the newest queries, which cell holds
// what. Seen as llama_decode's graphs pass, through llama_context_params::cb_eval; nothing of llama.cpp is patched or included.
//
//     kvtrim::llama_graph seen(window, streams, cells);              // streams: 1 if the cache is unified, else sequences
//     params.cb_eval = kvtrim::llama_graph::callback, params.cb_eval_user_data = &seen;
//     seen.begin(tokens);                                            // before each llama_decode: whose token at which position
//     ... llama_decode(context, batch) ...
//     s = seen.validate();                                           // whether all of it could be read
//     for (const auto& [number, layer] : seen.layers(sequence)) { all.add(policy, layer.inputs(list.cells), layer.attention, memory); }
//     seen.cells(sequence).remove(sequence, begin, end);             // beside each llama_memory_seq_rm (cache/cell_mirror.hpp)
//     seen.copy(from, to);                                           // beside each llama_memory_seq_cp of a whole sequence
//
// Keys and values are viewed where they lie, in any type, V also transposed (no flash attention); queries are copied. Scores
// need the newest `window` queries and those of tokens that are in the cache, so nothing may be decoded unseen before a cut.
// Known by what llama.cpp names its tensors: cache_k_l0, cache_v_l0, kq_soft_max-0, blk.0.attn_output.weight, attn_inp_k_rot,
// attn_inp_v_rot (checked with the release that ./dev llama builds). Tensors must be in memory of the CPU.
// A batch may hold tokens of several sequences; in a unified cache whose layers have windows it must not, as llama.cpp may then
// change their order. Not seen, and said by validate(): that; ALiBi; capped logits without flash attention; latent attention (MLA).
// Sliding-window layers have a second cache, of few cells, and llama.cpp names neither. They are told apart by that, so make the
// context with swa_full = false and more cells than window and micro-batch; they are not in layers(), and not mirrored. seq_rm
// takes from both caches: save and put back what the window held (LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) around a cut.
// Layers that read another one's cache (Gemma 3n) add no queries to it. Recurrent layers have no cells: refuse them.
// Cost: with queries, llama.cpp computes each layer as two graphs in place of one; a copy of each query.

#include <kvtrim/adapter/llama_layer.hpp>
#include <kvtrim/cache/cell_mirror.hpp>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>

namespace KVTRIM_NAMESPACE {

/// A token of a batch.
struct llama_token_place {
    int sequence = 0;          ///< whose it is
    std::int32_t position = 0; ///< in that sequence
};

/// Reads keys, queries and cells from the callback of a llama_context's graphs (cb_eval). Must not move while the context lives.
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
    /// The layers of a sequence whose queries were seen, by number; empty for another sequence.
    [[nodiscard]] const std::map<int, llama_layer>& layers(int sequence = 0) const {
        static const std::map<int, llama_layer> none;
        const auto at = layers_.find(sequence);
        return at == layers_.end() ? none : at->second;
    }
    /// Which cells a sequence has, of its stream. Repeat on it every change of cells other than decoding (cache/cell_mirror.hpp).
    [[nodiscard]] cell_mirror& cells(int sequence) {
        return streams_[streams_.size() == 1 ? 0 : static_cast<std::size_t>(sequence)];
    }
    /// Whether sequences can share cells.
    [[nodiscard]] bool is_unified() const { return streams_.size() == 1; }

    /// The next graphs are of these tokens, as the batch lists them. observe: their queries are copied.
    void begin(std::span<const llama_token_place> batch, bool observe = true) {
        waiting_.assign(batch.begin(), batch.end());
        observes_ = observe;
    }

    /// As llama_memory_seq_cp of a whole sequence: `to` shares its cells in a unified cache, and has copies of them in place of
    /// what it had in a split one, where llama.cpp makes them in the next llama_decode: until a token of `to` was decoded its
    /// layers' inputs are not valid. Returns invalid_parameter for a sequence that cannot be, with nothing changed.
    [[nodiscard]] status copy(int from, int to) {
        if (from == to) { return {}; }
        if (is_unified()) {
            if (const status s = streams_[0].copy(from, to); !s.ok()) { return s; }
        } else {
            if (!is_stream(from) || !is_stream(to)) {
                return {errc::invalid_parameter, "llama.cpp: a split cache has a stream for each sequence"};
            }
            cell_mirror copied = cells(from);
            if (const status s = copied.copy(from, to); !s.ok()) { return s; }
            if (const status s = copied.remove(from, 0, -1); !s.ok()) { return s; }
            cells(to) = std::move(copied);
        }
        layers_[to] = layers(from);
        if (is_unified()) { return {}; }
        for (auto& [number, l] : layers_[to]) { l.k = l.v = {}; }
        return {};
    }

    /// For llama_context_params::cb_eval, with a llama_graph as its data.
    static bool callback(ggml_tensor* t, bool ask, void* self) {
        return static_cast<llama_graph*>(self)->see(*t, ask);
    }

    /// The layer whose logits [cells, queries, q_heads] before softmax an operation computes, without flash attention; else -1.
    [[nodiscard]] static int layer_of_logits(const ggml_tensor& t) {
        return t.op == GGML_OP_MUL_MAT ? number_behind("cache_k_l", root(t.src[0])) : -1;
    }

    /// Whether llama.cpp can turn the keys that were seen to other positions. It crashes on quantised keys that it did not rotate
    /// (head_dim no multiple of 64, or LLAMA_ATTN_ROT_DISABLE): its shift turns back a rotation that such a cache does not have.
    [[nodiscard]] bool can_shift(int sequence) const {
        return std::all_of(layers(sequence).begin(), layers(sequence).end(), [&](const auto& l) {
            return !ggml_is_quantized(l.second.k.type) || keys_are_rotated_;
        });
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
            if (!ask && number_behind("cache_k_l", root(t.src[2])) >= 0) { fail(latent_attention); }
            if (!ask && problem_.ok()) {
                see_attention(t, t.src[4], parameter(t, 2));
                see_values(*t.src[2], false);
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
    static constexpr const char* latent_attention =
        "llama.cpp: latent attention, whose values are a part of its keys, is not read";
    void fail(const char* what) { problem_ = {errc::invalid_parameter, what}; }

    // Tokens enter the cache of a layer, whose attention comes next.
    void see_written(int l, const ggml_tensor& cache, const ggml_tensor& cells) {
        if (l < 0) { return; }
        is_seen_ = false;
        current_ = cache.ne[1] == streams_[0].cells() ? l : -1;
        has_windows_ = has_windows_ || current_ < 0;
        if (first_ < 0) { first_ = current_; }
        if (current_ >= 0 && l == first_) {
            written_ = &cells;
            see_cells(cells);
        }
        if (has_windows_ && is_unified() && runs_.size() > 1) {
            fail("llama.cpp: beside sliding windows decode one sequence at a time");
        }
        if (current_ >= 0 && &cells != written_) {
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
        keys_are_rotated_ = keys_are_rotated_ || std::strcmp(weight.name, "attn_inp_k_rot") == 0;
        if (v_rotation_.empty() && std::strcmp(weight.name, "attn_inp_v_rot") == 0) {
            v_rotation_.resize(static_cast<std::size_t>(ggml_nelements(&weight)));
            ggml_backend_tensor_get(&weight, v_rotation_.data(), 0, ggml_nbytes(&weight));
        }
        if (current_ < 0) { return false; }
        if (number_behind("cache_v_l", root(&weight)) == current_) {
            see_values(weight, true);
        } else if (number_behind("blk.", weight) == current_ &&
                   std::strstr(weight.name, ".attn_output.weight") != nullptr) {
            for (const run& r : runs_) {
                llama_layer& l = layers_[r.sequence][current_];
                l.wo = &weight;
                if (l.v.data == nullptr) { fail(latent_attention); } // its values had to be seen by now
            }
        }
        return false;
    }

    void see_attention(const ggml_tensor& t, const ggml_tensor* sinks, float soft_cap) {
        if (parameter(t, 1) != 0) { fail("llama.cpp: attention biased by distance (ALiBi) is not scored"); }
        attention_options seen{.scale = parameter(t, 0), .soft_cap = soft_cap};
        if (sinks != nullptr) {
            if (sinks->buffer != nullptr && !ggml_backend_buffer_is_host(sinks->buffer)) {
                return fail("llama.cpp: sink logits must be in memory of the CPU");
            }
            seen.sink_logits = {static_cast<const float*>(sinks->data),
                                static_cast<std::size_t>(ggml_nelements(sinks))};
        }
        for (const run& r : runs_) { layers_[r.sequence][current_].attention = seen; }
    }

    // What a graph has of a stream: [., ., ., streams of the graph].
    [[nodiscard]] static ggml_tensor stream_of(const ggml_tensor& t, index_t stream) {
        ggml_tensor one = t;
        one.ne[3] = 1;
        one.data = static_cast<char*>(t.data) + static_cast<std::size_t>(stream) * t.nb[3];
        return one;
    }

    void see_values(const ggml_tensor& v, bool is_transposed) {
        for (const run& r : runs_) {
            llama_layer& l = layers_[r.sequence][current_];
            if (r.stream >= v.ne[3]) { return fail("llama.cpp: values of other streams than the cache got"); }
            l.v = stream_of(v, r.stream);
            l.v_is_transposed = is_transposed;
        }
    }

    void see_queries(const ggml_tensor& q, const ggml_tensor& k) {
        for (const run& r : runs_) {
            llama_layer& l = layers_[r.sequence][current_];
            if (r.stream >= std::min(q.ne[3], k.ne[3]) || r.first + r.count > q.ne[1]) {
                return fail("llama.cpp: queries of other tokens than the cache got");
            }
            l.k = stream_of(k, r.stream);
            l.v_rotation = v_rotation_;
            ggml_tensor of_run = stream_of(q, r.stream);
            of_run.ne[1] = r.count;
            of_run.data = static_cast<char*>(of_run.data) + static_cast<std::size_t>(r.first) * q.nb[1];
            const ggml_any_rows queries(of_run);
            if (l.queries.window() == 0) { l.queries = {queries.extent(0), window_, queries.extent(2)}; }
            if (const status s = l.queries.append(queries); !s.ok()) { problem_ = s; }
        }
    }

    // I64 cells of a graph's tokens, counted over all streams. In a unified cache they come as the batch lists them, in a split
    // one those of a stream do, stream by stream.
    void see_cells(const ggml_tensor& cells) {
        std::vector<std::int64_t> at(static_cast<std::size_t>(ggml_nelements(&cells)));
        ggml_backend_tensor_get(&cells, at.data(), 0, at.size() * sizeof(std::int64_t));
        const index_t per_stream = streams_[0].cells();
        runs_.clear();
        index_t taken = 0;
        for (std::int64_t cell : at) {
            const index_t stream = cell / per_stream;
            cell -= stream * per_stream;
            const auto next = std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& token) {
                return is_unified() || token.sequence == stream;
            });
            if (next == waiting_.end()) { return fail("llama.cpp: a token that the program did not name"); }
            const auto [sequence, position] = *next;
            waiting_.erase(next);
            const status s =
                this->cells(sequence).fill(std::span(&cell, 1), std::span(&position, 1), sequence);
            if (!s.ok()) {
                problem_ = s;
                return;
            }
            if (runs_.empty() || runs_.back().sequence != sequence) {
                runs_.push_back(
                    {sequence, is_unified() ? 0 : std::ssize(runs_), is_unified() ? taken : 0, 0});
            }
            ++runs_.back().count;
            ++taken;
        }
    }

    [[nodiscard]] bool is_stream(int sequence) const {
        return sequence >= 0 && sequence < std::ssize(streams_);
    }

    // Tokens of one sequence that lie side by side in a graph.
    struct run {
        int sequence;
        index_t stream, first, count; // of the streams in the graph; of the stream's tokens
    };

    index_t window_;
    std::vector<cell_mirror> streams_;
    std::map<int, std::map<int, llama_layer>> layers_; // by sequence
    std::vector<float> v_rotation_;
    bool keys_are_rotated_ = false;
    int first_ = -1;                       // the layer whose writes tell what the cells hold
    int current_ = -1;                     // the layer whose attention is being computed, if it is seen
    bool is_seen_ = false;                 // its queries met its keys
    const ggml_tensor* written_ = nullptr; // cells of the graph's tokens
    bool has_windows_ = false;
    std::deque<llama_token_place> waiting_; // for a graph
    std::vector<run> runs_;                 // of the graph
    bool observes_ = true;
    status problem_;
};

} // namespace KVTRIM_NAMESPACE
