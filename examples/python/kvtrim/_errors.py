# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""What the library answers to what does not fit."""
from __future__ import annotations

import enum

from . import _c


class Code(enum.IntEnum):
    """Why a call was refused: the codes of kvtrim_c.h."""

    BUDGET_ZERO = 1
    BUDGET_BELOW_PROTECTION = 2
    WINDOW_EXCEEDS_TOKENS = 3
    HEADS_NOT_DIVISIBLE = 4
    RATIO_OUT_OF_RANGE = 5
    INVALID_PARAMETER = 6
    ROWS_DIFFER = 7
    PLAN_MISMATCH = 8
    INDEX_OVERFLOW = 9
    INVALID_TABLE = 10
    PAGE_SHARED = 11
    PAGES_TOO_FEW = 12
    NO_ROOM = 13
    WORKSPACE_TOO_SMALL = 14
    VIEWS_OVERLAP = 15
    OUT_OF_MEMORY = 100
    FAILED = 101


class Refused(ValueError):
    """The library refused a call, and nothing was written: arrays, plans and states are as they were.

    code    why
    needed  how much would have been enough, 0 where no number applies
    """

    def __init__(self, code: int, text: str, needed: int = 0) -> None:
        super().__init__(code, text, needed)  # all of it, so that it can be pickled
        self.code, self.text, self.needed = Code(code), text, needed

    def __str__(self) -> str:
        return f"{self.text} (needed: {self.needed})" if self.needed else self.text


def check(status: _c.Status) -> None:
    if status.code:
        raise Refused(status.code, status.text.decode(), status.needed)
