// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The polynomial that exp2() of every target uses: included inside each target's namespace, behind broadcast() and fma().

// 2^x for 0 <= x < 1; the whole part goes to the exponent.
KVTRIM_INLINE floats power_of_fraction(floats x) {
    floats p = broadcast(0.00187757661f);
    p = fma(p, x, broadcast(0.00898934025f));
    p = fma(p, x, broadcast(0.0558263179f));
    p = fma(p, x, broadcast(0.240153617f));
    p = fma(p, x, broadcast(0.693153073f));
    return fma(p, x, broadcast(0.999999925f));
}
