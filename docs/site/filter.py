#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""A header as Doxygen reads it: the comment at its top becomes the documentation of the file. Lines keep their numbers: the new ones
stand where the licence and `#pragma once` were."""

import sys

lines = open(sys.argv[1], encoding="utf-8").read().split("\n")
if lines[2:3] == ["#pragma once"] and lines[4:5] and lines[4].startswith("//"):
    end = next(i for i in range(4, len(lines)) if not lines[i].startswith("//"))
    text = [line[3:].replace("*/", "* /") for line in lines[4:end]]
    paragraph = " ".join(text[: text.index("")] if "" in text else text)
    brief = paragraph.split(". ")[0].rstrip(".:") + "."
    for symbol in "\\@<>#":
        brief = brief.replace(symbol, "\\" + symbol)
    lines[:4] = ["/** @file", f"@brief {brief}", "", "@verbatim"]
    lines[4:end] = text
    lines[end] = "@endverbatim */" + lines[end]
sys.stdout.write("\n".join(lines))
