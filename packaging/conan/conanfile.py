# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Conan 2 recipe of the checkout that it lies in: conan create packaging/conan"""

import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load


class Kvtrim(ConanFile):
    name = "kvtrim"
    license = "MIT"
    description = "KV-cache eviction policies for LLM engines, header-only"
    topics = ("llm", "kv-cache", "inference", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"

    @property
    def _checkout(self):
        return os.path.join(self.recipe_folder, "..", "..")

    def set_version(self):
        text = load(self, os.path.join(self._checkout, "include", "kvtrim", "version.hpp"))
        parts = [re.search(rf"#define KVTRIM_VERSION_{part} (\d+)", text).group(1) for part in ("MAJOR", "MINOR", "PATCH")]
        self.version = ".".join(parts)

    def export_sources(self):
        for pattern in ("CMakeLists.txt", "LICENSE", "include/*"):
            copy(self, pattern, self._checkout, self.export_sources_folder)

    def layout(self):
        cmake_layout(self)

    def validate(self):
        check_min_cppstd(self, 20)

    def generate(self):
        toolchain = CMakeToolchain(self)
        for option in ("KVTRIM_BUILD_TESTS", "KVTRIM_BUILD_EXAMPLES", "KVTRIM_BUILD_C_API"):
            toolchain.cache_variables[option] = False
        toolchain.cache_variables["KVTRIM_INSTALL"] = True
        toolchain.generate()

    def build(self):
        CMake(self).configure()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))

    def package_id(self):
        self.info.clear()

    def package_info(self):
        # The package's own CMake files, which have kvtrim::kernels too.
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = [os.path.join("share", "cmake", "kvtrim")]
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
