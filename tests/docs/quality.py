#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""quality.py PROGRAM: every table of docs/quality.md with a column for each share that is kept, and every line about the full cache, is
what the program prints of a results file that the page links to. PROGRAM is model_quality (./dev quality --results FILE)."""

import re
import subprocess
import sys

import markdown

PAGE = markdown.ROOT / "docs/quality.md"
text = PAGE.read_text()
files = sorted(set(re.findall(r"\]\((results/quality-[\w.-]+\.json)\)", text)))
printed = set()
for file in files:
    out = subprocess.run([sys.argv[1], "--results", PAGE.parent / file], text=True, check=True, stdout=subprocess.PIPE).stdout
    printed |= set(out.splitlines())

wrong, checked, in_table = [], 0, False
for number, line in enumerate(text.splitlines(), 1):
    in_table = line.startswith("|") and (in_table or re.fullmatch(r"\| policy( \| \d+ %)+ \|", line) is not None)
    if in_table or line.startswith("Full cache: "):
        checked += 1
        if line not in printed:
            wrong.append(f"{markdown.name(PAGE)}:{number}: not in {', '.join(files)}: {line}")
if not checked:
    wrong.append(f"{markdown.name(PAGE)}: no table of results")
print("\n".join(wrong), file=sys.stderr) if wrong else print(f"quality: {checked} lines are those of {len(files)} results files")
sys.exit(bool(wrong))
