"""What a library for a named processor may use."""

import platform

import pytest
from tvm.target import codegen

from schedules.tiles import CPU_TILES
from targets.cpu import cpu_target, vector_unit

x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine lacks x86 instructions")


@x86
def test_named_processors_keep_to_what_their_vector_unit_always_has():
    target = cpu_target("sapphirerapids")
    features = {str(feature) for feature in codegen.llvm_get_cpu_features(target.tvm_target)}
    assert target.host.endswith("avx512vnni") and "avx512fp16" not in features and "avx512bw" in features


@x86
@pytest.mark.parametrize("cpu, unit", [
    ("cascadelake", "avx512vnni"), ("znver4", "avx512vnni"), ("skylake-avx512", "avx512"), ("alderlake", "avxvnni"),
    ("haswell", "avx2"), ("x86-64-v3", "avx2"), ("x86-64-v2", "sse")])
def test_named_processors_have_their_row_of_the_tile_table(cpu, unit):
    target = cpu_target(cpu)
    assert target.host == f"x86_64 {cpu}, {unit}" and target.tiles is CPU_TILES[unit]


@pytest.mark.parametrize("features, unit", [
    ({"neon"}, "neon"), ({"neon", "dotprod"}, "dotprod"), ({"avx2"}, "sse"), ({"avx2", "fma"}, "avx2"), (set(), "sse"),
    ({"avx2", "fma", "avxvnni"}, "avxvnni"), ({"avx2", "fma", "avxvnni", "avx512f"}, "avx512"),
    ({"avx2", "fma", "avx512f", "avx512vnni"}, "avx512vnni")])
def test_vector_units(features, unit):
    assert vector_unit(features) == unit
