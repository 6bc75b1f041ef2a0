#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""The quickstart of README.md is part of examples/quickstart.cpp, and its output is what that program prints.
quickstart.py PROGRAM"""

import re
import subprocess
import sys

import markdown

readme = (markdown.ROOT / "README.md").read_text().partition("## Quickstart")[2]
code = re.search(r"^```cpp\n(.*?)^```", readme, re.S | re.M)[1]
printed = re.search(r"^```text\n(.*?)^```", readme, re.S | re.M)[1]
program = {line.strip() for line in (markdown.ROOT / "examples/quickstart.cpp").read_text().splitlines()}
missing = [line for line in code.splitlines() if line.strip() not in program]
if missing:
    sys.exit("README.md: not a line of examples/quickstart.cpp: " + missing[0])
output = subprocess.run(sys.argv[1:], check=True, capture_output=True, text=True).stdout
if output != printed:
    sys.exit(f"README.md says\n{printed}the program prints\n{output}")
