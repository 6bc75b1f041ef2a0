// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// load_first_of_two() of targets without masked loads of every element: included inside their namespaces.

template <class T>
KVTRIM_INLINE void load_first_of_two(const T* from, index_t count, floats& first, floats& second) {
    T some[2 * lanes] = {};
    std::copy_n(from, std::clamp<index_t>(count, 0, 2 * lanes), some);
    load_two(some, first, second);
}
