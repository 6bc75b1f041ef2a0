#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Builds the site: build.py FOLDER. The reference by Doxygen into FOLDER/site/api, the pages by mkdocs around it.

README.md becomes the first page. A link to a header leads to the reference; one to any other file that is no page of docs/ leads to
a page with its text. Fails on a warning of either tool."""

import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = pathlib.Path(sys.argv[1]).resolve()
PAGES, SITE, DOXYGEN = FOLDER / "pages", FOLDER / "site", FOLDER / "doxygen"
AS_IT_IS = (".svg", ".png", ".json")
LANGUAGE = {".cpp": "cpp", ".hpp": "cpp", ".inl": "cpp", ".c": "c", ".h": "c", ".py": "python", ".json": "json", ".sh": "sh"}
# Defaulted operators, deduction guides and specialisations of documented templates say what their names say; of C's objects
# the header says for all of them how they are made, freed and saved.
SAYS_ITSELF = re.compile(r"Member (operator\S+\(|.*\) -> \S|\w+< .* > \(variable\)|kvtrim_\w+_(create|destroy|save|restore|rollback|compact)\(|kvtrim_\w+ \(typedef\)).*is not documented")


def reference():
    """Runs Doxygen; returns the page of each header."""
    shutil.rmtree(DOXYGEN, ignore_errors=True)
    DOXYGEN.mkdir(parents=True)
    config = (ROOT / "docs/site/Doxyfile").read_text() + f"OUTPUT_DIRECTORY={DOXYGEN}\nGENERATE_TAGFILE={DOXYGEN}/tags.xml\n"
    done = subprocess.run(["doxygen", "-"], input=config, cwd=ROOT, text=True, check=True, stderr=subprocess.PIPE)
    warnings = [line for line in done.stderr.splitlines() if "warning:" in line and not SAYS_ITSELF.search(line)]
    if warnings:
        sys.exit("\n".join([*warnings, f"reference: {len(warnings)} warnings"]))
    files = xml.etree.ElementTree.parse(DOXYGEN / "tags.xml").iterfind("compound[@kind='file']")
    path = lambda f: (f.findtext("path") + f.findtext("name")).removeprefix(f"{ROOT}/include/")
    return {path(f): f.findtext("filename") for f in files}


def page_of(source):
    """Where a file of the repository lies among the pages."""
    name = source.relative_to(ROOT).as_posix()
    if name == "README.md":
        return "index.md"
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if source.suffix in AS_IT_IS:
        return "files/" + name
    return "files/" + name + ("" if name.endswith(".md") else ".md")


def relative(target, page):
    return pathlib.PurePosixPath(*[".."] * page.count("/")).joinpath(target).as_posix()


def readable(text):
    """What GitHub understands and Python-Markdown does not: lists without an empty line before them or nested by two spaces, comments
    that touch a table."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.S | re.M)
    for i in range(0, len(parts), 2):
        part = re.sub(r"<!--.*?-->\n?", "\n", parts[i], flags=re.S)
        part = re.sub(r"^((?:  )+)(?=\S)", r"\1\1", part, flags=re.M)
        part = re.sub(r"(\n\n(?:    .+\n)+)(?=- )", r"\1\n", part)
        parts[i] = re.sub(r"^(?! *[-|>]| *\d+\.)(?=\S)(.+)\n(?=- )", r"\1\n\n", part, flags=re.M)
    return "".join(parts)


def stage(headers):
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    waiting = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "docs/pictures").iterdir())]
    seen = set(waiting)
    while waiting:
        source = waiting.pop()
        page = page_of(source)
        file = PAGES / page
        file.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix in AS_IT_IS:
            shutil.copy(source, file)
            continue
        if source.suffix != ".md":
            language = LANGUAGE.get(source.suffix, "text")
            name = source.relative_to(ROOT)
            file.write_text(f"# {name.name}\n\n`{name}`\n\n````{language}\n{source.read_text()}````\n")
            continue

        def link(match, source=source, page=page):
            target, _, anchor = match[1].partition("#")
            if not target or "://" in target:
                return match[0]
            there = (source.parent / target).resolve()
            if there.is_dir():
                there = there / "README.md" if (there / "README.md").exists() else there / "index.md"
            name = there.relative_to(ROOT).as_posix()
            if name.startswith("include/") and name.removeprefix("include/") in headers:
                return f"]({relative('api/' + headers[name.removeprefix('include/')], page)})"
            if there not in seen:
                seen.add(there)
                waiting.append(there)
            return f"]({relative(page_of(there), page)}{'#' + anchor if anchor else ''})"

        file.write_text(re.sub(r"\]\(([^)\s]+)\)", link, readable(source.read_text())))
    # Its links are those of the repository; here they lead to the pages.
    def in_site(match):
        name = match[1].removeprefix("include/")
        return f"]({'api/' + headers[name] if name in headers else page_of(ROOT / match[1]).removesuffix('.md') + '.html'})"

    (PAGES / "llms.txt").write_text(re.sub(r"\]\(([^)\s]+)\)", in_site, (ROOT / "llms.txt").read_text()))
    shutil.copy(ROOT / "docs/site/site.css", PAGES)
    shutil.copytree(DOXYGEN / "html", PAGES / "api")
    # Doxygen lists sections at the top of a page that it leaves out below when all of them are private.
    section = re.compile(r'<a href="#nested-classes">[^<]*</a>(?: &#124;\s*)?')
    for file in (PAGES / "api").glob("*.html"):
        text = file.read_text()
        if section.search(text) and 'name="nested-classes"' not in text:
            file.write_text(section.sub("", text))


def main():
    stage(reference())
    config = (ROOT / "docs/site/mkdocs.yml").read_text() + f"docs_dir: {PAGES}\nsite_dir: {SITE}\n"
    (FOLDER / "mkdocs.yml").write_text(config)
    done = subprocess.run(["mkdocs", "build", "--quiet", "--config-file", FOLDER / "mkdocs.yml"], text=True, check=False, stderr=subprocess.PIPE)
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    if done.returncode or warnings:
        sys.exit("\n".join([*warnings, done.stderr if done.returncode else "", "mkdocs: not in order"]))


main()
