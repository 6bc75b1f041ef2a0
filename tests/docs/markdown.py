# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""The pages of the documentation, and their parts, for the checks beside this file."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]


def pages():
    """README.md and every page of docs/."""
    return [ROOT / "README.md"] + sorted((ROOT / "docs").rglob("*.md"))


def name(page):
    return page.relative_to(ROOT).as_posix()


def without_code(text):
    """The text with fenced blocks, code spans and comments blanked; line numbers stay."""
    blank = lambda match: re.sub(r"[^\n]", " ", match.group())
    text = re.sub(r"^( *)```.*?^ *```", blank, text, flags=re.S | re.M)
    text = re.sub(r"<!--.*?-->", blank, text, flags=re.S)
    return re.sub(r"`[^`\n]*`", blank, text)


def slug(heading):
    """The anchor of a heading, as GitHub and mkdocs make it for the headings that we write."""
    heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading))


def anchors(text):
    text = re.sub(r"^( *)```.*?^ *```", "", text, flags=re.S | re.M)
    return {slug(h) for h in re.findall(r"^#+ (.*)$", text, flags=re.M)}
