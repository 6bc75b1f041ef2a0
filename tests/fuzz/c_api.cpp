// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The C interface in any order of calls, every argument hostile but the memory: sizes of structs, enums, counts, extents, strides,
// entries of tables, names and options of policies, saved bytes, handles that are null.
//
// The promise of memory is kept: tables are as long as counts say, or null; a view that the library takes lies in the arena, or
// the one that it was made from is used. What a caller may ask for is kept small (`asked`), so that no call runs out of memory.
//
// Model: an answer is a code of the header with a sentence. A call that is refused has changed nothing: not a byte of the arena
// and of its outputs, no plan and no state. One that only reads leaves the arena as it was. Plans name rows that can be read, and
// what a state saves it restores.

#include "input.hpp"

#include <kvtrim_c.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <type_traits>

namespace {

using fuzz::index_t;

using bytes = std::vector<std::byte>;
using int32s = std::vector<std::int32_t>;

constexpr index_t arena_size = 24 << 10, most_rows = 64, most_heads = 1 << 20,
                  beyond_32_bits = index_t{1} << 33;
constexpr index_t element_bytes[] = {4, 2, 2, 34, 18, 20, 22, 24, 18, 1, 1, 1},
                  block_of[] = {1, 1, 1, 32, 32, 32, 32, 32, 32, 1, 1, 1};

// A number that the library refuses, or one of which a caller may ask so many: not one that only asks for much memory.
index_t asked(fuzz::input& in, index_t good, index_t most = most_rows,
              index_t refused_from = beyond_32_bits) {
    const index_t n = in.hostile(good);
    return n > most && n < refused_from ? good : n;
}

// `data` with `count` entries, or null where a count says more than this target has.
template <class T>
const T* counted(std::vector<T>& list, index_t count) {
    if (count > 4096) { return nullptr; }
    if (count > std::ssize(list)) { list.resize(static_cast<std::size_t>(count)); }
    return list.data();
}

template <class T>
void damage(fuzz::input& in, std::vector<T>& list) {
    if (list.empty() || !in.chance(24)) { return; }
    list[static_cast<std::size_t>(in.between(0, std::ssize(list) - 1))] = static_cast<T>(in.hostile(1, 255));
}

template <class Struct>
void damage_size(fuzz::input& in, Struct& s) {
    if (in.chance(4)) { s.size = static_cast<std::size_t>(in.hostile(sizeof s - 1, 128)); }
    if (s.size > sizeof s) { s.size = sizeof s; }
}

// ---- Views ----

struct view {
    kvtrim_view v = {};
    std::vector<index_t> lengths;
    int32s indices, indptr, last_page;

    view() = default;
    view(const view& other) { *this = other; }
    view& operator=(const view& other) {
        v = other.v, lengths = other.lengths, indices = other.indices, indptr = other.indptr;
        last_page = other.last_page;
        point();
        return *this;
    }
    // Tables at least as long as the counts say. What a pointer said before, null or not, it says again.
    void point() {
        const bool ragged = v.layout == KVTRIM_RAGGED;
        if (v.lengths != nullptr) { v.lengths = counted(lengths, v.extents[0]); }
        if (v.indices != nullptr) { v.indices = counted(indices, v.index_count); }
        const index_t rows = ragged ? v.extents[0] : v.table_rows;
        if (v.indptr != nullptr) { v.indptr = rows < 4096 ? counted(indptr, rows + 1) : nullptr; }
        if (v.last_page != nullptr) { v.last_page = counted(last_page, v.table_rows); }
    }
};

using wide = __int128;

// Of bytes from data on: [low, high) that these strides reach.
struct reach {
    wide low = 0, high = 0;

    void add(index_t count, index_t stride) {
        const wide far = wide{stride} * (count - 1);
        (far < 0 ? low : high) += far;
    }
    [[nodiscard]] bool lies_in(const void* data, const bytes& arena) const {
        const wide at = wide{reinterpret_cast<std::intptr_t>(data)};
        const wide begin = wide{reinterpret_cast<std::intptr_t>(arena.data())};
        return at + low >= begin && at + high <= begin + arena_size;
    }
};

reach reach_of(const view& g, index_t pages) {
    const kvtrim_view& v = g.v;
    const index_t size = element_bytes[v.element], row = v.extents[2] / block_of[v.element];
    reach r;
    r.high = size;
    if (v.layout == KVTRIM_RAGGED) {
        r.high = wide{g.indptr[static_cast<std::size_t>(v.extents[0])]} * row * size;
        return r;
    }
    r.add(row, v.strides[2]);
    r.add(v.layout == KVTRIM_PAGED_PER_HEAD ? 1 : v.extents[0], v.strides[0]);
    if (v.layout == KVTRIM_PAGED || v.layout == KVTRIM_PAGED_PER_HEAD) {
        for (const auto page : g.indices) { pages = std::max(pages, index_t{page} + 1); }
        r.add(v.page_tokens, v.strides[1]);
        r.add(pages, v.page_stride);
    } else {
        r.add(v.extents[1], v.strides[1]);
    }
    return r;
}

bool keeps_promise(const view& g, const bytes& arena, index_t pages_of_pool) {
    const kvtrim_view& v = g.v;
    for (const index_t extent : v.extents) {
        if (extent > most_rows) { return false; }
    }
    if (std::min({v.extents[0], v.extents[1], v.extents[2]}) <= 0 && v.layout < KVTRIM_PAGED) { return true; }
    if (v.extents[0] <= 0 || v.extents[2] <= 0) { return true; }
    if (v.layout == KVTRIM_RAGGED && g.indptr[static_cast<std::size_t>(v.extents[0])] > 4096) {
        return false;
    }
    if ((v.layout == KVTRIM_PAGED || v.layout == KVTRIM_PAGED_PER_HEAD) && (v.page_tokens > most_rows)) {
        return false;
    }
    if (v.element >= KVTRIM_I8) {
        reach r;
        r.high = sizeof(float);
        const bool is_paged = v.layout == KVTRIM_PAGED || v.layout == KVTRIM_PAGED_PER_HEAD;
        index_t pages = 0;
        for (const auto page : g.indices) { pages = std::max(pages, index_t{page} + 1); }
        const index_t rows = is_paged                    ? v.page_tokens
                             : v.layout == KVTRIM_RAGGED ? g.indptr[static_cast<std::size_t>(v.extents[0])]
                                                         : v.extents[1];
        r.add(v.extents[0], v.scale_strides[0]), r.add(rows, v.scale_strides[1]);
        r.add(v.extents[2], v.scale_strides[2]), r.add(is_paged ? pages : 1, v.scale_page_stride);
        if (!r.lies_in(v.scales, arena) || (v.zeros != nullptr && !r.lies_in(v.zeros, arena))) {
            return false;
        }
    }
    return reach_of(g, pages_of_pool).lies_in(v.data, arena);
}

// ---- Everything that calls read and write ----

template <class Handle>
struct owner {
    Handle* handle = nullptr;
    void (*destroy)(Handle*);

    explicit owner(void (*d)(Handle*)) : destroy(d) {}
    owner(const owner&) = delete;
    owner& operator=(const owner&) = delete;
    ~owner() { destroy(handle); }
    void reset() {
        destroy(handle);
        handle = nullptr;
    }
    // Now and then the null that a caller forgot.
    [[nodiscard]] Handle* get(fuzz::input& in) const { return in.chance(4) ? nullptr : handle; }
};

void append_ints(bytes& all, kvtrim_ints list) {
    const auto* const first = reinterpret_cast<const std::byte*>(list.data);
    all.insert(all.end(), first, first + list.count * index_t{sizeof(std::int32_t)});
    all.push_back(std::byte{1});
}

void append_plan(bytes& all, const kvtrim_plan* plan) {
    const index_t rows = kvtrim_plan_rows(plan);
    if (rows == 0) { return; }
    append_ints(all, {kvtrim_plan_offsets(plan), rows + 1});
    append_ints(all, {kvtrim_plan_kept(plan), kvtrim_plan_offsets(plan)[rows]});
}

template <class Handle>
bytes saved(const Handle* state, kvtrim_status (*save)(const Handle*, void*, int64_t, int64_t*)) {
    index_t needed = 0;
    if (state == nullptr) { return {}; }
    const kvtrim_status s = save(state, nullptr, 0, &needed);
    FUZZ_CHECK(s.code == KVTRIM_OK || (s.code == KVTRIM_NO_ROOM && s.needed == needed));
    bytes all(static_cast<std::size_t>(needed));
    FUZZ_CHECK(save(state, all.data(), needed, &needed).code == KVTRIM_OK);
    return all;
}

void run_backwards(void*, int64_t count, void (*task)(void*, int64_t), void* argument) {
    for (int64_t i = count; i-- > 0;) { task(argument, i); }
}

class caller {
  public:
    explicit caller(fuzz::input& given) : in(given), arena(static_cast<std::size_t>(arena_size)), out(4096) {
        fuzz::stream s(in.number<std::uint16_t>());
        for (std::size_t i = 0; i + 4 <= arena.size(); i += 4) {
            const float x = s.value();
            std::memcpy(arena.data() + i, &x, sizeof x);
        }
        static const std::string level = kvtrim_cpu_level(); // nothing that is called changes it
        FUZZ_CHECK(!level.empty() && level != "unknown" && level == kvtrim_cpu_level());
        FUZZ_CHECK(kvtrim_api_version() == KVTRIM_C_API_VERSION &&
                   std::count(kvtrim_version(), kvtrim_version() + std::strlen(kvtrim_version()), '.') == 2);
        heads = in.between(1, 3), group = in.between(1, 2), tokens = in.between(0, 12),
        queries = in.between(0, 4);
        constexpr index_t dims[] = {2, 4, 8, 32};
        dim = in.one_of(dims);
        kvtrim_executor ex = {sizeof ex, asked(in, 2, 8, 4097), nullptr,
                              in.chance(4) ? nullptr : run_backwards};
        damage_size(in, ex);
        if (!ok(kvtrim_context_create(in.chance(64) ? &ex : nullptr, &context.handle))) {
            FUZZ_CHECK(context.handle == nullptr && ok(kvtrim_context_create(nullptr, &context.handle)));
        }
        FUZZ_CHECK(ok(kvtrim_plan_create(&plans[0].handle)) && ok(kvtrim_plan_create(&plans[1].handle)) &&
                   ok(kvtrim_scores_create(&scores.handle)) && ok(kvtrim_moves_create(&moves.handle)) &&
                   ok(kvtrim_prefill_create(&prefill.handle)));
        make_policy();
        make_states();
        make_layers();
    }

    // A context keeps the memory that a call took.
    void step() {
        const index_t held = kvtrim_context_bytes(context.handle);
        call();
        FUZZ_CHECK(kvtrim_context_bytes(context.handle) >= held && kvtrim_context_bytes(nullptr) == 0);
    }

  private:
    void call() {
        switch (in.between(0, 21)) {
        case 0:
            return make_policy();
        case 1:
            return make_states();
        case 2:
            return make_layers();
        case 3:
            return plan_layers();
        case 4:
            return score();
        case 5:
            return plan_batch();
        case 6:
            return assign();
        case 7:
            return share();
        case 8:
            return compact();
        case 9:
            return gather();
        case 10:
            return rotate();
        case 11:
            return plan_moves();
        case 12:
            return use_positions();
        case 13:
            return use_running();
        case 14:
            return use_replay();
        case 15:
            return attend();
        case 16:
            return prune();
        case 17:
            return use_cascade();
        case 18:
            return use_interval();
        case 20:
            return use_tables();
        case 21:
            return use_cells();
        default:
            return read();
        }
    }

    // ---- Answers ----

    static bool ok(const kvtrim_status& s) {
        FUZZ_CHECK(s.code >= KVTRIM_OK && s.code <= KVTRIM_VIEWS_OVERLAP && s.reserved == 0);
        FUZZ_CHECK(s.text != nullptr && s.needed >= 0 && (s.code == KVTRIM_OK || s.text[0] != 0));
        return s.code == KVTRIM_OK;
    }
    [[nodiscard]] bytes everything() const {
        bytes all = arena;
        const auto* const first = reinterpret_cast<const std::byte*>(out.data());
        all.insert(all.end(), first, first + out.size() * sizeof(float));
        for (const auto& plan : plans) { append_plan(all, plan.handle); }
        const index_t rows = kvtrim_scores_rows(scores.handle);
        for (index_t i = 0; rows > 0 && i < kvtrim_scores_offsets(scores.handle)[rows]; ++i) {
            const auto* const x =
                reinterpret_cast<const std::byte*>(kvtrim_scores_importance(scores.handle) + i);
            all.insert(all.end(), x, x + sizeof(float));
        }
        for (index_t row = 0; row < kvtrim_moves_rows(moves.handle); ++row) {
            append_ints(all, kvtrim_moves_of_row(moves.handle, row));
            append_ints(all, kvtrim_moves_origins(moves.handle, row));
        }
        append_ints(all, kvtrim_moves_indices(moves.handle));
        append_ints(all, kvtrim_moves_freed(moves.handle));
        for (index_t s = 0; s < kvtrim_prefill_segments(prefill.handle); ++s) {
            for (index_t g = 0; g < most_rows; ++g) {
                append_ints(all, kvtrim_prefill_blocks(prefill.handle, g, s));
            }
        }
        for (const bytes& state :
             {saved(positions.handle, kvtrim_positions_save), saved(running.handle, kvtrim_running_save),
              saved(replay.handle, kvtrim_replay_save), saved(statistics.handle, kvtrim_statistics_save),
              saved(means.handle, kvtrim_means_save), saved(norms.handle, kvtrim_norms_save),
              saved(newest.handle, kvtrim_queries_save), saved(profile.handle, kvtrim_profile_save)}) {
            all.insert(all.end(), state.begin(), state.end());
        }
        all.push_back(static_cast<std::byte>(kvtrim_cascade_layers(cascade.handle)));
        return all;
    }
    enum class access { reads, writes };
    // Whether a call was done; a refused one has changed nothing, and one that reads has left the arena.
    template <class Call>
    bool done(access a, Call&& call) {
        const bytes before = everything();
        const bool is_done = ok(call());
        if (!is_done) { FUZZ_CHECK(everything() == before); }
        if (a == access::reads) { FUZZ_CHECK(std::equal(arena.begin(), arena.end(), before.begin())); }
        return is_done;
    }

    // ---- Arguments ----

    view make_view(index_t h, index_t rows, index_t channels, index_t place, bool plain = false) {
        constexpr std::int32_t elements[] = {
            KVTRIM_F32,  KVTRIM_F32,  KVTRIM_F16,    KVTRIM_BF16, KVTRIM_Q8_0,    KVTRIM_Q4_0,   KVTRIM_Q4_1,
            KVTRIM_Q5_0, KVTRIM_Q5_1, KVTRIM_IQ4_NL, KVTRIM_I8,   KVTRIM_F8_E4M3, KVTRIM_F8_E5M2};
        view g;
        std::int32_t element = plain ? KVTRIM_F32 : in.one_of(elements);
        if (channels % block_of[element] != 0) { element = KVTRIM_F32; }
        kvtrim_view_init(&g.v, element, arena.data() + place, h, rows, channels);
        kvtrim_view& v = g.v;
        if (element >= KVTRIM_I8) {
            v.scales = reinterpret_cast<float*>(arena.data() + 64);
            v.zeros = in.chance(128) ? v.scales + 1 : nullptr;
            v.scale_strides[1] = 4 * in.between(0, 2);
        }
        const std::int32_t layout = plain ? KVTRIM_STRIDED : static_cast<std::int32_t>(in.between(-3, 4));
        const index_t size = element_bytes[element];
        if (layout <= KVTRIM_STRIDED) {
            if (in.chance(32)) {
                for (index_t head = 0; head < h; ++head) { g.lengths.push_back(in.between(0, rows)); }
                v.lengths = g.lengths.data();
            }
            set_strides(v, {h, rows, channels / block_of[element]}, size);
        } else if (layout == KVTRIM_INDEXED) {
            v.layout = layout;
            const bool any = rows > 0;
            for (index_t i = any ? in.between(0, rows) : 0; i > 0; --i) {
                g.indices.push_back(static_cast<std::int32_t>(in.between(0, rows - 1)));
            }
            v.indices = g.indices.data(), v.index_count = std::ssize(g.indices);
        } else if (layout == KVTRIM_RAGGED) {
            v.layout = layout;
            v.scale_strides[1] *= in.chance(240) ? 1 : 0;
            g.indptr.push_back(0);
            for (index_t head = 0; head < h; ++head) {
                g.indptr.push_back(g.indptr.back() + static_cast<std::int32_t>(in.between(0, rows)));
            }
            v.indptr = g.indptr.data();
        } else { // pages of up to 4 slots
            v.layout = layout;
            const index_t row_bytes = channels / block_of[element] * size;
            v.page_tokens = in.between(1, 4), v.pages = in.chance(128) ? -1 : 8;
            const bool own = layout == KVTRIM_PAGED_PER_HEAD;
            v.strides[0] = row_bytes;
            v.strides[1] = (own ? 1 : h) * row_bytes;
            v.page_stride = v.page_tokens * v.strides[1];
            v.scale_strides[0] = v.scale_strides[1], v.scale_strides[1] *= own ? 1 : h;
            v.scale_page_stride = v.page_tokens * v.scale_strides[1];
            v.table_rows = own ? h : in.between(1, 2), v.row = own ? 0 : v.table_rows - 1;
            const index_t pages = std::min<index_t>(8, (4 << 10) / std::max<index_t>(1, v.page_stride));
            g.indptr.push_back(0);
            for (index_t row = 0; row < v.table_rows; ++row) {
                const index_t count = pages > 0 ? in.between(0, std::min<index_t>(pages, 3)) : 0;
                for (index_t i = 0; i < count; ++i) {
                    g.indices.push_back(static_cast<std::int32_t>(in.between(0, pages - 1)));
                }
                g.indptr.push_back(static_cast<std::int32_t>(g.indices.size()));
                g.last_page.push_back(
                    static_cast<std::int32_t>(count > 0 ? in.between(1, v.page_tokens) : 0));
            }
            v.indices = g.indices.data(), v.index_count = std::ssize(g.indices);
            v.indptr = g.indptr.data(), v.last_page = g.last_page.data();
        }
        return damaged(g, 0);
    }

    // Dimensions in any order, each forwards or backwards: the same bytes.
    void set_strides(kvtrim_view& v, const std::array<index_t, 3>& counts, index_t unit) {
        std::array<std::size_t, 3> outermost_first{0, 1, 2};
        if (in.chance(32)) {
            for (index_t n = in.between(1, 5); n > 0; --n) { std::ranges::next_permutation(outermost_first); }
        }
        const int backwards = in.chance(48) ? in.byte() : 0;
        index_t next = unit;
        for (std::size_t i = 3; i-- > 0;) {
            const std::size_t r = outermost_first[i];
            v.strides[r] = next;
            next *= counts[r];
            if ((backwards >> r) % 2 == 1 && counts[r] > 0) {
                v.data = static_cast<char*>(v.data) + (counts[r] - 1) * v.strides[r];
                v.strides[r] = -v.strides[r];
            }
        }
    }

    // The view, or one that differs in a few places and is refused or lies in the arena.
    view damaged(const view& sound, index_t pages) {
        if (!in.chance(64)) { return sound; }
        view g = sound;
        kvtrim_view& v = g.v;
        damage_size(in, v);
        for (index_t changes = in.between(1, 2); changes > 0; --changes) {
            index_t* const numbers[] = {&v.extents[0],       &v.extents[1],       &v.extents[2],
                                        &v.strides[0],       &v.strides[1],       &v.strides[2],
                                        &v.index_count,      &v.table_rows,       &v.row,
                                        &v.page_tokens,      &v.page_stride,      &v.pages,
                                        &v.scale_strides[0], &v.scale_strides[1], &v.scale_strides[2],
                                        &v.scale_page_stride};
            switch (in.between(0, 5)) {
            case 0:
                v.element = static_cast<std::int32_t>(in.hostile(in.between(0, 13), 64));
                break;
            case 1:
                v.layout = static_cast<std::int32_t>(in.hostile(in.between(0, 5), 64));
                break;
            case 2:
                switch (in.between(0, 5)) {
                case 0:
                    v.data = nullptr;
                    break;
                case 1:
                    v.data = static_cast<char*>(v.data) + 1;
                    break;
                case 2:
                    v.scales = nullptr;
                    break;
                case 3:
                    v.indices = nullptr;
                    break;
                case 4:
                    v.indptr = nullptr;
                    break;
                default:
                    v.last_page = nullptr;
                }
                break;
            case 3:
                damage(in, g.lengths), damage(in, g.indices);
                break;
            case 4:
                damage(in, g.indptr), damage(in, g.last_page);
                break;
            default: {
                index_t& number = *in.one_of(numbers);
                number = in.hostile(number, 255);
            }
            }
        }
        g.point();
        return ok(kvtrim_view_validate(&v)) && !keeps_promise(g, arena, pages) ? sound : g;
    }

    void make_layers() {
        for (auto& l : layers) {
            const index_t own = &l == &layers[0] ? 0 : 256;
            l.keys = make_view(heads, tokens, dim, own);
            l.values = make_view(heads, tokens, dim, (5 << 10) + own);
            l.queries = make_view(heads * group, queries, dim, (10 << 10) + own);
            l.projection = make_view(heads * group, dim, 3, (14 << 10) + own, true);
            l.scores = make_view(heads, tokens, 1, (20 << 10) + own);
        }
        kvtrim_projection* made = nullptr;
        const auto form = static_cast<std::int32_t>(in.hostile(in.between(0, 1), 8));
        const kvtrim_view* const wo = in.chance(4) ? nullptr : &layers[0].projection.v;
        FUZZ_CHECK(ok(kvtrim_projection_create(wo, form, &made)) == (made != nullptr));
        projection.reset(), projection.handle = made;
    }

    kvtrim_request make_request() {
        kvtrim_request r;
        kvtrim_request_init(&r);
        r.budget_tokens = in.hostile(in.between(1, 2 * tokens + 1));
        r.budget_scope = static_cast<std::int32_t>(in.chance(4) ? in.hostile(3, 128) : in.between(0, 2));
        r.window_tokens = in.hostile(queries, 8);
        r.sink_tokens = in.hostile(in.between(0, 2), 8);
        r.pinned_tokens = in.hostile(in.between(0, 2), 8);
        r.rollback_tokens = in.hostile(0, 8);
        if (in.chance(32)) {
            r.scale = in.value(), r.soft_cap = in.value(), r.sliding_window = in.hostile(4);
        }
        if (in.chance(32)) {
            r.sink_logits_count = in.hostile(heads * group);
            r.sink_logits = counted(logits, r.sink_logits_count);
        }
        r.layer_shares_count = in.hostile(2, 8);
        r.layer_shares = counted(shares, r.layer_shares_count);
        r.profile = profile.get(in);
        damage_size(in, r);
        return r;
    }
    kvtrim_rope make_rope() {
        kvtrim_rope r = {sizeof r, nullptr, in.hostile(dim / 2), in.chance(16) ? in.value() : 0,
                         static_cast<std::int32_t>(in.hostile(in.between(0, 1), 8))};
        r.inverse_frequencies = counted(frequencies, r.pairs);
        damage_size(in, r);
        return r;
    }
    kvtrim_layer make_layer(std::size_t number, const kvtrim_rope* rope) {
        const auto& l = layers[number];
        const auto some = [&](const kvtrim_view& v) { return in.chance(4) ? nullptr : &v; };
        kvtrim_layer made = {sizeof made,
                             some(l.keys.v),
                             some(l.values.v),
                             some(l.queries.v),
                             some(l.projection.v),
                             replay.get(in),
                             running.get(in),
                             statistics.get(in),
                             rope,
                             some(l.scores.v),
                             means.get(in),
                             in.chance(128) ? norms.get(in) : nullptr,
                             in.chance(128) ? projection.get(in) : nullptr};
        damage_size(in, made);
        return made;
    }
    // [2] layers of a call.
    struct call_layers {
        kvtrim_rope rope;
        std::array<kvtrim_layer, 2> all;
        index_t count;
    };
    void fill(call_layers& c) {
        c.rope = make_rope();
        for (std::size_t l = 0; l < 2; ++l) { c.all[l] = make_layer(l, in.chance(4) ? nullptr : &c.rope); }
        c.count = asked(in, in.chance(64) ? 2 : 1, 2, most_heads + 1);
    }

    // ---- Policies and plans ----

    void make_policy() {
        kvtrim_policy_info info = {};
        kvtrim_option_info option = {};
        info.size = sizeof info, option.size = sizeof option;
        const index_t count = kvtrim_policy_count(),
                      index = asked(in, in.between(0, count - 1), count, count);
        damage_size(in, info);
        if (!ok(kvtrim_policy_describe(index, &info))) { return; }
        std::string name = info.name, options;
        for (index_t n = in.between(0, 3); n > 0; --n) {
            const index_t which = in.hostile(in.between(0, std::max(0, info.option_count - 1)), 8);
            if (!ok(kvtrim_policy_describe_option(index, which, &option))) { continue; }
            constexpr const char* odd[] = {"nan", "inf",  "-1",    "1e400", "2147483648",
                                           "",    "0x10", "1e-30", "=",     "0"};
            std::string value = std::to_string(option.by_default);
            if (option.type == KVTRIM_CHOICE) {
                value = option.choices;
                value.resize(std::min(value.size(), value.find('|')));
            } else if (option.type == KVTRIM_INTEGER) {
                value = std::to_string(in.between(0, 9));
            }
            if (in.chance(16)) { value = in.one_of(odd); }
            options += std::string(option.name) + "=" + value + (in.chance(128) ? "," : " ");
        }
        for (std::string* text : {&name, &options}) {
            if (in.chance(6) && !text->empty()) {
                (*text)[static_cast<std::size_t>(in.between(0, std::ssize(*text) - 1))] =
                    static_cast<char>(in.byte());
            }
        }
        kvtrim_policy* made = nullptr;
        const kvtrim_status s = kvtrim_policy_create(in.chance(4) ? nullptr : name.c_str(),
                                                     in.chance(4) ? nullptr : options.c_str(), &made);
        FUZZ_CHECK(ok(s) == (made != nullptr));
        FUZZ_CHECK(ok(s) || s.needed <= std::ssize(options));
        if (made == nullptr) { return; }
        policy.reset();
        policy.handle = made;
        needs = info.needs;
    }

    // Rows that ascend and can be read from the layer's keys.
    void check_plan(const kvtrim_plan* plan, const kvtrim_layer& layer) {
        for (index_t h = 0; h < kvtrim_plan_rows(plan); ++h) {
            std::int32_t last = -1;
            for (auto i = kvtrim_plan_offsets(plan)[h]; i < kvtrim_plan_offsets(plan)[h + 1]; ++i) {
                FUZZ_CHECK(kvtrim_plan_kept(plan)[i] > last);
                last = kvtrim_plan_kept(plan)[i];
            }
            std::vector<float> row(most_rows);
            const kvtrim_view* const rows = (needs & KVTRIM_NEEDS_SCORES) != 0 ? layer.scores : layer.keys;
            FUZZ_CHECK((needs & KVTRIM_NEEDS_REPLAY) != 0 || last < 0 ||
                       ok(kvtrim_view_read(rows, h, last, 1, row.data(), most_rows)));
        }
    }

    void plan_layers() {
        call_layers c;
        fill(c);
        const kvtrim_request r = make_request();
        kvtrim_plan* const targets[] = {plans[0].get(in), in.chance(4) ? plans[0].handle : plans[1].handle};
        const index_t plan_count = asked(in, c.count, 2, most_heads + 1);
        if (done(access::reads, [&] {
                return kvtrim_plan_layers(policy.get(in), c.all.data(), c.count, &r, targets, plan_count,
                                          context.get(in));
            })) {
            for (index_t l = 0; l < c.count; ++l) {
                check_plan(targets[l], c.all[static_cast<std::size_t>(l)]);
            }
        }
    }
    void score() {
        call_layers c;
        fill(c);
        const kvtrim_request r = make_request();
        if (done(access::reads, [&] {
                return kvtrim_score_layer(policy.get(in), c.all.data(), &r, scores.get(in), context.get(in));
            })) {
            const index_t rows = kvtrim_scores_rows(scores.handle);
            const auto* const offsets = kvtrim_scores_offsets(scores.handle);
            FUZZ_CHECK(std::is_sorted(offsets, offsets + rows + 1) && offsets[0] == 0);
        }
        double preference = -1;
        const double tau1 = in.chance(32) ? in.value() : 0, tau2 = in.chance(32) ? in.value() : 0;
        const bool is_measured = done(access::reads, [&] {
            return kvtrim_layer_preference(c.all.data(), in.chance(4) ? nullptr : &r, tau1, tau2, &preference,
                                           context.get(in));
        });
        FUZZ_CHECK(is_measured || preference == -1);
    }
    void plan_batch() {
        std::array<call_layers, 2> c;
        std::array<kvtrim_request, 2> r;
        std::array<kvtrim_batch_item, 2> items;
        std::array<std::array<kvtrim_plan*, 1>, 2> targets;
        for (std::size_t i = 0; i < 2; ++i) {
            fill(c[i]);
            r[i] = make_request();
            targets[i] = {in.chance(4) ? plans[0].get(in) : plans[i].handle};
            items[i] = {sizeof items[i],
                        policy.get(in),
                        c[i].all.data(),
                        asked(in, 1, 1, most_heads + 1),
                        &r[i],
                        targets[i].data(),
                        asked(in, 1, 1, most_heads + 1),
                        {}};
            damage_size(in, items[i]);
        }
        const index_t count = asked(in, 2, 2, most_heads + 1);
        const auto before = everything();
        const bool all_planned = ok(kvtrim_plan_batch(items.data(), count, context.get(in)));
        FUZZ_CHECK(std::equal(arena.begin(), arena.end(), before.begin()));
        for (index_t i = 0; all_planned && i < count; ++i) {
            const auto at = static_cast<std::size_t>(i);
            FUZZ_CHECK(ok(items[at].answer));
            check_plan(targets[at][0], c[at].all[0]);
        }
    }
    void assign() {
        int32s offsets{0}, kept;
        for (index_t h = in.chance(32) ? in.between(0, 4) : heads; h > 0; --h) {
            for (std::int32_t t = 0; t < tokens; ++t) {
                if (in.chance(128)) { kept.push_back(t); }
            }
            offsets.push_back(static_cast<std::int32_t>(kept.size()));
        }
        const index_t rows = asked(in, std::ssize(offsets) - 1, std::ssize(offsets) - 1, most_heads + 1);
        damage(in, offsets), damage(in, kept);
        const index_t total =
            rows >= 0 && rows < std::ssize(offsets) ? offsets[static_cast<std::size_t>(rows)] : 0;
        kvtrim_plan* const plan = plans[in.chance(64) ? 1 : 0].get(in);
        if (done(access::reads, [&] {
                return kvtrim_plan_assign(plan, in.chance(4) ? nullptr : offsets.data(), rows,
                                          counted(kept, total));
            })) {
            FUZZ_CHECK(kvtrim_plan_rows(plan) == rows);
        }
    }
    void share() {
        const index_t all = asked(in, tokens), kept = in.hostile(in.between(0, tokens));
        kvtrim_plan* const to = plans[in.chance(128) ? 1 : 0].get(in);
        if (done(access::reads,
                 [&] { return kvtrim_plan_share(plans[0].get(in), all, kept, to, context.get(in)); })) {
            for (index_t h = 1; h < kvtrim_plan_rows(to); ++h) {
                const auto* const offsets = kvtrim_plan_offsets(to);
                FUZZ_CHECK(offsets[h + 1] - offsets[h] == offsets[1] && (kept == 0 || offsets[1] == kept));
            }
        }
    }

    // ---- Plans carried out ----

    void compact() {
        const bool flat = in.chance(96);
        const kvtrim_view *const keys = in.chance(4) ? nullptr : &layers[0].keys.v,
                                 *const values =
                                     in.chance(64) ? nullptr : &layers[in.chance(16) ? 1 : 0].values.v;
        const kvtrim_plan* const plan = plans[0].get(in);
        done(access::writes, [&] {
            return flat ? kvtrim_compact_to_flat(keys, values, plan)
                        : kvtrim_compact_in_place(keys, values, plan);
        });
    }
    void gather() {
        const index_t room = std::ssize(out) * index_t{sizeof(float)},
                      size = std::min(room, in.hostile(room));
        const auto element = static_cast<std::int32_t>(in.hostile(in.between(0, 3), 8));
        void* const target = in.chance(4)   ? nullptr
                             : in.chance(4) ? static_cast<void*>(arena.data())
                                            : out.data();
        // An output in the arena is refused where the keys lie in it; beside them it is written, and they stay.
        const bool in_arena = target == arena.data();
        const kvtrim_view* const keys = &layers[0].keys.v;
        if (done(in_arena ? access::writes : access::reads,
                 [&] { return kvtrim_gather(keys, plans[0].get(in), element, target, size); }) &&
            in_arena) {
            const kvtrim_plan* const plan = plans[0].handle;
            const index_t rows = kvtrim_plan_rows(plan),
                          kept = rows > 0 ? kvtrim_plan_offsets(plan)[rows] : 0;
            FUZZ_CHECK(ok(kvtrim_gather(keys, plan, element, out.data(), room)));
            FUZZ_CHECK(
                std::memcmp(out.data(), target,
                            static_cast<std::size_t>(kept * keys->extents[2] * element_bytes[element])) == 0);
        }
    }
    // Positions of rows that keys have, and of which there are as many as the offsets say.
    void rotate() {
        int32s offsets, from, to;
        std::int32_t next = 0;
        for (index_t h = 0; h <= most_rows; ++h) {
            offsets.push_back(next);
            if (h < heads) { next += static_cast<std::int32_t>(in.between(0, tokens)); }
        }
        for (std::int32_t i = 0; i < next; ++i) { from.push_back(i), to.push_back(i / 2); }
        damage(in, offsets), damage(in, from), damage(in, to);
        index_t most = 0;
        for (const auto offset : offsets) { most = std::max(most, index_t{offset}); }
        const kvtrim_rope rope = make_rope();
        const auto* const old = counted(from, most);
        const auto* const young = in.chance(128) ? nullptr : counted(to, most);
        if (old == nullptr) { return; }
        done(access::writes, [&] {
            return kvtrim_rerotate_keys(&layers[0].keys.v, &rope, in.chance(4) ? nullptr : offsets.data(),
                                        old, young, context.get(in));
        });
    }
    void plan_moves() {
        constexpr index_t pages = 8;
        view table; // its tables alone
        index_t next = 0;
        kvtrim_page_pool p = {};
        p.size = sizeof p;
        p.table_rows = in.between(1, 2), p.page_tokens = in.between(1, 4),
        p.heads = in.chance(128) ? 1 : heads;
        table.indptr.push_back(0);
        for (index_t row = 0; row < p.table_rows; ++row) {
            const index_t count = in.between(0, 3);
            for (index_t i = 0; i < count; ++i) {
                table.indices.push_back(static_cast<std::int32_t>(next++));
            }
            table.indptr.push_back(static_cast<std::int32_t>(table.indices.size()));
            table.last_page.push_back(
                static_cast<std::int32_t>(count > 0 ? in.between(1, p.page_tokens) : 0));
        }
        int32s references(pages, 1), free_pages;
        if (in.chance(64)) { references[static_cast<std::size_t>(in.between(0, pages - 1))] = 2; }
        while (next < pages) { free_pages.push_back(static_cast<std::int32_t>(next++)); }
        for (int32s* list : {&table.indices, &table.indptr, &table.last_page, &references, &free_pages}) {
            damage(in, *list);
        }
        p.index_count = in.hostile(std::ssize(table.indices), 4),
        p.table_rows = asked(in, p.table_rows, 2, beyond_32_bits);
        p.pages = asked(in, pages, 4096), p.page_tokens = asked(in, p.page_tokens),
        p.heads = asked(in, p.heads);
        p.free_count = in.hostile(std::ssize(free_pages), 4);
        p.order = static_cast<std::int32_t>(in.hostile(in.between(0, 2), 4));
        p.copy_shared = static_cast<std::int32_t>(in.hostile(in.between(0, 1), 4));
        p.indices = counted(table.indices, p.index_count);
        p.indptr = p.table_rows < 4096 ? counted(table.indptr, p.table_rows + 1) : nullptr;
        p.last_page = counted(table.last_page, p.table_rows), p.ref_counts = counted(references, p.pages);
        if (in.chance(64)) { p.ref_counts = nullptr; }
        p.free_pages = counted(free_pages, p.free_count);
        damage_size(in, p);
        if (!done(access::reads,
                  [&] { return kvtrim_moves_plan(moves.get(in), plans[0].get(in), &p, context.get(in)); })) {
            return;
        }
        const kvtrim_ints table_rows = kvtrim_moves_indptr(moves.handle);
        FUZZ_CHECK((table_rows.count - 1) * p.heads == kvtrim_moves_rows(moves.handle) &&
                   table_rows.data[table_rows.count - 1] == kvtrim_moves_indices(moves.handle).count &&
                   kvtrim_moves_last_page(moves.handle).count == table_rows.count - 1);
        const index_t taken = kvtrim_moves_taken(moves.handle);
        FUZZ_CHECK(taken >= 0 && taken <= p.free_count);
        for (index_t i = 0; i < kvtrim_moves_released(moves.handle).count; ++i) {
            const auto page = kvtrim_moves_released(moves.handle).data[i];
            FUZZ_CHECK(page >= 0 && page < p.pages && p.ref_counts != nullptr && p.ref_counts[page] > 1);
        }
        view memory;
        const index_t h = in.between(1, 2), channels = in.between(0, 4);
        kvtrim_view_init(&memory.v, KVTRIM_F32, arena.data(), h, 0, channels);
        memory.v.layout = in.chance(64) ? KVTRIM_PAGED_PER_HEAD : KVTRIM_PAGED;
        memory.v.page_tokens = p.page_tokens;
        memory.v.strides[1] = h * memory.v.strides[0];
        memory.v.page_stride = p.page_tokens * memory.v.strides[1];
        if (p.pages > 4096 / std::max<index_t>(1, memory.v.page_stride)) { return; }
        view more = memory;
        more.v.data = arena.data() + (8 << 10);
        // Of these views only numbers count: every one has to keep the promise for the whole pool.
        const auto odd = [&](const view& sound) {
            const view g = damaged(sound, p.pages);
            const bool known = g.v.element >= 0 && g.v.element < 12 && g.v.page_tokens <= most_rows;
            return known && g.v.extents[0] <= most_rows && g.v.extents[2] <= most_rows &&
                           reach_of_pool(g, p.pages).lies_in(g.v.data, arena)
                       ? g
                       : sound;
        };
        const view k = odd(memory), v = odd(more);
        done(access::writes, [&] {
            return kvtrim_moves_run(moves.handle, &k.v, in.chance(64) ? nullptr : &v.v, context.get(in));
        });
    }
    static reach reach_of_pool(view g, index_t pages) {
        if (g.v.layout != KVTRIM_PAGED_PER_HEAD) { g.v.layout = KVTRIM_PAGED; }
        g.indices.clear();
        return reach_of(g, pages);
    }

    // ---- States ----

    void make_states() {
        const auto replace = [&](auto& state, auto&& create) {
            std::remove_reference_t<decltype(state.handle)> made = nullptr;
            const bool is_made = ok(create(&made));
            FUZZ_CHECK(is_made == (made != nullptr));
            if (is_made) { state.reset(), state.handle = made; }
            return is_made;
        };
        const index_t h = asked(in, heads, most_rows, most_heads + 1);
        replace(positions, [&](auto** s) { return kvtrim_positions_create(h, s); });
        replace(running,
                [&](auto** s) { return kvtrim_running_create(h, asked(in, in.between(0, 3), 16, 4097), s); });
        const auto loss = static_cast<std::int32_t>(in.hostile(in.between(0, 2), 8));
        const index_t g = asked(in, heads, most_rows, most_heads + 1), t = asked(in, tokens);
        replace(replay, [&](auto** s) { return kvtrim_replay_create(g, t, loss, s); });
        const kvtrim_rope rope = make_rope();
        replace(means, [&](auto** s) {
            return kvtrim_means_create(asked(in, heads * group, most_rows, most_heads + 1), asked(in, dim),
                                       &rope, s);
        });
        replace(norms, [&](auto** s) { return kvtrim_norms_create(h, s); });
        replace(newest, [&](auto** s) {
            return kvtrim_queries_create(asked(in, heads * group, most_rows, most_heads + 1), asked(in, 2),
                                         asked(in, dim), asked(in, 1),
                                         static_cast<std::int32_t>(in.hostile(in.between(0, 2), 8)), s);
        });
        replace(profile, [&](auto** s) { return kvtrim_profile_create(s); });
        replace(statistics, [&](auto** s) {
            return kvtrim_statistics_create(asked(in, heads * group, most_rows, most_heads + 1),
                                            asked(in, dim), in.hostile(0), s);
        });
        if (positions.handle == nullptr || running.handle == nullptr) { return; }
        done(access::reads, [&] { return kvtrim_positions_append(positions.handle, asked(in, tokens)); });
        done(access::reads, [&] { return kvtrim_running_append(running.handle, asked(in, tokens)); });
        done(access::reads, [&] {
            return kvtrim_statistics_add(statistics.get(in), &layers[0].queries.v, context.get(in));
        });
    }

    // The bytes of a state, or others, read back.
    template <class Handle>
    void restore(Handle* state, kvtrim_status (*save)(const Handle*, void*, int64_t, int64_t*),
                 kvtrim_status (*read)(Handle*, const void*, int64_t)) {
        bytes all = saved(state, save);
        for (index_t n = in.between(0, 2); n > 0 && !all.empty(); --n) {
            all[static_cast<std::size_t>(in.between(0, std::ssize(all) - 1))] = std::byte{in.byte()};
        }
        if (in.chance(16)) { all.resize(static_cast<std::size_t>(in.between(0, 255))); }
        const index_t count = std::min(std::ssize(all), in.hostile(std::ssize(all), 4));
        if (done(access::reads, [&] { return read(state, in.chance(4) ? nullptr : all.data(), count); })) {
            const bytes again = saved(state, save);
            FUZZ_CHECK(ok(read(state, again.data(), std::ssize(again))) && saved(state, save) == again);
        }
        index_t needed = 0;
        const index_t room = std::min<index_t>(std::ssize(out), in.hostile(std::ssize(out), 32));
        done(access::reads, [&] { return save(state, in.chance(4) ? nullptr : out.data(), room, &needed); });
    }
    void use_positions() {
        kvtrim_positions* const p = positions.get(in);
        const kvtrim_rope rope = make_rope();
        const index_t count = asked(in, in.between(0, 3));
        switch (in.between(0, 4)) {
        case 0:
            done(access::reads, [&] { return kvtrim_positions_append(p, count); });
            break;
        case 1:
            done(access::reads, [&] { return kvtrim_positions_rollback(p, count); });
            break;
        case 2:
            done(access::reads, [&] { return kvtrim_positions_compact(p, plans[0].get(in)); });
            break;
        case 3:
            done(access::writes, [&] {
                return kvtrim_positions_close_up(p, &layers[0].keys.v, &rope, count, context.get(in));
            });
            break;
        default:
            restore(p, kvtrim_positions_save, kvtrim_positions_restore);
        }
        const index_t head = in.hostile(0);
        const kvtrim_ints text = kvtrim_positions_text(p, head), rotary = kvtrim_positions_rotary(p, head);
        FUZZ_CHECK(text.count == rotary.count && std::is_sorted(text.data, text.data + text.count));
        FUZZ_CHECK(text.count == 0 || (text.data[text.count - 1] < kvtrim_positions_seen(p) &&
                                       rotary.data[text.count - 1] < kvtrim_positions_next(p)));
    }
    void use_running() {
        kvtrim_running* const r = running.get(in);
        const index_t count = asked(in, in.between(0, 3));
        call_layers c;
        const kvtrim_request request = make_request();
        const index_t rows = asked(in, heads), columns = asked(in, tokens);
        switch (in.between(0, 5)) {
        case 0:
            done(access::reads, [&] { return kvtrim_running_append(r, count); });
            break;
        case 1:
            done(access::reads, [&] { return kvtrim_running_rollback(r, count); });
            break;
        case 2:
            done(access::reads, [&] { return kvtrim_running_compact(r, plans[0].get(in)); });
            break;
        case 3:
            fill(c);
            done(access::reads,
                 [&] { return kvtrim_running_update(r, c.all.data(), &request, context.get(in)); });
            break;
        case 4: { // most_rows * most_rows numbers are there
            const bool is_small = rows <= most_rows && columns <= most_rows;
            const float* const attention = in.chance(4) || !is_small ? nullptr : weights.data();
            done(access::reads,
                 [&] { return kvtrim_running_add(r, attention, rows, columns, in.hostile(1)); });
            break;
        }
        default:
            restore(r, kvtrim_running_save, kvtrim_running_restore);
        }
        index_t n = -1;
        const float* const sums = kvtrim_running_sums(r, in.hostile(0), &n);
        for (index_t i = 0; i < n; ++i) { FUZZ_CHECK(sums[i] == sums[i] || sums[i] != sums[i]); }
        FUZZ_CHECK(n >= 0);
    }
    void use_replay() {
        call_layers c;
        fill(c);
        const kvtrim_request request = make_request();
        kvtrim_replay* const r = replay.get(in);
        switch (in.between(0, 6)) {
        case 4:
            return restore(r, kvtrim_replay_save, kvtrim_replay_restore);
        case 5:
            done(access::reads, [&] {
                return kvtrim_replay_add_part(r, c.all.data(), &request, in.hostile(0), in.hostile(tokens),
                                              in.hostile(1), context.get(in));
            });
            break;
        case 6:
            done(access::reads, [&] { return kvtrim_replay_weigh(r, norms.get(in)); });
            break;
        case 0:
            done(access::reads,
                 [&] { return kvtrim_replay_add(r, c.all.data(), &request, context.get(in)); });
            break;
        case 1:
            done(access::reads, [&] {
                return kvtrim_replay_add_own(r, c.all.data(), &request, in.hostile(1), context.get(in));
            });
            break;
        case 2:
            done(access::reads, [&] { return kvtrim_replay_append(r, asked(in, 1)); });
            break;
        case 3:
            done(access::reads, [&] { return kvtrim_replay_compact(r, plans[0].get(in)); });
            break;
        default:
            done(access::reads, [&] {
                return kvtrim_replay_scores(r, in.hostile(0), in.chance(4) ? nullptr : out.data(),
                                            std::min(std::ssize(out), in.hostile(std::ssize(out))));
            });
        }
    }
    // Tables of queries and scores, and what is kept beside tokens.
    void use_tables() {
        call_layers c;
        fill(c);
        const kvtrim_request r = make_request();
        const kvtrim_view* const q = in.chance(4) ? nullptr : &layers[0].queries.v;
        const index_t count = asked(in, in.between(0, 3));
        switch (in.between(0, 11)) {
        case 0:
            done(access::reads,
                 [&] { return kvtrim_statistics_add(statistics.get(in), q, context.get(in)); });
            break;
        case 1:
            return restore(statistics.get(in), kvtrim_statistics_save, kvtrim_statistics_restore);
        case 2:
            done(access::reads, [&] { return kvtrim_means_add(means.get(in), q, context.get(in)); });
            break;
        case 3:
            return restore(means.get(in), kvtrim_means_save, kvtrim_means_restore);
        case 4:
            add_to_profile(c, r);
            break;
        case 5:
            return restore(profile.get(in), kvtrim_profile_save, kvtrim_profile_restore);
        case 6: {
            const index_t held = kvtrim_queries_held(newest.handle);
            if (done(access::reads, [&] { return kvtrim_queries_append(newest.get(in), q); })) {
                const index_t now = kvtrim_queries_held(newest.handle);
                FUZZ_CHECK(now >= held && (q->layout != KVTRIM_STRIDED || now <= held + q->extents[1]));
            }
            break;
        }
        case 7: {
            kvtrim_view shown = {};
            if (ok(kvtrim_queries_view(newest.get(in), in.hostile(0), &shown))) {
                FUZZ_CHECK(ok(kvtrim_view_validate(&shown)) &&
                           shown.extents[1] <= kvtrim_queries_held(newest.handle));
            }
            break;
        }
        case 8: {
            const index_t held = kvtrim_queries_held(newest.handle);
            if (done(access::reads, [&] { return kvtrim_queries_rollback(newest.get(in), count); })) {
                FUZZ_CHECK(kvtrim_queries_held(newest.handle) == held - count);
            }
            return restore(newest.get(in), kvtrim_queries_save, kvtrim_queries_restore);
        }
        case 9:
            done(access::reads, [&] {
                return kvtrim_norms_append(norms.get(in), c.all.data(), asked(in, tokens), context.get(in));
            });
            read_norms();
            break;
        case 10:
            done(access::reads, [&] { return kvtrim_norms_rollback(norms.get(in), count); });
            done(access::reads, [&] { return kvtrim_norms_compact(norms.get(in), plans[0].get(in)); });
            break;
        default:
            restore(norms.get(in), kvtrim_norms_save, kvtrim_norms_restore);
        }
    }
    // One prompt more, of as many rows as those before.
    void add_to_profile(const call_layers& c, const kvtrim_request& r) {
        kvtrim_profile* const p = profile.get(in);
        const index_t prompts = kvtrim_profile_prompts(p), rows = kvtrim_profile_rows(p);
        if (done(access::reads, [&] {
                return kvtrim_profile_add(p, policy.get(in), c.all.data(), c.count, &r, context.get(in));
            })) {
            FUZZ_CHECK(kvtrim_profile_prompts(p) == prompts + 1 && kvtrim_profile_rows(p) > 0 &&
                       (rows == 0 || kvtrim_profile_rows(p) == rows));
        }
    }
    // As many as it says can be read, of any head.
    void read_norms() {
        index_t held = -1;
        const float* const row = kvtrim_norms_of_head(norms.get(in), in.hostile(0), &held);
        FUZZ_CHECK(held >= 0 && std::count(row, row + held, -1.f) == 0);
    }
    // One token set for all heads, its edits, and tables of pages and moves.
    void use_cells() {
        call_layers c;
        fill(c);
        const kvtrim_request r = make_request();
        owner<kvtrim_cells> cells{kvtrim_cells_destroy};
        const auto fold = static_cast<std::int32_t>(in.hostile(in.between(0, 2), 8));
        if (ok(kvtrim_cells_create(&r, asked(in, tokens), fold, &cells.handle))) {
            done(access::reads, [&] {
                return kvtrim_cells_add(cells.get(in), policy.get(in), c.all.data(), context.get(in));
            });
            done(access::reads, [&] { return kvtrim_cells_plan(cells.get(in), plans[1].get(in)); });
        }
        int32s at;
        for (index_t i = 0; i < tokens; ++i) {
            at.push_back((i == 0 ? 0 : at.back()) + static_cast<std::int32_t>(in.between(0, 2)));
        }
        damage(in, at);
        kvtrim_cell_edit e = {sizeof e, nullptr, in.hostile(tokens, 8), in.hostile(-1), 0, 0, -1, -1};
        e.close = static_cast<std::int32_t>(in.hostile(in.between(0, 2), 8));
        e.positions = counted(at, e.position_count);
        damage_size(in, e);
        std::vector<index_t> list(256);
        index_t needed = -1;
        const index_t room = std::min<index_t>(256, in.hostile(256));
        const bool edited = done(access::reads, [&] {
            return kvtrim_edit_cells(plans[1].get(in), &e, in.chance(4) ? nullptr : list.data(), room,
                                     &needed);
        });
        FUZZ_CHECK(edited == (e.kept_cells != -1) && (!edited || needed % 3 == 0));
        done(access::reads, [&] {
            return kvtrim_plan_whole_positions(plans[1].get(in), e.positions, e.position_count,
                                               plans[0].get(in));
        });
        use_flat_and_mirror();
        const index_t page_tokens = in.hostile(in.between(1, 4));
        done(access::reads, [&] {
            return kvtrim_plan_removed(plans[0].get(in), in.hostile(0), asked(in, tokens, 64), list.data(),
                                       room, &needed);
        });
        done(access::reads, [&] {
            const index_t count = in.hostile(tokens), pages = in.hostile(4);
            return kvtrim_score_pages(counted(weights, count), count, page_tokens,
                                      static_cast<std::int32_t>(in.hostile(in.between(0, 2), 8)),
                                      pages > std::ssize(out) ? nullptr : out.data(), pages);
        });
        done(access::reads, [&] {
            return kvtrim_expand_pages(plans[0].get(in), page_tokens, asked(in, tokens), plans[1].get(in),
                                       context.get(in));
        });
        const kvtrim_plan* const moved[] = {plans[0].get(in), plans[1].get(in)};
        const index_t first[] = {in.hostile(0), in.hostile(0)};
        int32s offsets(3), sources(256);
        const index_t places = std::min<index_t>(256, in.hostile(256));
        done(access::reads, [&] {
            return kvtrim_move_sources(moved, asked(in, in.between(0, 2), 2, most_heads + 1), first,
                                       offsets.data(), sources.data(), places, &needed);
        });
        make_page_table(page_tokens);
    }
    // What is written is a table of what was given; nothing else is written.
    void make_page_table(index_t page_tokens) {
        const index_t requests = asked(in, in.between(0, 2), 3), most_pages = asked(in, in.between(0, 3), 4);
        int32s pages{3, 1, 2, 0, 4, 5, 7, 6, 8, 9, 11, 10}, lengths{2, 5, 1};
        damage(in, pages), damage(in, lengths);
        int32s indptr(4, -1), indices(12, -1), last_page(3, -1);
        index_t needed = -1;
        const index_t room = std::min<index_t>(12, in.hostile(12));
        if (ok(kvtrim_page_table(in.chance(4) ? nullptr : pages.data(), requests, most_pages,
                                 in.chance(4) ? nullptr : lengths.data(), page_tokens, indptr.data(),
                                 indices.data(), room, last_page.data(), &needed))) {
            FUZZ_CHECK(indptr[0] == 0 && indptr[static_cast<std::size_t>(requests)] == needed);
            for (index_t r = 0; r < requests; ++r) {
                const auto at = static_cast<std::size_t>(r);
                const index_t count = indptr[at + 1] - indptr[at];
                const index_t tokens_of_table = count == 0 ? 0 : (count - 1) * page_tokens + last_page[at];
                FUZZ_CHECK(tokens_of_table == lengths[at]);
                FUZZ_CHECK(std::equal(indices.begin() + indptr[at], indices.begin() + indptr[at + 1],
                                      pages.begin() + r * most_pages));
            }
        } else {
            FUZZ_CHECK(indices == int32s(12, -1) && indptr == int32s(4, -1));
        }
    }
    // Tables that are made for this step: a refused call leaves them as they were.
    void use_flat_and_mirror() {
        owner<kvtrim_flat> flat{kvtrim_flat_destroy};
        owner<kvtrim_mirror> mirror{kvtrim_mirror_destroy};
        const auto tables = [&] {
            bytes all;
            for (const kvtrim_ints list : {kvtrim_flat_begins(flat.handle), kvtrim_flat_lengths(flat.handle),
                                           kvtrim_mirror_positions(mirror.handle)}) {
                append_ints(all, list);
            }
            return all;
        };
        const auto kept_if_refused = [&](auto&& call) {
            const bytes before = tables();
            const bool is_done = ok(call());
            FUZZ_CHECK(is_done || tables() == before);
            return is_done;
        };
        std::vector<index_t> list(64), cells{2, 0, 5, 3};
        index_t needed = -1;
        static_cast<void>(
            ok(kvtrim_flat_create(asked(in, heads, most_rows, most_heads + 1), 0, &flat.handle)));
        static_cast<void>(ok(kvtrim_mirror_create(asked(in, 8), &mirror.handle)));
        kept_if_refused([&] { return kvtrim_flat_assign(flat.get(in), plans[0].get(in)); });
        for (int i = 0; i < 2; ++i) {
            kept_if_refused([&] { return kvtrim_flat_append(flat.get(in), in.hostile(1)); });
            const index_t rows = in.hostile(64), room = std::min<index_t>(64, in.hostile(64));
            if (kept_if_refused(
                    [&] { return kvtrim_flat_spread(flat.get(in), rows, list.data(), room, &needed); })) {
                for (index_t m = 0; m < needed; m += 3) {
                    const auto at = static_cast<std::size_t>(m);
                    FUZZ_CHECK(list[at] >= 0 && list[at + 1] >= 0 && list[at + 1] + list[at + 2] <= rows);
                }
            }
            kept_if_refused([&] { return kvtrim_flat_compact(flat.get(in), plans[in.chance(128)].get(in)); });
        }
        int32s at{0, 1, 2, 3};
        damage(in, cells), damage(in, at);
        const auto sequence = [&] { return static_cast<std::int32_t>(in.hostile(in.between(0, 1), 8)); };
        const index_t count = std::min<index_t>(4, in.hostile(4));
        kept_if_refused(
            [&] { return kvtrim_mirror_fill(mirror.get(in), sequence(), cells.data(), at.data(), count); });
        kept_if_refused([&] { return kvtrim_mirror_copy(mirror.get(in), sequence(), sequence()); });
        kept_if_refused([&] {
            return kvtrim_mirror_shift(mirror.get(in), sequence(), in.hostile(1), in.hostile(-1),
                                       in.hostile(1));
        });
        kept_if_refused(
            [&] { return kvtrim_mirror_remove(mirror.get(in), sequence(), in.hostile(0), in.hostile(2)); });
        kept_if_refused([&] { return kvtrim_mirror_restore(mirror.get(in), sequence()); });
        int32s listed(8);
        index_t found = -1;
        const index_t places = std::min<index_t>(8, in.hostile(8));
        const bool is_listed =
            ok(kvtrim_mirror_list(mirror.get(in), sequence(), 0, listed.data(), places, &found, &needed));
        FUZZ_CHECK(is_listed == (found != -1));
        const index_t all = kvtrim_mirror_positions(mirror.handle).count,
                      used = kvtrim_mirror_used(mirror.handle, sequence());
        FUZZ_CHECK(used >= 0 && used <= kvtrim_mirror_end_of_use(mirror.handle) &&
                   kvtrim_mirror_end_of_use(mirror.handle) <= all);
        kvtrim_view shown;
        kvtrim_view_init(&shown, KVTRIM_F32, arena.data(), 1, 0, 1);
        damage_size(in, shown);
        if (ok(kvtrim_flat_view(flat.get(in), in.chance(4) ? nullptr : &shown))) {
            FUZZ_CHECK(shown.layout == KVTRIM_RAGGED &&
                       shown.extents[0] == kvtrim_flat_lengths(flat.handle).count &&
                       ok(kvtrim_view_validate(&shown)));
        }
    }
    void use_cascade() {
        call_layers c;
        fill(c);
        const kvtrim_request r = make_request();
        if (cascade.handle == nullptr || in.chance(32)) {
            kvtrim_cascade* made = nullptr;
            const kvtrim_status s =
                kvtrim_cascade_create(policy.get(in), c.all.data(), &r, asked(in, 2), &made);
            FUZZ_CHECK(ok(s) == (made != nullptr));
            if (made != nullptr) { cascade.reset(), cascade.handle = made; }
        }
        const kvtrim_cascade* const pushed = cascade.handle;
        if (done(access::reads,
                 [&] { return kvtrim_cascade_push(cascade.get(in), c.all.data(), context.get(in)); })) {
            FUZZ_CHECK(kvtrim_cascade_layers(pushed) > 0);
        }
        std::int32_t changed = -1;
        const bool planned = done(access::reads, [&] {
            return kvtrim_cascade_plan(cascade.get(in), in.hostile(0), plans[0].get(in), &changed);
        });
        FUZZ_CHECK(planned == (changed != -1));
    }
    void use_interval() {
        call_layers c;
        fill(c);
        const kvtrim_request r = make_request();
        kvtrim_interval i = {sizeof i, policy.get(in), in.chance(4) ? nullptr : &r, in.hostile(2),
                             in.hostile(0)};
        damage_size(in, i);
        std::int32_t due = -1;
        const bool admitted = done(access::reads, [&] {
            return kvtrim_interval_admits(&i, positions.get(in), in.hostile(1), &due);
        });
        FUZZ_CHECK(admitted == (due != -1));
        if (done(access::reads,
                 [&] { return kvtrim_interval_plan(&i, c.all.data(), plans[0].handle, context.get(in)); })) {
            check_plan(plans[0].handle, c.all[0]);
        }
    }

    // ---- Attention, and rows as they are read ----

    // STRIDED, of floats or halves, or odd.
    view make_output() { return make_view(heads * group, queries, dim, 18 << 10, !in.chance(32)); }
    void attend() {
        call_layers c;
        fill(c);
        const kvtrim_request r = make_request();
        const view o = make_output();
        const index_t count =
            std::min(std::ssize(out), in.hostile(in.chance(128) ? 0 : heads * group * queries));
        float* const sums = count <= 0 || in.chance(4) ? nullptr : out.data();
        done(access::writes,
             [&] { return kvtrim_ragged_attention(c.all.data(), &r, &o.v, sums, count, context.get(in)); });
    }
    void prune() {
        call_layers c;
        fill(c);
        kvtrim_pruning p;
        kvtrim_pruning_init(&p);
        p.segment_tokens = in.hostile(in.between(1, 4)), p.block_tokens = in.hostile(in.between(1, 4));
        p.budget_tokens = in.hostile(in.between(1, 9)), p.dense_below_tokens = in.hostile(in.between(0, 2));
        p.dense_layers = in.hostile(0), p.sink_blocks = in.hostile(1), p.local_blocks = in.hostile(1);
        p.estimate = static_cast<std::int32_t>(in.hostile(in.between(0, 2), 8));
        p.first_fused_layer = in.hostile(0);
        if (in.chance(16)) { p.previous_weight = static_cast<double>(in.value()); }
        damage_size(in, p);
        const index_t first = in.hostile(tokens - queries);
        if (done(access::reads, [&] {
                return kvtrim_prefill_plan(prefill.get(in), &p, c.all.data(), in.hostile(0), first,
                                           in.chance(128) ? 1 : 0, context.get(in));
            })) {
            const kvtrim_ints row = kvtrim_prefill_blocks(prefill.handle, in.hostile(0), in.hostile(0));
            FUZZ_CHECK(std::is_sorted(row.data, row.data + row.count));
        }
        const kvtrim_request r = make_request();
        const view o = make_output();
        done(access::writes, [&] {
            return kvtrim_prefill_attention(prefill.get(in), c.all.data(), &r, &o.v, nullptr, in.hostile(0),
                                            context.get(in));
        });
    }
    void read() {
        const view v = make_view(heads, tokens, dim, 0);
        const index_t count = in.hostile(1), room = std::min(std::ssize(out), in.hostile(std::ssize(out)));
        done(access::reads, [&] {
            return kvtrim_view_read(&v.v, in.hostile(0), in.hostile(0), count,
                                    in.chance(4) ? nullptr : out.data(), room);
        });
        int32s cells(16), at{3, 1, 2, 0}, uses{1, 2, 1, 0};
        damage(in, at), damage(in, uses);
        index_t listed = -1, shared = -1;
        const index_t have = in.hostile(4), places = std::min<index_t>(16, in.hostile(16));
        const kvtrim_status s =
            kvtrim_list_cells(counted(at, have), counted(uses, have), have, in.chance(128) ? 1 : 0,
                              cells.data(), places, &listed, &shared);
        FUZZ_CHECK(ok(s) == (listed != -1) && (ok(s) || cells == int32s(16)));
    }

    fuzz::input& in;
    bytes arena;
    std::vector<float> out;
    index_t heads = 0, group = 0, tokens = 0, queries = 0, dim = 0;
    std::int32_t needs = 0;
    struct layer_views {
        view keys, values, queries, projection, scores;
    };
    std::array<layer_views, 2> layers;
    std::vector<float> logits = std::vector<float>(8, 0.5f), frequencies = {1, 0.5f, 0.25f, 0.125f},
                       weights = std::vector<float>(most_rows * most_rows, 0.25f);
    std::vector<double> shares = {0.5, 0.5};
    owner<kvtrim_context> context{kvtrim_context_destroy};
    owner<kvtrim_policy> policy{kvtrim_policy_destroy};
    std::array<owner<kvtrim_plan>, 2> plans{owner<kvtrim_plan>{kvtrim_plan_destroy},
                                            owner<kvtrim_plan>{kvtrim_plan_destroy}};
    owner<kvtrim_scores> scores{kvtrim_scores_destroy};
    owner<kvtrim_moves> moves{kvtrim_moves_destroy};
    owner<kvtrim_prefill> prefill{kvtrim_prefill_destroy};
    owner<kvtrim_positions> positions{kvtrim_positions_destroy};
    owner<kvtrim_running> running{kvtrim_running_destroy};
    owner<kvtrim_replay> replay{kvtrim_replay_destroy};
    owner<kvtrim_statistics> statistics{kvtrim_statistics_destroy};
    owner<kvtrim_means> means{kvtrim_means_destroy};
    owner<kvtrim_norms> norms{kvtrim_norms_destroy};
    owner<kvtrim_projection> projection{kvtrim_projection_destroy};
    owner<kvtrim_queries> newest{kvtrim_queries_destroy};
    owner<kvtrim_profile> profile{kvtrim_profile_destroy};
    owner<kvtrim_cascade> cascade{kvtrim_cascade_destroy};
};

} // namespace

void run(fuzz::input& in) {
    caller c(in);
    for (int step = 0; step < 16 && !in.is_empty(); ++step) { c.step(); }
}
