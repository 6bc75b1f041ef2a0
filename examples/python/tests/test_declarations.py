# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""What kvtrim/_c.py says of kvtrim_c.h is what stands there."""
import ctypes
import pathlib
import re

import pytest

import kvtrim
from kvtrim import _c, _core

HEADER = (pathlib.Path(__file__).parents[3] / "include/kvtrim_c.h").read_text()
CODE = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.S)
STRUCTS = {"Status": "status", "View": "view", "PolicyInfo": "policy_info", "OptionInfo": "option_info", "Rope": "rope",
           "Layer": "layer", "Request": "request", "Ints": "ints", "PagePool": "page_pool"}
C_NAMES = {"c_int": "int32_t", "c_long": "int64_t", "c_longlong": "int64_t", "c_ulong": "size_t", "c_ulonglong": "size_t",
           "c_float": "float", "c_double": "double", "c_char_p": "char*", "c_void_p": "void*", "c_uint": "uint32_t"}


def c_name(kind):
    """A ctypes type as the header spells it, without const; handles and structs are void pointers."""
    if kind is None:
        return "void"
    if issubclass(kind, ctypes.Array):
        return f"{c_name(kind._type_)}[{kind._length_}]"
    if issubclass(kind, ctypes._Pointer):
        return c_name(kind._type_) + "*"
    return C_NAMES.get(kind.__name__, f"kvtrim_{STRUCTS.get(kind.__name__, '?')}")


def plain(text):
    """A type in the header, in c_name()'s words."""
    text = re.sub(r"\bconst\b", "", text)
    return re.sub(r"\s+", "", text)


def same(ours, theirs):
    """Opaque handles are kvtrim_NAME* there and void* here."""
    return ours == theirs or (ours.replace("void", "") == re.sub(r"kvtrim_[a-z]+", "", theirs) and "void*" in ours)


@pytest.mark.parametrize("name", STRUCTS)
def test_structs_have_the_members_of_the_header(name):
    body = re.search(rf"typedef struct kvtrim_{STRUCTS[name]} {{(.*?)}} kvtrim_{STRUCTS[name]};", CODE, re.S)[1]
    members = re.findall(r"([\w\s*]+?[\s*])(\w+)(\[\d\])?;", body)
    ours = getattr(_c, name)._fields_
    assert [member[1] for member in members] == [field for field, _ in ours]
    for (kind, field, array), (_, own) in zip(members, ours):
        assert same(c_name(own), plain(kind) + array), field


@pytest.mark.parametrize("name", _c.FUNCTIONS)
def test_functions_have_the_arguments_of_the_header(name):
    returns, arguments = re.search(rf"KVTRIM_API ([\w\s*]+?)\s*kvtrim_{name}\((.*?)\);", CODE, re.S).groups()
    theirs = [] if arguments == "void" else [re.sub(r"\w+$", "", argument.strip()) for argument in arguments.split(",")]
    ours = _c.FUNCTIONS[name]
    assert len(theirs) == len(ours) - 1
    for own, other in zip(ours, [returns, *theirs]):
        assert same(c_name(own), plain(other)), (c_name(own), plain(other))


def test_numbers_are_those_of_the_header():
    numbers = {key: int(value) for key, value in re.findall(r"KVTRIM_(\w+) = (\d+)", CODE)}
    assert {code.name: code.value for code in kvtrim.Code} == {
        key: value for key, value in numbers.items()
        if key in re.search(r"enum {\s*KVTRIM_OK = 0,(.*?)};", CODE, re.S)[1].replace("KVTRIM_", "").split()}
    needs = {key.removeprefix("NEEDS_"): value for key, value in numbers.items() if key.startswith(("NEEDS_", "TAKES_"))}
    assert {need.name: need.value for need in kvtrim.Needs} == needs
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "I8", "F8_E4M3", "F8_E5M2", "STRIDED", "INDEXED",
                 "PAGED", "PAGED_PER_HEAD", "RAGGED", "INTEGER", "CHOICE"):
        assert getattr(_c, name) == numbers[name]
    assert [numbers[f"PER_{scope.upper()}"] for scope in _core._SCOPES] == [0, 1, 2]
    assert [numbers[loss.upper()] for loss in kvtrim.Replay.LOSSES] == [0, 1, 2]
    assert [numbers[form.upper()] for form in kvtrim.Projection.FORMS] == [0, 1]
    assert [numbers[order.upper()] for order in _core.PAGE_ORDERS] == [0, 1, 2]
    assert _c.API_VERSION == int(re.search(r"#define KVTRIM_C_API_VERSION (\d+)", CODE)[1])


def test_version_is_that_of_the_project():
    version = (pathlib.Path(__file__).parents[3] / "include/kvtrim/version.hpp").read_text()
    assert kvtrim.__version__ == ".".join(re.findall(r"#define KVTRIM_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", version))
