#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Mutation testing of the core: do the unit tests notice when one thing in a header is wrong?

Copies of the headers get all mutants at once, each behind a number (mutants.hpp); the tests are compiled with them one
time, and run once per mutant, with its number in the environment. Operators:

  relation   < and <=, > and >=, == and != exchanged            negate   the condition of an if or a while
  operand    the right side of && or || left out                statement  an assignment or a call left out
  number     + 1 and - 1 become + 0 and + 2; = 0 becomes 1      extremum   std::min and std::max exchanged

A mutant is killed by a test that fails, crashes, or runs past its time. One run of all tests says which of them run through
which mutants; a mutant then faces those alone, the fast ones and those that mirror its header first. A mutant that does not
compile is taken out and counted apart. Results are kept in build/mutate/results.tsv, by place and text, so that a run that
was stopped goes on; survivors that are understood stand, with the reason, in tests/mutate/equivalent.tsv.

The mutants of a header have ranks, the same in every run: --from N leaves out those below N. A sample of ranks that were never
run, --from and --per-header above all earlier ones, says what share of mutants is killed that no test was written for.

  mutate.py [--per-header N] [--from N] [--all] [--again] [--thorough] [--headers PATTERN] [--seconds S] [--summary FILE]
"""

import argparse
import fnmatch
import hashlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "mutate"
CORE = ("score", "allocate", "rerank", "plan", "compact", "decode")
MOST_OF_HEADER = 512
MORE_TESTS = ("properties", "regression") # compiled where they are run: --thorough


# ---- Mutants of one header ---------------------------------------------------------------------------------------------

def masked(text):
    """The text with comments, literals in quotes and preprocessor lines blanked, at the same offsets."""
    blank = lambda m: re.sub(r"[^\n]", " ", m.group())
    text = re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', blank, text, flags=re.S)
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.M)


def closing(text, at):
    """Offset of the bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(text)):
        if text[i] in "([{":
            depth += 1
        elif text[i] in ")]}":
            depth -= 1
            if depth == 0:
                return i
    raise ValueError("no closing bracket")


def operand_end(text, at):
    """Where the right operand of && or || that begins at `at` ends."""
    depth = 0
    for i in range(at, len(text)):
        c = text[i]
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
            if depth < 0:
                return i
        elif depth == 0 and (c in ",;" or text[i:i + 3] in ("&& ", "|| ", " ? ", " : ", "&&\n", "||\n")):
            return i
    raise ValueError("no end of the operand")


def compile_time_spans(text):
    """Places that are constant expressions or types by their form."""
    spans = []
    for m in re.finditer(r"\bstatic_assert\s*\(|\bif constexpr\s*\(|\brequires\s*\(|\bdecltype\s*\(|\bnoexcept\s*\(", text):
        end = closing(text, m.end() - 1)
        body = re.compile(r"\)\s*\{").match(text, end)
        spans.append((m.start(), closing(text, body.end() - 1) if body and m.group().startswith("requires") else end))
    for m in re.finditer(r"\brequires\s*\{", text):
        spans.append((m.start(), closing(text, m.end() - 1)))
    for m in re.finditer(r"\bconcept\b[^;]*;|\btemplate\s*<[^\n]*|\brequires\s[^({;]*|\b(?:using|typedef)\b[^;]*;|\boperator\b[^\n]*"
                         r"|\bstatic constexpr\b[^;{]*;|\binline constexpr\b[^;{]*;|\bcase\b[^:]*:", text):
        spans.append((m.start(), m.end()))
    return spans


RELATIONS = {"<": ("less", "less_equal"), "<=": ("less_equal", "less"), ">": ("greater", "greater_equal"),
             ">=": ("greater_equal", "greater"), "==": ("equal", "not_equal"), "!=": ("not_equal", "equal")}
BACK = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "!=", "!=": "=="}


class Mutant:
    def __init__(self, header, line, column, kind, what, source):
        self.header, self.line, self.column, self.kind, self.what, self.source = header, line, column, kind, what, source
        self.id = 0

    @property
    def key(self):
        return f"{self.header}\t{self.kind}\t{self.what}\t{self.source}\t{self.nth}"

    def __str__(self):
        return f"{self.header}:{self.line}:{self.column}: {self.kind}: {self.what}: {self.source}"


def sites(text):
    """(begin, end, kind, [descriptions], make(ids, original)) for every place that has mutants."""
    m_text = masked(text)
    constant = compile_time_spans(m_text)
    fixed = lambda at: any(b <= at < e for b, e in constant)
    found = []

    for m in re.finditer(r"(?<=\s)(<=|>=|==|!=|<|>)(?=\s)", m_text):
        if fixed(m.start()):
            continue
        op = m.group()
        name, other = RELATIONS[op]
        found.append((m.start(), m.end(), "relation", [f"{op} becomes {dict(zip([v[0] for v in RELATIONS.values()], RELATIONS))[other]}"],
                      lambda ids, s, op=op, name=name, other=other:
                      f"{op} kvtrim_mutants::relation<{ids[0]}, kvtrim_mutants::{name}, kvtrim_mutants::{other}>() {BACK[op]}"))

    for m in re.finditer(r"(?<=[\s])([+-]) 1\b(?![.\w'])", m_text):
        if fixed(m.start()):
            continue
        found.append((m.start(), m.end(), "number", [f"{m.group()} becomes {m.group(1)} 0", f"{m.group()} becomes {m.group(1)} 2"],
                      lambda ids, s, sign=m.group(1): f"{sign} kvtrim_mutants::number({ids[0]}, 1, 0, 2)"))
    for m in re.finditer(r"(?<![=<>!+*/|&-]) = 0(?=[;,])", m_text):
        if fixed(m.start()) or re.search(r"\bfloat|double|\bT\b", m_text[m_text.rfind("\n", 0, m.start()):m.start()]):
            continue
        found.append((m.start(), m.end(), "number", ["= 0 becomes = 1"],
                      lambda ids, s: f" = kvtrim_mutants::number({ids[0]}, 0, 1, 1)"))

    for m in re.finditer(r"\bstd::(min|max)(<[\w:]+>)?\(", m_text):
        if fixed(m.start()):
            continue
        other = "max" if m.group(1) == "min" else "min"
        found.append((m.start(), m.end(), "extremum", [f"std::{m.group(1)} becomes std::{other}"],
                      lambda ids, s, m=m: f"kvtrim_mutants::{m.group(1)}{m.group(2) or '<>'}{{{ids[0]}}}("))

    for m in re.finditer(r"\b(?:if|while) \(", m_text):
        if fixed(m.start()):
            continue
        begin, end = m.end(), closing(m_text, m.end() - 1)
        depth, cut = 0, begin
        for i in range(begin, end):
            depth += (m_text[i] in "([{") - (m_text[i] in ")]}")
            if depth == 0 and m_text[i] == ";":
                cut = i + 1
        condition = m_text[cut:end]
        if re.match(r"\s*(?:const\s+)?[\w:<>*&]+\s+(?:const\s+)?\w+\s*=[^=]", condition):
            continue
        found.append((cut, cut, "negate", ["the condition is negated"],
                      lambda ids, s: f" kvtrim_mutants::flip({ids[0]}, static_cast<bool>("))
        found.append((end, end, None, [], lambda ids, s: "))"))

    for m in re.finditer(r"(?<=\s)(&&|\|\|)(?=\s)", m_text):
        if fixed(m.start()) or m_text.startswith(" ...", m.end()): # a pack's
            continue
        end = operand_end(m_text, m.end())
        neutral = "kvtrim_mutants::on(%d) || (" if m.group() == "&&" else "!kvtrim_mutants::on(%d) && ("
        right = " ".join(text[m.end():end].split())
        found.append((m.end(), m.end(), "operand", [f"{m.group()} {right} is left out"],
                      lambda ids, s, neutral=neutral: " (" + neutral % ids[0]))
        found.append((end, end, None, [], lambda ids, s: "))"))

    stack = []
    begins = []
    for i, c in enumerate(m_text):
        if c in "([{":
            stack.append(c)
        elif c in ")]}":
            stack.pop()
        if c in ";{}" and stack and stack[-1] == "{":
            begins.append(i + 1)
    for at in begins:
        m = re.compile(r"\s*([^;{}]+);").match(m_text, at)
        if not m or fixed(m.start(1)) or m.group(1).count("(") != m.group(1).count(")"):
            continue
        statement = m.group(1)
        flat = statement
        while True:
            less = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", "", flat)
            if less == flat:
                break
            flat = less
        is_assignment = re.match(r"[\w.>*:-]+ (?:[+*/|&^-]|<<|>>)?= ", flat)
        is_step = re.match(r"(?:\+\+|--)[\w.]+$|[\w.]+(?:\+\+|--)$", flat)
        is_call = re.match(r"[a-z_][\w.:]*(?:<[\w:<>, ]+>)?\(", statement) and re.fullmatch(r"[\w.:<>, -]+", flat) and " " not in flat
        if re.match(r"(?:return|using|static_assert|assert|default|new|delete|goto)\b|[^=]* = (?:default|delete)$", statement) or "->" in flat:
            continue
        if is_assignment or is_step or is_call:
            found.append((m.start(1), m.start(1), "statement", ["the statement is left out"],
                          lambda ids, s: f"if (!kvtrim_mutants::on({ids[0]})) "))
    return found


def mutants_of(path, name):
    """All (site, mutants) of a header."""
    text = path.read_text()
    result = []
    seen = {}
    for begin, end, kind, descriptions, make in sites(text):
        line = text.count("\n", 0, begin) + 1
        column = begin - text.rfind("\n", 0, begin)
        source = text.splitlines()[line - 1].strip()
        own = []
        for what in descriptions:
            mutant = Mutant(name, line, column, kind, what, source)
            mutant.nth = seen[(kind, what, source)] = seen.get((kind, what, source), 0) + 1
            own.append(mutant)
        result.append(((begin, end, kind, make), own))
    return result


def instrument(path, places, out):
    text = path.read_text()
    # Closing parts are written before what opens at the same place, and outer openings before inner ones.
    edits = []
    for order, ((begin, end, kind, make), own) in enumerate(places):
        rank = 0 if kind is None else {"statement": 1, "negate": 2, "operand": 3}.get(kind, 4)
        edits.append((begin, rank, order, end, make([m.id for m in own], text[begin:end])))
    result, at = [], 0
    for begin, _, _, end, new in sorted(edits, key=lambda e: e[:3]):
        result += [text[at:begin], new]
        at = end
    out.parent.mkdir(parents=True, exist_ok=True)
    new_text = "".join(result) + text[at:]
    if not out.exists() or out.read_text() != new_text:
        out.write_text(new_text)


# ---- The program of all tests ------------------------------------------------------------------------------------------

def compile_command(source, out, compiler):
    has_mutants = source != BUILD / "kernels.cpp" # without them optimised: the tests spend their time there
    return [*compiler, "-std=c++20", "-O0" if has_mutants else "-O1", "-g0", "-w", "-ftemplate-depth=2000", "-ferror-limit=0",
            "-D_GLIBCXX_ASSERTIONS", "-DCATCH_CONFIG_FAST_COMPILE",
            "-DKVTRIM_COMPILED_KERNELS", "-include", str(ROOT / "tests/mutate/mutants.hpp"),
            f"-I{BUILD}/include", f"-I{ROOT}/include", f"-I{ROOT}/tests", "-isystem", "/usr/include/eigen3",
            "-MMD", "-MF", f"{out}.d", "-c", str(source), "-o", str(out)]


def is_current(out):
    if not out.exists() or not Path(f"{out}.d").exists():
        return False
    made = out.stat().st_mtime
    names = Path(f"{out}.d").read_text().replace("\\\n", " ").split(":", 1)[1].split()
    return all(Path(n).exists() and Path(n).stat().st_mtime <= made for n in names)


def build(headers, test_folders, skipped, compiler):
    """Compiles until no mutant stands where it does not compile. Returns all mutants that are in the program."""
    while True:
        mutants, places = [], {}
        for place, name in enumerate(headers): # numbers of its own: a change of one header leaves the others' objects as they are
            number = place * MOST_OF_HEADER
            kept = []
            for site, own in mutants_of(ROOT / "include/kvtrim" / name, name):
                for mutant in own: # counted where it is left out too: all others keep their numbers
                    number += 1
                    mutant.id = number
                if (name, text_line(name, site)) not in skipped:
                    mutants += own
                    kept.append((site, own))
            places[name] = kept
            instrument(ROOT / "include/kvtrim" / name, kept, BUILD / "include/kvtrim" / name)
        bad = set()
        objects = []
        sources = [ROOT / "tests/mutate/reached.cpp", ROOT / "tests/support/main.cpp", ROOT / "tests/support/named_policies.cpp", BUILD / "kernels.cpp"]
        sources += [s for f in test_folders for s in sorted((ROOT / "tests" / f).glob("*.cpp"))]
        for source in sources:
            out = BUILD / "objects" / (str(source.relative_to(ROOT)).replace("/", "_") + ".o")
            objects.append(str(out))
            if is_current(out):
                continue
            done = subprocess.run(compile_command(source, out, compiler), capture_output=True, text=True)
            if done.returncode:
                found = set(re.findall(rf"{re.escape(str(BUILD))}/include/kvtrim/([\w/.]+):(\d+):\d+: error", done.stderr))
                found |= set(re.findall(rf"{re.escape(str(BUILD))}/include/kvtrim/([\w/.]+):(\d+):\d+:\s+required from", done.stderr)
                             if not found else [])
                if not found:
                    sys.exit(f"{source} does not compile:\n{done.stderr[:4000]}")
                print("does not compile:", *sorted(f"{h}:{n}" for h, n in found), flush=True)
                bad |= {(h, int(n)) for h, n in found}
                break
        if not bad:
            program = BUILD / "tests"
            if not program.exists() or any(Path(o).stat().st_mtime > program.stat().st_mtime for o in objects):
                subprocess.run([*compiler, *objects, "-o", str(program)], check=True)
            return mutants
        before = len(skipped)
        for header, line in bad:
            skipped.add((header, line))
        if len(skipped) == before:
            sys.exit("a line does not compile without mutants either: " + str(bad))


def text_line(name, site):
    text = (ROOT / "include/kvtrim" / name).read_text()
    return text.count("\n", 0, site[0]) + 1


# ---- Runs --------------------------------------------------------------------------------------------------------------

def limits_of(seconds):
    """Memory, and the processor's time, which does not depend on what else runs there."""
    def set_limits():
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
    return set_limits


def run_tests(names, seconds, **environment):
    """'' if all pass, else how they failed."""
    selection = ",".join(re.sub(r'([\\,\[\]"])', r"\\\1", name) for name in names)
    try:
        done = subprocess.run([str(BUILD / "tests"), "--abort", *([selection] if names else [])], cwd=ROOT,
                              timeout=20 * seconds, env={**os.environ, **environment}, preexec_fn=limits_of(seconds),
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except subprocess.TimeoutExpired:
        return "time"
    if b"Invalid Filter" in done.stdout or b"No test" in done.stdout:
        sys.exit(f"no such tests: {selection}")
    if done.returncode < 0:
        return "time" if -done.returncode in (signal.SIGXCPU, signal.SIGKILL) else "crash"
    if done.returncode:
        failed = re.search(rb"\n-{20,}\n(.*)\n", done.stdout)
        return "test: " + (failed.group(1).decode(errors="replace").strip()[:90] if failed else "?")
    return ""


def tests_by_mutant():
    """Of each mutant the tests that run through it: (name, stem of its file, seconds), from a run of all of them."""
    log = BUILD / "reached.tsv"
    if not log.exists() or log.stat().st_mtime < (BUILD / "tests").stat().st_mtime:
        partial = BUILD / "reached.part"
        partial.unlink(missing_ok=True)
        if answer := run_tests([], 7200, KVTRIM_MUTANTS_REACHED=str(partial)):
            sys.exit(f"the tests fail without a mutant: {answer}")
        partial.rename(log)
    found = {}
    for line in log.read_text().splitlines():
        name, file, seconds, numbers = line.split("\t")
        for number in numbers.split():
            found.setdefault(int(number), []).append((name, Path(file).stem, float(seconds)))
    return found


def in_batches(tests, stem):
    """Fast tests first, those of the file that mirrors the header ten times as soon; so many in one process as take 3 s."""
    batches = [([], 0.0)]
    for name, file, seconds in sorted(tests, key=lambda t: t[2] * (0.1 if t[1] == stem else 1)):
        names, total = batches[-1]
        if names and total + seconds > 3:
            batches.append(([name], seconds))
        else:
            batches[-1] = (names + [name], total + seconds)
    return batches


def chosen(mutants, first, per_header):
    """A sample of each header's mutants, the same in every run; one rank of each header, then the next one of each, ..."""
    groups = {}
    for m in mutants:
        groups.setdefault(m.header, []).append(m)
    ranked = [(rank, m.header, m) for own in groups.values()
              for rank, m in enumerate(sorted(own, key=lambda m: hashlib.sha256(m.key.encode()).hexdigest()))]
    return [m for rank, _, m in sorted(ranked, key=lambda r: r[:2]) if rank >= first and (per_header is None or rank < per_header)]


def read_table(path):
    if not path.exists():
        return {}
    rows = [line.rstrip("\n").split("\t") for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {"\t".join(r[:5]): r[5] for r in rows}


def write_summary(path, possible, ran, results, equivalent):
    row = lambda name, of: "| {} | {} | {} | {} | {} |\n".format(
        name, len(of), sum(not results[m.key].startswith("survived") for m in of),
        sum(results[m.key].startswith("survived") and m.key in equivalent for m in of),
        sum(results[m.key].startswith("survived") and m.key not in equivalent for m in of))
    headers = sorted({m.header for m in ran})
    command = " ".join(["./dev mutate", *(a for a in sys.argv[1:])])
    path.write_text(f"Mutants of the core against the unit tests: `{command}`, {time.strftime('%Y-%m-%d')}. "
                    f"There are {possible}.\n\n"
                    "| header | run | killed | no test can tell | not noticed |\n|---|---|---|---|---|\n"
                    + row("**all**", ran) + "".join(row(h, [m for m in ran if m.header == h]) for h in headers))


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--per-header", type=int, default=5, help="mutants of each header, at most")
    options.add_argument("--from", type=int, default=0, dest="first", metavar="N", help="leave out each header's first N (0)")
    options.add_argument("--all", action="store_true", help="every mutant")
    options.add_argument("--again", action="store_true", help="run survivors of earlier runs again")
    options.add_argument("--headers", default="*", help="only headers whose path matches")
    options.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    options.add_argument("--thorough", action="store_true", help="survivors face all tests, with those of properties and regressions")
    options.add_argument("--summary", type=Path, help="write the figures of each header to a file")
    options.add_argument("--list", action="store_true", help="only say which mutants there are")
    options.add_argument("--compiler", default="clang++", help="of clang's command line; g++ takes twice as long at -O0")
    given = options.parse_args()
    started = time.monotonic()

    headers = sorted(str(p.relative_to(ROOT / "include/kvtrim")) for f in CORE for p in (ROOT / "include/kvtrim" / f).glob("*.hpp"))
    if given.list:
        total = 0
        for name in headers:
            own = [m for _, group in mutants_of(ROOT / "include/kvtrim" / name, name) for m in group]
            total += len(own)
            for m in own:
                print(m)
        print(f"{total} mutants in {len(headers)} headers")
        return
    (BUILD / "objects").mkdir(parents=True, exist_ok=True)
    if not (BUILD / "kernels.cpp").exists():
        (BUILD / "kernels.cpp").write_text("#include <kvtrim/kernels/compiled.hpp>\n")
    skipped_file = BUILD / "not_compiled.txt"
    skipped = {(h, int(n)) for h, n in (l.split() for l in skipped_file.read_text().splitlines())} if skipped_file.exists() else set()
    compiler = (["ccache"] if subprocess.run(["which", "ccache"], capture_output=True).returncode == 0 else []) + [given.compiler]
    mutants = build(headers, CORE + (MORE_TESTS if given.thorough else ()), skipped, compiler)
    skipped_file.write_text("".join(f"{h} {n}\n" for h, n in sorted(skipped)))
    not_compiled = sum(len(own) for name in headers for site, own in mutants_of(ROOT / "include/kvtrim" / name, name)
                       if (name, text_line(name, site)) in skipped)

    results_file = BUILD / "results.tsv"
    results = read_table(results_file)
    equivalent = read_table(ROOT / "tests/mutate/equivalent.tsv")
    sample = [m for m in chosen(mutants, given.first, None if given.all else given.per_header) if fnmatch.fnmatch(m.header, given.headers)]
    print(f"{len(mutants)} mutants in {len({m.header for m in mutants})} headers, {not_compiled} more do not compile; "
          f"{len(sample)} are run", flush=True)

    tests = tests_by_mutant() if sample else {}
    with results_file.open("a") as out:
        for m in sample:
            if m.key in results and not (given.again and results[m.key].startswith("survived")):
                continue
            if time.monotonic() - started > given.seconds:
                print("time is up; the next run goes on from here")
                break
            answer = ""
            for names, seconds in in_batches(tests[m.id], Path(m.header).stem) if m.id in tests else []:
                if answer := run_tests(names, 3 * seconds + 2, KVTRIM_MUTANT=str(m.id)):
                    break
            said = answer or ("survived" if m.id in tests else "survived, not reached")
            results[m.key] = said
            out.write(f"{m.key}\t{said}\n")
            out.flush()
            if not answer and m.key not in equivalent:
                print(f"{said}: {m}", flush=True)

    ran = [m for m in sample if m.key in results]
    survivors = [m for m in ran if results[m.key].startswith("survived")]
    explained = [m for m in survivors if m.key in equivalent]
    killed = len(ran) - len(survivors)
    for kind in sorted({m.kind for m in ran}):
        of = [m for m in ran if m.kind == kind]
        print(f"  {kind:10} {len(of):5} run, {sum(not results[m.key].startswith('survived') for m in of):5} killed")
    print(f"{len(ran)} mutants in {len({m.header for m in ran})} headers: {killed} killed, {len(survivors)} survived, of which "
          f"{len(explained)} cannot be told from the original (tests/mutate/equivalent.tsv); "
          f"{100 * killed / max(1, len(ran) - len(explained)):.1f} % of the others killed; {time.monotonic() - started:.0f} s")
    if given.summary:
        write_summary(given.summary, f"{len(mutants)} mutants in {len({m.header for m in mutants})} headers", ran, results, equivalent)
    (BUILD / "survivors.tsv").write_text("".join(f"{m.header}:{m.line}:{m.column}\t{m.key}\n" for m in survivors if m.key not in equivalent))


if __name__ == "__main__":
    main()
