#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""A header as Doxygen reads it: the comment at its top becomes the documentation of the file, and KVTRIM_NAMESPACE is kvtrim, as
programs write it. Lines keep their numbers: the new ones stand where the licence and `#pragma once` were."""

import sys

lines = open(sys.argv[1], encoding="utf-8").read().replace("namespace KVTRIM_NAMESPACE {", "namespace kvtrim {").split("\n")
first, end = 0, 0
if lines[2:3] == ["#pragma once"] and lines[4:5] and lines[4].startswith("//"):
    first, end = 4, next(i for i in range(4, len(lines)) if not lines[i].startswith("//"))
elif lines[0].startswith("/* Copyright"): # C
    first, end = 3, lines.index(" */")
if end:
    text = [line[3:].replace("*/", "* /") for line in lines[first:end]]
    paragraph = " ".join(text[: text.index("")] if "" in text else text)
    brief = paragraph.split(". ")[0].rstrip(".:") + "."
    for symbol in "\\@<>#":
        brief = brief.replace(symbol, "\\" + symbol)
    lines[first : end + 1] = [f"@verbatim {text[0]}", *text[1:], "@endverbatim */" + lines[end].removeprefix(" */")]
    lines[:first] = ["/** @file", f"@brief {brief}", *[""] * (first - 2)]
sys.stdout.write("\n".join(lines))
