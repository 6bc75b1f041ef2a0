// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "calibrate.hpp"

#include <kvtrim/policy/replay.hpp>

#include <stdexcept>

namespace lm {

std::vector<token_id> replay_lead(const tokenizer& words) {
    return words.encode("\n\nRepeat the previous context exactly.\n");
}

kvtrim::row_profile calibrate(const llama_model& model, std::span<const token_id> text,
                              const std::vector<token_id>& lead) {
    session sequence(model, cache_format::f32, std::ssize(text), {lead, nullptr});
    (void)sequence.prefill(text, 1);
    const kvtrim::token_loss loss = kvtrim::token_loss::output_square_sum;
    const session::layer_scores scores = sequence.score(scoring_pass::replay, {&loss, 1}).front();
    kvtrim::row_profile profile;
    kvtrim::status added;
    kvtrim::growing_workspace memory;
    std::vector<kvtrim::keep_plan> plans(scores.size());
    // The first and the newest tokens stay in any cut.
    const kvtrim::eviction_request request{
        .budget = kvtrim::per_head(std::ssize(text) / 2),
        .protect = {.sink_tokens = 4, .window_tokens = std::min<index_t>(32, std::ssize(text) / 4)}};
    const kvtrim::status planned = kvtrim::layer_replay().plan(
        std::span<const kvtrim::replay_scores>(scores), request, std::span<kvtrim::keep_plan>(plans), memory,
        kvtrim::serial_executor{}, [&](const kvtrim::plan_progress& at) {
            if (at.stage == kvtrim::plan_stage::scored) { added = profile.add(at.scores.importance_rows()); }
        });
    for (const kvtrim::status& s : {planned, added}) {
        if (!s.ok()) { throw std::runtime_error(s.what()); }
    }
    return profile;
}

} // namespace lm
