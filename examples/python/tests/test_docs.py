# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""The Python blocks of docs/engines/python.md run, in the order of the page."""
import importlib.util
import pathlib
import re

PAGE = pathlib.Path(__file__).parents[3] / "docs/engines/python.md"


def test_blocks_of_the_page_run(capsys):
    with_torch = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    scope, ran = {}, 0
    for block in re.finditer(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M):
        if "torch" in block[1] and not with_torch:
            continue
        exec(compile(block[1], str(PAGE), "exec"), scope)
        ran += 1
    assert ran == (5 if with_torch else 3)
