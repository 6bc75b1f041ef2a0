#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Numbers of README.md and docs/ come from results files, or the section says what command makes them.

    <!-- results FILE...
    text with {expressions}
    -->
    the same text with numbers
    <!-- end -->

The check fails where the lower text is not what the upper one gives (--write writes it), and where a section holds a measured quantity, or
a table a fraction, outside of such a block, and neither the section nor one that it is a part of (but for the page's first) names a `./dev`
command that measures, or a test (`ctest -R`) or links to a file of results. A page whose beginning says "All figures" of a command or a file is one section.

Expressions are Python. A row of the benchmark is named as in its results file; NAME@N stands for NAME/tokens:N, and threads:1
may be left out. From bench/results: t(row) time with its unit, ms(row), s(row), of(row) times the machine's limit,
times(row, other) how many times as long, rate(limit) 10^9/s, mib(row) scratch. From docs/results:
kl(policy, keep), kl_and_error(policy, keep), right(policy, keep) share of answers, counted(policy, keep) how many of how many, of_all(policy) at every share and over all lengths, mean_right(policy, keep) their mean over the tasks, mean_of(key,
policy, keep) the mean of another column, all of rows with further values (setting="question_aware"), perplexity(policy, keep),
live(policy, keep) KL and perplexity of the task live, below(policy, other, keep) per cent of the heads whose output error is lower; for every share of the file kls(policy, tokens) and
answers(policy); of the values of an option ("policy:option") kls_of(option, value, tokens), answers_of(option, value), kl_against(option, value) in per
cent and answers_against(option, value), what differs from today's value, sample by sample, and at worst excess(option, value) of KL over the best
value's and shortfall(option, value) of answers; of docs/results/llama-folds-*.json kl(fold, sets,
keep, file, text), beside(fold, other, file) the geometric mean of KL over the other's, for all texts of a file and all shares, mean_kl(fold, keep, file), and texts(file);
of docs/results/python-*.json kl_and_error(policy, keep); of docs/results/tried-*.json
right(score, keep, *seeds), answers, rights (each seed's), nll, and kl(score, *texts). Of every file: data, the JSON itself; cell(key=value, ...), the one row
that has these values (among=data[...]: of another list of the file); two(x), two significant digits; n(x), or a whole number from 100 on; pct(x), per cent. Of a second and a
third file the names end in _2 and _3.
"""

import argparse
import json
import math
import re
import sys

import markdown

BLOCK = re.compile(r"(?P<head><!-- results (?P<files>\S+(?: \S+)*)\n(?P<template>.*?)-->\n)(?P<text>.*?)(?P<end><!-- end -->)", re.S)
# What somebody measured: a time, a rate, a memory, a speed-up, a share with a fraction; a fraction in a table.
MEASURED = re.compile(
    r"(?<![\w.])[0-9][0-9.]*(?:\.\.\.[0-9.]+)?\s?(?:ms|µs|ns|s|seconds|minutes|hours|KiB|MiB|GiB|kB|MB|GB|"
    r"(?:GFLOP|GB|MB|tokens|rows)/s|tokens per second|times (?:as (?:fast|long|much|many)|faster|slower|more|less|fewer))(?![\w/])"
    r"|(?<![\w.])[0-9]+\.[0-9]+ (?:%|x|×)|^\|.*?(?<![\w.])[0-9]{0,3}\.[0-9]+(?![\w.]).*\|$", re.M)
SOURCE = re.compile(r"\./dev (?:bench|conformance|demo|fuzz|llama|mutate|quality|run|study|table|test|matrix)\b|ctest -R|results/[\w.-]+\.(?:json|md)\)")


def two(x):
    """Two significant digits, without an exponent."""
    if x == 0:
        return "0"
    digits = max(0, 1 - math.floor(math.log10(abs(x))))
    x = round(x, 1 - math.floor(math.log10(abs(x))))
    digits = max(0, 1 - math.floor(math.log10(abs(x))))
    return f"{x:.{digits}f}"


def n(x):
    """Two significant digits below 100, else a whole number."""
    return two(x) if x < 100 else f"{x:.0f}"


def duration(milliseconds):
    if milliseconds < 999.5:
        return f"{n(milliseconds)} ms"
    seconds = milliseconds / 1000
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s" if seconds < 99.5 else f"{seconds:.0f} s"


def names(file):
    """What the expressions of a block may use."""
    data = json.loads((markdown.ROOT / file).read_text())
    first = (data.get("rows") or [{}])[0]

    def one(rows, what):
        if len(rows) != 1:
            raise KeyError(f"{what}: {len(rows)} rows in {file}")
        return rows[0]

    def cell(among=None, **match):
        return one([r for r in among or data["rows"] if all(r.get(k) == v for k, v in match.items())], match)

    known = {"data": data, "cell": cell, "two": two, "n": n, "pct": lambda x: f"{two(100 * x)} %"}

    if "limits" in data:
        def row(name):
            name = re.sub(r"@(\d+)", r"/tokens:\1", name)
            return one([r for r in data["rows"] if r["name"] in (name, name + "/threads:1")], name)

        known |= {
            "row": row,
            "ms": lambda n: row(n)["ms"],
            "s": lambda n: row(n)["ms"] / 1000,
            "t": lambda n: duration(row(n)["ms"]),
            "of": lambda n: f"{row(n)['of_limit']:.2f}",
            "times": lambda n, other: row(n)["ms"] / row(other)["ms"],
            "mib": lambda n: f"{row(n)['workspace_bytes'] / 2**20:.0f}",
            "rate": lambda n: one([r for r in data["limits"] if r["name"] == f"limit/{n}/threads:1"], n)["rate"] / 1e9,
        }
    elif "transformers" in data:
        known["kl_and_error"] = lambda p, k: "{kl_mean:.4f} ± {kl_standard_error:.4f}".format(**cell(policy=p, kept_ratio=k))
    elif "folds" in data:
        known["kl"] = lambda fold, sets, keep, file, text=0: "{:.4f}".format(one(
            [r for r in data["folds"] if (r["fold"], r["sets"], r["file"], r["text"]) == (fold, sets, file, text)],
            f"{fold} {sets} {file} {text}")["kl"][data["keep"].index(keep)])

        def kls_of(fold, file):
            return {r["text"]: r["kl"] for r in data["folds"] if (r["fold"], r["sets"], r["file"]) == (fold, "one set", file)}

        def beside(fold, other, file):
            ours, theirs = kls_of(fold, file), kls_of(other, file)
            if not ours or ours.keys() != theirs.keys():
                raise KeyError(f"{fold} and {other}: not of the same texts of {file}")
            ratios = [math.log(a / b) for text in ours for a, b in zip(ours[text], theirs[text])]
            return f"{math.exp(mean(ratios)):.2f}"

        def mean_kl(fold, keep, file):
            return f"{mean([kl[data['keep'].index(keep)] for kl in kls_of(fold, file).values()]):.4f}"

        known |= {"beside": beside, "mean_kl": mean_kl, "texts": lambda file: len({r["text"] for r in data["folds"] if r["file"] == file})}
    elif "score" in first:
        def needles(score, keep, seeds):
            rows = [r for r in data["rows"] if r["score"] == score and r["kept_ratio"] == keep and set(r.get("needles", [-1])) <= set(seeds)]
            if sorted(seed for r in rows for seed in r["needles"]) != sorted(seeds):
                raise KeyError(f"{score} {keep}: {seeds} in {file}")
            return rows

        def total(key):
            return lambda score, keep, *seeds: sum(r[key] for r in needles(score, keep, seeds))

        def nll(score, keep, *seeds):
            rows = needles(score, keep, seeds)
            return f"{sum(r['nll'] * r['of'] for r in rows) / sum(r['of'] for r in rows):.2f}"

        known |= {
            "answers": total("of"),
            "right": total("right"),
            "rights": lambda score, keep, *seeds: ", ".join(str(total("right")(score, keep, s)) for s in seeds),
            "nll": nll,
            "kl": lambda score, *texts: f"{cell(score=score, texts=list(texts))['kl']:.4f}",
        }
    elif "kept_ratio" in first and "task" in first:
        def rows_of(policy, keep, **more):
            return [r for r in data["rows"] if r.get("policy") == policy and r.get("kept_ratio") == keep
                    and all(r.get(k) == v for k, v in more.items())]

        def of(policy, keep, **more):
            return one(rows_of(policy, keep, **more), f"{policy} {keep} {more}")

        policies = {r["policy"] for r in data["rows"]} - {"full"}
        lengths = {r["tokens"] for r in data["rows"]}
        shares = sorted({r["kept_ratio"] for r in data["rows"]} - {1.0}, reverse=True)

        def mean_of(key, policy, keep, **more):
            return mean([r[key] for r in rows_of(policy, keep, **more) if r["task"] != "text"])

        def mean_right(policy, keep, **more):
            return mean_of("accuracy", policy, keep, **more)

        # A policy whose name does not give the option has today's value.
        def named(option, value):
            return f"{option}={value}" if f"{option}={value}" in policies else option.split(":")[0]

        def values_of(option):
            return [p for p in policies if p == option.split(":")[0] or p.startswith(option + "=")]

        def kl_of(policy, keep, tokens):
            return of(policy, keep, task="text", tokens=tokens)["kl_mean"]

        # Mean over samples, and its standard error, of differences between two policies, of which a row has one for each sample that has answers.
        def paired(policy, other, is_text, difference):
            samples = {}
            for r in data["rows"]:
                if r["policy"] == policy and (r["task"] == "text") == is_text:
                    pairs = difference(r, of(other, r["kept_ratio"], task=r["task"], tokens=r["tokens"]))
                    for n, d in enumerate(pairs):
                        if d is not None:
                            samples.setdefault((r["tokens"], n), []).append(d)
            means = [mean(d) for d in samples.values()]
            squares = sum((d - mean(means)) ** 2 for d in means)
            return mean(means), math.sqrt(squares / len(means) / (len(means) - 1)) if len(means) > 1 else 0

        def against(option, value, is_text, difference, text_of):
            policy, today = named(option, value), option.split(":")[0]
            return "" if policy == today else text_of(*paired(policy, today, is_text, difference))

        def kl_against(option, value):
            return against(option, value, True, lambda r, today: [math.log(a / b) for a, b in zip(r["kl"], today["kl"])],
                           lambda log, error: f"{100 * math.expm1(log):+.0f} ± {100 * math.exp(log) * error:.0f} %")

        def answers_against(option, value):
            return against(option, value, False, lambda r, today: [(a - b) / c if c else None for a, b, c in zip(r["right"], today["right"], r["asked"])],
                           lambda share, error: f"{share:+.3f} ± {error:.3f}")

        def excess(option, value):
            return max(kl_of(named(option, value), k, t) / min(kl_of(p, k, t) for p in values_of(option)) - 1
                       for k in shares for t in lengths)

        def shortfall(option, value):
            return max(1 - mean_right(named(option, value), k) / max(mean_right(p, k) for p in values_of(option)) for k in shares)

        def errors(policy, keep):
            return of(policy, keep, task="text")["error_projected"]

        def counted(policy, keep, task="multikey"):
            row = of(policy, keep, task=task)
            return f"{sum(row['right']):.0f} of {sum(row['asked']):.0f} ({row['accuracy']:.2f} ± {row['standard_error']:.2f})"

        def of_all(policy):
            right = [sum(sum(r["right"]) for r in rows_of(policy, k) if r["task"] != "text") for k in shares]
            asked = sum(sum(r["asked"]) for r in rows_of(policy, shares[0]) if r["task"] != "text")
            return f"{' / '.join(f'{r:.0f}' for r in right)} of {asked:.0f}"

        known |= {
            "counted": counted,
            "of_all": of_all,
            "kl": lambda p, k: f"{of(p, k, task='text')['kl_mean']:.3f}",
            "kl_and_error": lambda p, k: "{kl_mean:.4f} ± {kl_standard_error:.4f}".format(**of(p, k, task="text")),
            "perplexity": lambda p, k: f"{of(p, k, task='text')['perplexity']:.1f}",
            "live": lambda p, k: "{kl_mean:.3f} ± {kl_standard_error:.3f} | {perplexity:.1f}".format(**of(p, k, task="live")),
            "right": lambda p, k, task="multikey": f"{of(p, k, task=task)['accuracy']:.2f}",
            "mean_right": lambda p, k, **more: f"{mean_right(p, k, **more):.2f}",
            "mean_of": mean_of,
            "kls": lambda p, tokens: " / ".join(f"{of(p, k, task='text', tokens=tokens)['kl_mean']:.4f}" for k in shares),
            "answers": lambda p: " / ".join(f"{mean_right(p, k):.2f}" for k in shares),
            "kls_of": lambda o, v, tokens: known["kls"](named(o, v), tokens),
            "answers_of": lambda o, v: known["answers"](named(o, v)),
            "kl_against": kl_against,
            "answers_against": answers_against,
            "excess": excess,
            "shortfall": shortfall,
            "per_cent": lambda x: f"{100 * x:.0f} %",
            "below": lambda p, other, k: f"{100 * mean([a < b for a, b in zip(errors(p, k), errors(other, k))]):.0f}",
        }
    return known


def mean(values):
    return sum(values) / len(values)


def rendered(block, page):
    known = {}
    for i, file in enumerate(block["files"].split(" "), 1):
        known |= {key + (f"_{i}" if i > 1 else ""): value for key, value in names(file).items()}

    def value(match):
        try:
            # The text of the repository's own pages, not of a stranger.
            result = eval(match[1], {"__builtins__": {"round": round, "sum": sum, "len": len, "max": max, "min": min, "next": next, "str": str}}, known)
        except Exception as error:
            sys.exit(f"{markdown.name(page)}: {{{match[1]}}}: {error!r}")
        return two(result) if isinstance(result, float) else str(result)

    return re.sub(r"\{([^{}]+)\}", value, block["template"])


def measured_pages():
    """README.md, docs/, and what they link to for more."""
    return markdown.pages() + sorted([*(markdown.ROOT / "bench").glob("*.md"), *(markdown.ROOT / "examples").rglob("*.md")])


def sections(text):
    """(first line, text, the text of the sections that it is a part of) from heading to heading, of any level."""
    heads = [(m.start(), len(m[1])) for m in re.finditer(r"^(#+) ", markdown.without_code(text), flags=re.M)]
    above = {}
    for (begin, level), end in zip(heads, [*(start for start, _ in heads[1:]), len(text)]):
        above = {k: v for k, v in above.items() if k < level} | {level: text[begin:end]}
        page = above.get(1, "")
        yield text.count("\n", 0, begin) + 1, text[begin:end], [page] * ("All figures" in page) + [v for k, v in above.items() if k > 1]


def without_source(page, text):
    """Measured quantities of a page that nothing vouches for."""
    for line, section, of in sections(text):
        if SOURCE.search(section) or any(SOURCE.search(part) for part in of):
            continue
        bare = BLOCK.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), section)
        for match in MEASURED.finditer(markdown.without_code(bare)):
            yield f"{markdown.name(page)}:{line + bare.count(chr(10), 0, match.start())}: '{match.group().strip()}' has no source in its section"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--write", action="store_true", help="write the numbers into the pages")
    write = arguments.parse_args().write
    wrong, blocks = [], 0
    for page in measured_pages():
        text = page.read_text()
        if text.count("<!-- results ") != len(BLOCK.findall(text)):
            wrong.append(f"{markdown.name(page)}: a block of results without its end")
        new = BLOCK.sub(lambda m: m["head"] + rendered(m, page) + m["end"], text)
        blocks += len(BLOCK.findall(text))
        if new != text and write:
            page.write_text(new)
        elif new != text:
            pairs = zip(text.splitlines(), new.splitlines())
            where = next((f"{n}: '{a}' should be '{b}'" for n, (a, b) in enumerate(pairs, 1) if a != b), "the end")
            wrong.append(f"{markdown.name(page)}:{where}; ./dev docs --write")
        wrong += without_source(page, new)
    print("\n".join(wrong), file=sys.stderr) if wrong else print(f"numbers: {blocks} blocks agree with their results")
    sys.exit(bool(wrong))


main()
