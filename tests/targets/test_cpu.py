"""What a library for a named processor may use."""

import platform

import pytest
from tvm.target import codegen

from targets.cpu import cpu_target


@pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine lacks x86 instructions")
def test_named_processors_keep_to_what_their_vector_unit_always_has():
    target = cpu_target("sapphirerapids")
    features = {str(feature) for feature in codegen.llvm_get_cpu_features(target.tvm_target)}
    assert target.host.endswith("avx512") and "avx512fp16" not in features and "avx512bw" in features
