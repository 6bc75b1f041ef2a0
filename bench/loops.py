#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Instructions and estimated cycles of the hot loops, for 64-bit ARM beside AVX2: a table on stdout.

    bench/loops.py                    both compiled by clang++; needs clang, llvm (for llvm-mca), g++-aarch64-linux-gnu
    bench/loops.py --compiler g++
    bench/loops.py --show NAME        the instructions of one loop, for every target

bench/loops.inl and bench/loops_bf16.inl have one function for each loop. Of its innermost loops the one that does most work in
an iteration is taken: multiply-adds, exponentials, floats put in order, written or read, as the function's name begins. Cycles
are llvm-mca's, for 16 units of work: what the ports and the width of a processor alone allow, to what it allows where
instructions also wait for each other; every load hits the first level cache, every branch is predicted. Its models let an
address that a store increments wait for the stored value, which processors do not: in a loop that only converts the second
figure is too high.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

root = pathlib.Path(__file__).resolve().parent.parent
arm = ["--target=aarch64-linux-gnu"]
targets = {  # name: (flags of clang++, g++, triple, processors)
    "neon": (arm + ["-mcpu=neoverse-n2", "-march=armv8-a"], "aarch64-linux-gnu-g++", "aarch64", ("neoverse-n2", "apple-m1")),
    "avx2": ([], "x86_64-linux-gnu-g++", "x86_64", ("skylake",)),
}
size_of_register = {"q": 16, "d": 8, "s": 4, "b": 1, "xmm": 16, "ymm": 32}


def floats_moved(line, is_store):
    """Bytes / 4 of a vector load or store."""
    m = re.match(r"(ldr|ldur|ldp|str|stur|stp)\s+([qd])\d+,", line)
    if m:
        if m[1].startswith("st") != is_store:
            return 0
        return size_of_register[m[2]] // 4 * (2 if m[1].endswith("p") else 1)
    m = re.match(r"(ld|st)[1-4]\s+\{(.*?)\}, \[", line)
    if m:
        floats = 4 * m[2].count(".4s") + 2 * m[2].count(".2")
        return floats if (m[1] == "st") == is_store else 0
    m = re.match(r"vmov(?:[ua]p[sd]|dq[ua])\s+(.*)", line)
    if m:
        stores = m[1].rstrip().endswith(")")
        return size_of_register[re.search(r"%(.mm)", m[1])[1]] // 4 if stores == is_store else 0
    if not is_store:  # an operand in memory
        m = re.match(r"v\w+\s+\S*\(.*%(ymm)\d+", line)
        return 8 if m else 0
    return 0


def multiply_adds(line):
    if re.match(r"fmla\s+v\d+\.4s", line):
        return 4
    if line.startswith("bfmmla"):
        return 16
    m = re.match(r"vfn?m(add|sub)\d+ps\s.*%(.mm)\d+$", line)
    return size_of_register[m[2]] // 4 if m else 0


def exponentials(line):
    """One is rounded down for each."""
    if re.match(r"frintm\s+v\d+\.4s", line):
        return 4
    return 8 if re.match(r"vroundps\s.*%ymm", line) else 0


def ordered(line):
    """The sign of each is spread over its bits."""
    if re.match(r"(cmlt\s+v\d+\.4s.*#0|sshr\s+v\d+\.4s.*31)$", line):
        return 4
    return 8 if re.match(r"vpsrad\s+\$31.*%ymm", line) else 0


work_of = {
    "ordered": ordered,
    "products": multiply_adds,
    "exponentials": exponentials,
    "written": lambda line: floats_moved(line, True),
    "read": lambda line: floats_moved(line, False),
}


not_inlined = {  # where the loop is in a function of the kernels
    "products_norms": r"\d+fold_productsIL\w+0ELl[346]E",
    "products_bf16": r"6bfmmla14multiply_panel",
}


def functions(assembly, target):
    """(name, lines) of the functions of both."""
    name, lines = None, []
    for line in assembly.splitlines():
        line = line.split("//" if target == "neon" else "#")[0].strip()
        m = re.match(r"_ZN6kvtrim5loops\d+%s(\d+)(\w+):" % target, line)
        other = [n for n, symbol in not_inlined.items() if re.match(r"_ZN6kvtrim(?:\d+v\w+)?7kernels(?:\d+%s)?%s[\w.]+:" % (target, symbol), line)]
        if m or other:
            name, lines = other[0] if other else m[2][: int(m[1])], []
            name = None if m and name in not_inlined else name
        elif name and (line.startswith(".size") or line.startswith(".cfi_endproc")):
            yield name, lines
            name = None
        elif name and line and (line[0] not in ".#" or line.endswith(":")):
            lines.append(re.sub(r"\s+", " ", line))


def loops_of(lines):
    labels, loops = {}, []
    for at, line in enumerate(lines):
        if line.endswith(":"):
            labels[line[:-1]] = at
        m = re.match(r"(?:b\.?\w*|cbn?z|tbn?z|j\w+) (?:.*, )?(\.L\w+)$", line)
        if m and m[1] in labels:
            loops.append((labels[m[1]], at + 1))
    return loops


def hot_loop(name, lines):
    """The work of an iteration, and its lines. What does less than half as much per instruction as another loop is a loop
    around it, or one whose parts the compiler has put elsewhere."""
    work = work_of[name.split("_")[0]]
    found = [(sum(map(work, lines[begin:end])), begin, end) for begin, end in loops_of(lines)]
    densest = max((work / (end - begin) for work, begin, end in found), default=0)
    found = [a for a in found if a[0] > 0 and a[0] / (a[2] - a[1]) >= densest / 2]
    innermost = [a for a in found if not any(b != a and a[1] <= b[1] and b[2] <= a[2] for b in found)]
    done, begin, end = max(innermost, key=lambda a: (a[0], a[1] - a[2]), default=(0, 0, 0))
    return done, lines[begin:end]


def cycles(loop, triple, processor):
    text = "\n".join(line for line in loop if not line.endswith(":"))
    tool = max((t for t in map(shutil.which, ("llvm-mca", "llvm-mca-14", "llvm-mca-16", "llvm-mca-19")) if t), key=version)
    run = subprocess.run([tool, f"-mtriple={triple}", f"-mcpu={processor}", "-iterations=200"], input=text,
                         capture_output=True, text=True)
    if "instruction requires" in run.stderr:
        return None
    total = re.search(r"Total Cycles:\s+(\d+)", run.stdout)
    alone = re.search(r"Block RThroughput:\s+([\d.]+)", run.stdout)
    if not total or not alone:
        sys.exit(f"llvm-mca: {run.stderr}")
    return int(total[1]) / 200, float(alone[1])


def version(tool):
    return int(re.search(r"version (\d+)", subprocess.run([tool, "--version"], capture_output=True, text=True).stdout)[1])


def compile_loops(target, compiler):
    flags, gcc, _, _ = targets[target]
    command = ["clang++", *flags] if compiler == "clang++" else [gcc]
    with tempfile.NamedTemporaryFile(suffix=".s") as out:
        subprocess.run([*command, "-std=c++20", "-O2", "-I", root / "include", "-I", root, "-S", "-o", out.name,
                        root / "bench/loops.cpp"], check=True)
        return pathlib.Path(out.name).read_text()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", choices=("clang++", "g++"), default="clang++")
    parser.add_argument("--show", metavar="NAME")
    options = parser.parse_args()
    found = {t: {n: hot_loop(n, lines) for n, lines in functions(compile_loops(t, options.compiler), t)} for t in targets}
    if options.show:
        for target, loops in found.items():
            work, loop = loops[options.show]
            print(f"# {target}: {work} per iteration", *loop, sep="\n")
        return
    processors = [(t, p) for t in targets for p in targets[t][3]]
    print("| loop | " + " | ".join(f"{t} instructions" for t in targets) + " | "
          + " | ".join(f"{p} cycles" for _, p in processors) + " |")
    print("|---" * (1 + len(targets) + len(processors)) + "|")
    for name in found["neon"]:
        cells = []
        for target in targets:
            work, loop = found[target].get(name, (0, []))
            count = len([x for x in loop if not x.endswith(":")])
            cells.append(f"{count} / {work} = {count / work:.2f}" if work else "-")
        for target, processor in processors:
            work, loop = found[target].get(name, (0, []))
            estimate = cycles(loop, targets[target][2], processor) if work else None
            cells.append(f"{16 * estimate[1] / work:.1f} to {16 * estimate[0] / work:.1f}" if estimate else "-")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
