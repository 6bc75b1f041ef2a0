#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Draws docs/pictures/*.svg; with --check, says which of them differ from what is drawn now."""

import json
import math
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
SPEED = ROOT / "bench" / "results" / "2026-11-23-intel-xeon-processor.json"

INK, PALE, EDGE = "#1f2933", "#e4e7eb", "#9aa5b1"
KEPT, SECOND, FREE = "#2f6f9f", "#c9792b", "#ffffff"
CELL = 16


class Drawing:
    def __init__(self, width, height, title):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            f'role="img" font-family="system-ui, sans-serif" font-size="13" fill="{INK}">',
            f"<title>{title}</title>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        ]

    def text(self, x, y, words, anchor="start", size=13, weight="normal", colour=INK):
        words = words.replace("&", "&amp;").replace("<", "&lt;")
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
                          f'fill="{colour}">{words}</text>')

    def box(self, x, y, width, height, fill, edge=EDGE, dashed=False):
        dash = ' stroke-dasharray="3 2"' if dashed else ""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="{edge}"{dash}/>')

    def cell(self, x, y, label="", fill=KEPT, dashed=False, size=CELL):
        self.box(x, y, size, size, fill, dashed=dashed)
        if label != "":
            self.text(x + size / 2, y + size / 2 + 3.5, str(label), "middle", 9.5, colour="#ffffff" if fill in (KEPT, SECOND) else INK)

    def arrow(self, x0, y0, x1, y1):
        angle = math.atan2(y1 - y0, x1 - x0)
        ends = [(x1 - 8 * math.cos(angle + d), y1 - 8 * math.sin(angle + d)) for d in (0.45, -0.45)]
        self.parts.append(f'<path d="M{x0:g} {y0:g}L{x1:g} {y1:g}" stroke="{INK}" fill="none"/>')
        self.parts.append(f'<path d="M{x1:g} {y1:g}' + "".join(f"L{x:.1f} {y:.1f}" for x, y in ends) + f'Z" fill="{INK}"/>')

    def done(self):
        return "\n".join([*self.parts, "</svg>", ""])


HEADS = [[0, 1, 4, 5, 9, 13, 14, 15], [0, 1, 6, 14, 15]]  # what each of two heads keeps of 16 tokens
COLOURS = [KEPT, SECOND]


def trim():
    """The cache, what the plan keeps of it, and what becomes free."""
    d = Drawing(900, 190, "A cache of two heads, a plan that keeps 8 and 5 of 16 tokens, and the memory behind the survivors, free")
    for x, title in ((20, "1  your cache, as it lies"), (320, "2  the plan: rows that stay"), (620, "3  compacted: the rest is free")):
        d.text(x, 24, title, weight="bold")
    for head, kept in enumerate(HEADS):
        y = 48 + 44 * head
        for t in range(16):
            d.cell(20 + CELL * t, y, t, COLOURS[head])
            d.cell(320 + CELL * t, y, t if t in kept else "", COLOURS[head] if t in kept else PALE)
    flat = [(head, t) for head, kept in enumerate(HEADS) for t in kept]
    for i in range(16):
        for row in range(2):
            n = 16 * row + i
            known = n < len(flat)
            d.cell(620 + CELL * i, 48 + 44 * row, flat[n][1] if known else "", COLOURS[flat[n][0]] if known else FREE, dashed=not known)
    d.text(748, 84, f"{len(flat)} of 32 rows; free from here on", "middle", 12)
    d.text(20, 150, "[kv_heads, tokens, head_dim]", size=12)
    d.text(20, 168, "two KV heads of 16 tokens", size=12)
    d.text(320, 150, f"offsets 0, {len(HEADS[0])}, {len(flat)}", size=12)
    d.text(320, 168, "kept " + ", ".join(str(t) for t in HEADS[0][:4]) + ", ...", size=12)
    d.text(620, 150, "compact_to_flat, compact_in_place,", size=12)
    d.text(620, 168, "or moves of your pages and cells", size=12)
    for x in (282, 582):
        d.arrow(x, 78, x + 32, 78)
    return d.done()


def strided():
    d = Drawing(760, 230, "Strided: head-major and token-major rows, and a transposed value cache")
    for top, title, note, place in (
            (28, "head-major", "strides {tokens * head_dim, head_dim, 1}", lambda h, t: h * 12 + t),
            (98, "token-major", "strides {head_dim, heads * head_dim, 1}", lambda h, t: t * 2 + h)):
        d.text(20, top, title, weight="bold")
        d.text(120, top, note)
        for h in range(2):
            for t in range(12):
                d.cell(20 + 28 * place(h, t), top + 12, t, COLOURS[h], size=26)
    d.text(20, 168, "transposed values", weight="bold")
    d.text(160, 168, "strides {head_dim * tokens, 1, tokens}: one channel of all tokens, then the next")
    for channel in range(2):
        for t in range(12):
            d.cell(20 + 28 * (12 * channel + t), 180, t, COLOURS[0] if channel == 0 else "#7fa9c9", size=26)
    d.text(20, 222, "numbers: token; colours: KV head (below: channel)", size=11)
    return d.done()


def paged():
    d = Drawing(760, 220, "Paged: a table names the pages of a sequence; the plan moves the fewest rows and frees pages")
    table, kept, page = [5, 1, 6, 3], {0, 1, 2, 6, 9, 12, 14, 15}, 4
    d.text(20, 24, "page table", weight="bold")
    for i, p in enumerate(table):
        d.cell(110 + 30 * i, 8, p, PALE, size=26)
    d.text(20, 66, "pool of pages, before", weight="bold")
    d.text(20, 146, "after: indices 5, 3", weight="bold")
    for p in range(8):
        x = 20 + 90 * p
        for top in (76, 156):
            d.text(x + 32, top + 40, f"page {p}", "middle", 11)
            d.box(x - 2, top - 2, 4 * CELL + 4, CELL + 4, "#ffffff")
        for slot in range(page):
            if p in table:
                t = table.index(p) * page + slot
                d.cell(x + CELL * slot, 76, t, KEPT if t in kept else PALE)
            after = {5: [0, 1, 2, 6], 3: [12, 9, 14, 15]}.get(p)
            d.cell(x + CELL * slot, 156, after[slot] if after else "", (SECOND if after[slot] in (6, 9) else KEPT) if after else FREE,
                   dashed=not after)
    d.text(20, 214, "orange: rows that moved into gaps; pages 1 and 6 are free again. The order of slots is not that of tokens.", size=11)
    return d.done()


def ragged():
    d = Drawing(760, 150, "Ragged: heads of different lengths in one array, with offsets")
    d.text(20, 24, "one array, heads of their own length", weight="bold")
    x = 20
    for h, rows in enumerate([HEADS[0], HEADS[1], [0, 3, 15]]):
        d.text(x, 56, f"head {h}", size=11)
        for t in rows:
            d.cell(x, 62, t, COLOURS[h % 2], size=26)
            x += 28
        for _ in range(2):
            d.cell(x, 62, "", FREE, dashed=True, size=26)
            x += 28
    d.text(20, 112, "offsets 0, 10, 17, 22 (memory); lengths 8, 5, 3")
    d.text(20, 134, "dashed: room for new tokens (flat_cache). A packed array of a plan has none: offsets 0, 8, 13, 16.", size=11)
    return d.done()


def cells():
    d = Drawing(760, 170, "Cells: a unified cache in which each cell belongs to one or more sequences")
    owners = ["A", "A", "B", "A", "", "B", "B", "A", "AB", "AB", "B", "A", "", "A", "B", ""]
    d.text(20, 24, "cells of a unified cache, each with its sequences and a position", weight="bold")
    for i, who in enumerate(owners):
        fill = {"A": KEPT, "B": SECOND, "AB": "#5b8c5a"}.get(who, FREE)
        d.box(20 + 44 * i, 38, 42, 30, fill, dashed=not who)
        d.text(41 + 44 * i, 58, who or "free", "middle", 11, colour="#ffffff" if who else INK)
        d.text(41 + 44 * i, 82, str(i), "middle", 10)
    listed = [i for i, who in enumerate(owners) if "A" in who]
    d.text(20, 114, "list_cells of sequence A: " + ", ".join(str(i) for i in listed))
    d.text(20, 136, "A cell holds one token for all heads and layers: one token set, given up by ranges of positions (seq_rm).", size=12)
    d.text(20, 156, "A shared cell (AB) becomes free when the last sequence gives it up.", size=12)
    return d.done()


# What is measured beside it, in five rows: label, kvtrim's row, the peer's name and row.
ROWS = [
    ("SnapKV scores, bf16", "score_bf16/snapkv/tokens:32768/threads:1", "torch", "torch/score_bf16/snapkv/tokens:32768"),
    ("exact value norms, f32", "norm/exact_l1_f32/tokens:32768/threads:1", "torch, tiled", "torch/norm/exact_l1_tiled_f32/tokens:32768"),
    ("Ada-KV budgets", "allocate/adaptive/tokens:32768", "torch", "torch/allocate/adaptive/tokens:32768"),
    ("gather, bf16", "compact/gather_bf16/tokens:32768", "torch index_select", "torch/compact/index_select_bf16/tokens:32768"),
    ("decode attention, f16", "decode/attention_f16/tokens:32768", "ggml", "ggml/decode/flash_attn_f16/tokens:32768"),
]


def speed():
    data = json.loads(SPEED.read_text())
    rows = {r["name"]: r for r in data["rows"]}
    d = Drawing(820, 330, "Five stages at 32768 tokens on one thread: kvtrim, a peer, and the machine's limit; logarithmic milliseconds")
    left, right = 190, 700
    at = lambda ms: left + (right - left) * (math.log10(ms) + 1) / 6  # 0.1 ms ... 100 s
    say = lambda ms: f"{ms:.2g} ms" if ms < 100 else f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.2g} s"
    d.text(20, 24, f"One layer of 32768 tokens, one thread, {data['cpu'].replace('(R)', '')}, {data['date']}", weight="bold")
    for power in range(-1, 6):
        x = at(10**power)
        d.parts.append(f'<path d="M{x:g} 40V296" stroke="{PALE}"/>')
        d.text(x, 312, {-1: "0.1 ms", 0: "1 ms", 1: "10 ms", 2: "100 ms", 3: "1 s", 4: "10 s", 5: "100 s"}[power], "middle", 11)
    for i, (label, ours, peer, theirs) in enumerate(ROWS):
        y = 50 + 50 * i
        d.text(left - 10, y + 22, label, "end")
        for row, name, fill, top in ((rows[ours], "kvtrim", KEPT, y), (rows[theirs], peer, "#b8c4ce", y + 17)):
            d.box(left, top, at(row["ms"]) - left, 15, fill, edge="none")
            d.text(at(row["ms"]) + 6, top + 12, f"{name} {say(row['ms'])}", size=11)
        x = at(rows[ours]["limit_ms"])
        d.parts.append(f'<path d="M{x:g} {y - 3}V{y + 18}" stroke="{SECOND}" stroke-width="2.5"/>')
    d.text(left, 327, "orange: the same work at the machine's measured rates. Random data, Llama-3.1-8B's shape.", size=11)
    return d.done()


def main():
    PICTURES.mkdir(exist_ok=True)
    differ = []
    for draw in (trim, strided, paged, ragged, cells, speed):
        file = PICTURES / f"{draw.__name__}.svg"
        if "--check" not in sys.argv[1:]:
            file.write_text(draw())
        elif not file.exists() or file.read_text() != draw():
            differ.append(file.name)
    if differ:
        sys.exit(f"pictures: {', '.join(differ)} must be drawn anew: ./dev docs --write")
    print("pictures: as drawn")


main()
