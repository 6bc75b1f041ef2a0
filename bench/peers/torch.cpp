// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Torch stays in a process of its own that waits until it is asked for one repetition of one row:
//
//   it, at first    name <tab> row of ours beside it <tab> note      one line per row, then an empty line
//   we              name
//   it              seconds <space> bytes of extra memory

#include "../row.hpp"
#include "peers.hpp"

#include <array>
#include <cstdio>
#include <fcntl.h>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

namespace bench {

namespace {

class peer_process {
  public:
    explicit peer_process(const std::string& command) {
        std::array<int, 2> in{}, out{};
        // Closed in other peers: one that held the end of another's input open would keep it from ending.
        if (pipe2(in.data(), O_CLOEXEC) != 0 || pipe2(out.data(), O_CLOEXEC) != 0) {
            throw std::runtime_error("no pipe for a peer");
        }
        child_ = fork();
        if (child_ == 0) {
            dup2(in[0], STDIN_FILENO);
            dup2(out[1], STDOUT_FILENO);
            execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
            _exit(127);
        }
        close(in[0]);
        close(out[1]);
        to_ = fdopen(in[1], "w");
        from_ = fdopen(out[0], "r");
        if (child_ < 0 || to_ == nullptr || from_ == nullptr) {
            throw std::runtime_error("cannot start: " + command);
        }
    }
    ~peer_process() { // the end of its input ends it
        std::fclose(to_);
        std::fclose(from_);
        waitpid(child_, nullptr, 0);
    }
    peer_process(const peer_process&) = delete;
    peer_process& operator=(const peer_process&) = delete;

    void write_line(const std::string& line) {
        std::fputs((line + "\n").c_str(), to_);
        std::fflush(to_);
    }
    // False where the process has ended.
    bool read_line(std::string& line) {
        line.clear();
        for (int c = std::fgetc(from_); c != '\n'; c = std::fgetc(from_)) {
            if (c == EOF) { return false; }
            line += static_cast<char>(c);
        }
        return true;
    }

  private:
    pid_t child_ = -1;
    std::FILE* to_ = nullptr;
    std::FILE* from_ = nullptr;
};

void run_remotely(benchmark::State& state, peer_process& peer, const std::string& name,
                  const std::string& beside, const std::string& note) {
    double bytes = 0;
    for (auto _ : state) {
        std::string answer;
        peer.write_line(name);
        double seconds = 0;
        if (!peer.read_line(answer) || !(std::istringstream(answer) >> seconds >> bytes)) {
            state.SkipWithError("the peer gave no answer");
            break;
        }
        state.SetIterationTime(seconds);
    }
    describe(state, {.workspace_bytes = bytes, .note = note, .beside = beside, .level = "torch's"});
}

} // namespace

void add_torch_rows(const std::string& command) {
    const auto peer = std::make_shared<peer_process>(command);
    std::string line;
    bool has_rows = false;
    while (peer->read_line(line) && !line.empty()) {
        std::istringstream fields(line);
        std::string name, beside, note;
        std::getline(fields, name, '\t');
        std::getline(fields, beside, '\t');
        std::getline(fields, note);
        const auto row = [=](benchmark::State& state) { run_remotely(state, *peer, name, beside, note); };
        benchmark::RegisterBenchmark(name.c_str(), row)
            ->Unit(benchmark::kMillisecond)
            ->UseManualTime()
            ->Iterations(1);
        has_rows = true;
    }
    if (!has_rows) { throw std::runtime_error("offers no rows: " + command); }
}

} // namespace bench
