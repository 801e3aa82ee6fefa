"""Scalar arguments of kernels: how they reach the shader, and which do not."""

import numpy as np
import pytest
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from vulkan_harness import library, on_device, shaders_of

from schedules.gpu.grid import launch

SCALARS = ("int64", "int32", "float32", "uint32")


def scalars(count):
    """y[i] = the i-th scalar argument as float32; types in turn."""
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
            y = T.match_buffer(T.arg("y", T.handle()), (count,), "float32")
            values = [T.arg(f"s{i}", getattr(T, SCALARS[i % len(SCALARS)])()) for i in range(count)]
            with launch((1,), (1,)):
                for i, value in enumerate(values):
                    T.buffer_store(y, T.cast(value, "float32"), [i])
    return builder.get()


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return library({f"scalars_{count}": scalars(count) for count in (16, 17)}, tmp_path_factory.mktemp("scalars"))


@pytest.mark.parametrize(("count", "uniform"), [(16, False), (17, True)])
def test_scalars_beyond_push_constants_are_in_a_uniform_buffer(count, uniform, kernels):
    samples = (-7, 2**31 - 1, 0.5, 2**32 - 1)
    values = [samples[i % len(samples)] for i in range(count)]
    (shader,) = shaders_of({"k": scalars(count)})
    assert shader.uniform == uniform and ("push_constant" in shader.source) != uniform
    (found,) = on_device(kernels[f"scalars_{count}"], [np.zeros(count, "float32")], *values)
    np.testing.assert_array_equal(found, np.array(values, "float32"))


@pytest.mark.parametrize("size", [2**31, -2**31 - 1])
def test_a_size_that_does_not_fit_32_bits_is_refused_with_the_kernels_name(size, kernels):
    with pytest.raises(ValueError, match=rf"kernel scalars_16_kernel is {size}, which does not fit into its 32 bits"):
        on_device(kernels["scalars_16"], [np.zeros(16, "float32")], size, *(0,) * 15)
