#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Every link of the pages leads to a file and an anchor that exist: of the Markdown files, or with --site DIR of the HTML
that ./dev docs built. Links to other hosts are not followed."""

import argparse
import html.parser
import pathlib
import re
import sys
import urllib.parse

import markdown

OTHER_HOST = re.compile(r"^(https?:|mailto:|data:|javascript:|//)")


def broken_in_pages():
    others = ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "llms.txt", "bench", "examples", "tests"]
    pages = markdown.pages()
    for other in others:
        path = markdown.ROOT / other
        pages += sorted(path.rglob("*.md")) if path.is_dir() else [path] if path.exists() else []
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", markdown.without_code(page.read_text())):
            if OTHER_HOST.match(target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists():
                yield f"{markdown.name(page)}: {target}: no such file"
            elif anchor and file.suffix == ".md" and anchor not in markdown.anchors(file.read_text()):
                yield f"{markdown.name(page)}: {target}: no such heading"


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.targets, self.ids = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if key == "id" or (tag == "a" and key == "name"):
                self.ids.add(value)
            elif key in ("href", "src") and value:
                self.targets.add(value)


def broken_in_site(site):
    pages = {}

    def read(file):
        if file not in pages:
            pages[file] = Page(file.read_text(errors="replace"))
        return pages[file]

    for target in re.findall(r"\]\(([^)\s]+)\)", (site / "llms.txt").read_text()):
        if not (site / target).exists():
            yield f"llms.txt: {target}: no such file"
    for file in sorted(site.rglob("*.html")):
        if file.name == "404.html":  # its links are absolute, for a server
            continue
        for target in sorted(read(file).targets):
            if OTHER_HOST.match(target):
                continue
            path, _, anchor = target.partition("#")
            path = urllib.parse.unquote(path.partition("?")[0])
            there = (file.parent / path).resolve() if path else file
            there = there / "index.html" if there.is_dir() else there
            if not there.exists():
                yield f"{file.relative_to(site)}: {target}: no such file"
            elif anchor and there.suffix == ".html" and urllib.parse.unquote(anchor) not in read(there).ids:
                yield f"{file.relative_to(site)}: {target}: no such anchor"


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--site", type=pathlib.Path)
    site = arguments.parse_args().site
    broken = list(broken_in_site(site.resolve()) if site else broken_in_pages())
    print("\n".join(broken[:100]) if broken else "links: all lead somewhere", file=sys.stderr if broken else sys.stdout)
    sys.exit(f"links: {len(broken)} broken" if broken else 0)


main()
