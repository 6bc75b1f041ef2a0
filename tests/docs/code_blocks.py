#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Compiles every ```cpp and ```c block of README.md and docs/: one translation unit a language, syntax only.

A block is the body of a function that returns kvtrim::status (in C: int), in a namespace of its page. A comment says otherwise:

    <!-- code: page     what follows is declared before all blocks of the page that come after it
    <!-- code: before   what follows stands before the next block, in the same function
    <!-- code: file     the next block stands outside functions, behind what follows
    <!-- code: if H     the next block is compiled where the header <H> is found; what follows stands before it

Lines of a block that begin with #include are moved to the front of the file.
"""

import argparse
import re
import subprocess
import sys
import tempfile

import markdown

PART = re.compile(
    r"<!-- code: (?P<how>page|before|file|if)(?P<header> [^\n]*?)?(?:\n(?P<preamble>.*?))?\s*-->"
    r"|^(?P<indent> *)```(?P<language>cpp|c)\n(?P<block>.*?)^ *```",
    re.S | re.M)


def without_includes(text):
    line = re.compile(r"^ *(#include.*)$", re.M)
    return line.sub("", text), line.findall(text)


def collect(language):
    """The translation unit of a language, and how many blocks it has."""
    includes, body, count = [], [], 0
    for number, page in enumerate(markdown.pages()):
        text, parts = page.read_text(), []
        how, preamble, header = None, "", ""
        for match in PART.finditer(text):
            if match["how"] == "page":
                if language == "cpp":
                    line = text.count("\n", 0, match.start("preamble")) + 1
                    part, found = without_includes(f'#line {line} "{markdown.name(page)}"\n{match["preamble"] or ""}')
                    includes += found
                    parts.append(part)
                continue
            if match["how"]:
                how, preamble, header = match["how"], match["preamble"] or "", (match["header"] or "").strip()
                continue
            if match["language"] == language:
                line = text.count("\n", 0, match.start("block")) + 1
                count += 1
                block = f'{preamble}\n#line {line} "{markdown.name(page)}"\n{match["block"]}'
                if how != "file":
                    function = "static int block_%d(void)" if language == "c" else "[[maybe_unused]] static kvtrim::status block_%d()"
                    last = "return 0;" if language == "c" else "return {};"
                    block = f'{function % line} {{\n{block}\n{last}\n}}'
                block, found = without_includes(block)
                if header:
                    block = f"#if __has_include(<{header}>)\n{block}\n#endif"
                    found = [f"#if __has_include(<{header}>)\n{i}\n#endif" for i in found]
                includes += found
                parts.append(block)
            how, preamble, header = None, "", ""
        part = "\n".join(parts)
        body.append(part if language == "c" else f"namespace page_{number} {{\n{part}\n}}")
    first = '#include <kvtrim_c.h>\n#include <stdio.h>\n#include <stdlib.h>\n' if language == "c" else "#include <kvtrim/kvtrim.hpp>\n"
    return first + "\n".join([*dict.fromkeys(includes), *body]) + "\n", count


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cxx", default="c++")
    arguments.add_argument("--cc", default="cc")
    arguments.add_argument("--include", action="append", default=[])
    arguments.add_argument("--keep", action="store_true", help="print the translation units")
    options = arguments.parse_args()
    failed = False
    flags = ["-fsyntax-only", "-DKVTRIM_COMPILED_KERNELS", "-Wall", "-Wextra", "-Werror", "-Wno-unused"]
    flags += [f"-I{markdown.ROOT / 'include'}"] + [f for i in options.include if i for f in ("-isystem", i)]
    for language, command in (("cpp", [options.cxx, "-std=c++20", "-x", "c++"]), ("c", [options.cc, "-std=c11", "-x", "c"])):
        source, count = collect(language)
        if options.keep:
            print(source)
        if count == 0:
            continue
        with tempfile.NamedTemporaryFile("w", suffix="." + language) as file:
            file.write(source)
            file.flush()
            done = subprocess.run([*command, *flags, file.name], check=False)
        print(f"{language}: {count} blocks {'do not compile' if done.returncode else 'compile'}")
        failed = failed or done.returncode != 0
    sys.exit(failed)


main()
