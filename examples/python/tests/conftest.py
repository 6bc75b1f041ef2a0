# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.fixture
def layer(rng):
    """Keys and values [2, 100, 16], queries [4, 8, 16]."""
    draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
    return draw(2, 100, 16), draw(4, 8, 16), draw(2, 100, 16)
