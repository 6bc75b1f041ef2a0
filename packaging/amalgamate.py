#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""All of kvtrim as one header: amalgamate.py OUTPUT

Headers in the order in which kvtrim.hpp, and then the adapters that need nothing else, include them, each once; bodies of kernels
(.inl) wherever they are included, once per instruction set. Left out: the adapters to DLPack, Eigen and ggml, and
kernels/compiled.hpp, which splits a program's kernels off again. What a file includes of the standard library stays.
"""

import re
import sys
from pathlib import Path

INCLUDE = Path(__file__).resolve().parents[1] / "include"
OTHERS = {"adapter/dlpack.hpp", "adapter/eigen.hpp", "adapter/ggml.hpp", "adapter/ggml_any_rows.hpp",
          "adapter/llama_graph.hpp", "adapter/llama_layer.hpp", "kernels/compiled.hpp"}
LICENCE = "// Copyright (c) kvtrim authors\n// SPDX-License-Identifier: MIT\n"


def text_of(name, seen, body=None):
    """The text of a header with all that it includes of kvtrim in its place; `body`: what KVTRIM_BODY stands for."""
    if name.endswith(".hpp"):
        if name in seen:
            return ""
        seen.add(name)
    out = []
    for line in (INCLUDE / "kvtrim" / name).read_text().removeprefix(LICENCE).splitlines(keepends=True):
        include = re.match(r"#\s*include <kvtrim/(.*)>", line)
        named = re.match(r"#\s*define KVTRIM_BODY <kvtrim/(.*)>", line)
        if line.startswith("#pragma once"):
            continue
        if named:
            body = named.group(1)
        elif re.match(r"#\s*include KVTRIM_BODY", line):
            out.append(text_of(body, seen))
        elif include:
            out.append(text_of(include.group(1), seen, body))
        elif not re.match(r"#\s*undef KVTRIM_BODY", line):
            out.append(line)
    return "".join(out)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    seen = set()
    parts = [text_of("kvtrim.hpp", seen)]
    for path in sorted((INCLUDE / "kvtrim").rglob("*.hpp")):
        name = str(path.relative_to(INCLUDE / "kvtrim"))
        if name not in OTHERS:
            parts.append(text_of(name, seen))
    text = LICENCE + "#pragma once\n\n// Made of all headers of kvtrim by packaging/amalgamate.py; do not edit.\n" + "".join(parts)
    text = re.sub(r"\n{3,}", "\n\n", text)
    left = [line for line in text.splitlines() if re.match(r"\s*#.*(<kvtrim/|KVTRIM_BODY)", line)]
    if left:
        sys.exit("a header of kvtrim is included in a way that this script does not know: " + left[0])
    Path(sys.argv[1]).write_text(text)
    print(f"{sys.argv[1]}: {len(seen)} headers, {text.count(chr(10))} lines")


if __name__ == "__main__":
    main()
