"""What a device allows: kernels within the limits are compiled, others get one sentence."""

import re

import pytest
import tvm
from small_library import TOO_MUCH, small_graph, small_kernel, with_limit
from tvm.script.ir_builder import tirx as T

from blockffn_mlc.errors import UserError
from blockffn_mlc.libraries import _DeviceFunctions as DeviceFunctions
from blockffn_mlc.libraries import write_libraries
from schedules.builder import kernel
from schedules.gpu import paged_decode, paged_prefill, ragged_prefill, sparse_down
from schedules.gpu.grid import launch
from targets import find_target, tools
from targets.limits import grid, kernel_sources, statements
from targets.opencl import without_prototypes

ALLOWED = {"work_group": 256, "threadgroup_bytes": 16384, "statements": 500, "source_bytes": 20000,
           "buffer_bytes": 1 << 20, "buffers": 2, "groups": 8}
WORDS = {"work_group": "a work-group of 512 work-items", "threadgroup_bytes": r"threadgroup memory of \d+ bytes",
         "statements": r"an unrolled body of \d+ statements", "source_bytes": r"source text of \d+ bytes",
         "buffer_bytes": "a buffer of 134217728 bytes", "buffers": "a list of 4 buffers",
         "groups": "a grid of 9 work-groups along an axis"}
REMEDIES = {"buffer_bytes": "--context-window", "groups": "--prefill-chunk", "buffers": "--no-mlc"}


@pytest.fixture(scope="module")
def target():
    if not tools.ANDROID_LINKER.find():
        pytest.skip("no linker for Android (apt-get install lld)")
    result = find_target("android:generic")
    for name, value in ALLOWED.items():
        result = with_limit(result, name, value)
    return result


def refusal(target, folder, options):
    """What is said of a kernel; None if it is compiled."""
    graph = small_graph(**options)
    try:
        target.limits.check_shapes(target.name, graph.kernels(), 1)
        write_libraries(graph, target, folder / "library", "small_test_", lambda stage: None)
    except UserError as error:
        return str(error)
    return None


def test_a_kernel_within_the_limits_is_compiled(target, tmp_path):
    taken = write_libraries(small_graph(items=64, shared=64), target, tmp_path / "library", "small_test_",
                            lambda stage: None)
    assert taken == {"work_group": 64, "threadgroup_bytes": 256}
    assert {path.name for path in tmp_path.iterdir()} == {"library.so", "library.tar"}


@pytest.mark.parametrize("limit", ALLOWED)
def test_what_exceeds_a_limit_is_refused(target, tmp_path, limit):
    """In one sentence with kernel, value and limit; with a limit as high as that value it is compiled."""
    for name in {"statements", "source_bytes"} - {limit}:
        target = with_limit(target, name, 1 << 30)
    message = refusal(target, tmp_path, TOO_MUCH[limit])
    found = re.fullmatch(f"kernel add(_kernel)?: {WORDS[limit]}, target android:generic allows {ALLOWED[limit]}; .*",
                         message)
    assert found and REMEDIES.get(limit, "report the kernel") in message and "another --target" in message
    assert not list(tmp_path.rglob("*.so"))
    value = int(re.search(r"\d+", message)[0])
    assert value > ALLOWED[limit]
    assert f"allows {value - 1};" in refusal(with_limit(target, limit, value - 1), tmp_path, TOO_MUCH[limit])
    enough = value + 100 * (limit == "source_bytes")  # names in the system library are longer by its prefix
    assert refusal(with_limit(target, limit, enough), tmp_path, TOO_MUCH[limit]) is None


def test_symbolic_extents_count_as_their_bound(target):
    limits, kernels = with_limit(target, "groups", None).limits, {"add": small_kernel()}
    limits.check_shapes("t", kernels, limits.buffer_bytes // 128)
    with pytest.raises(UserError, match=f"buffer of {limits.buffer_bytes + 128} bytes"):
        limits.check_shapes("t", kernels, limits.buffer_bytes // 128 + 1)


def test_products_that_take_too_much_memory_are_made_and_refused():
    """Where threadgroup memory does not suffice even for one row, the build names the kernel and the limit."""
    target = find_target("android:generic")
    func = sparse_down(target.tiles, 4096, 32, 32, "float32", 1.0).with_attr("global_symbol", "down")
    split = DeviceFunctions()
    with tvm.transform.PassContext(instruments=[split]):
        tvm.compile(tvm.IRModule({"down": func}), target.tvm_target)
    with pytest.raises(UserError, match=r"kernel down_kernel: threadgroup memory of \d+ bytes, target .* allows 16384"):
        target.limits.check_functions(target.name, split.module)


def test_a_grid_of_symbolic_extents_counts_as_their_bound():
    def launches():
        with kernel(__name__, "int32") as k:
            y = k.tensor((n := k.rows_var(), 4))
            for groups in ((T.floordiv(n + 3, 4), 7), (7, n * 2)):
                with launch(groups, (1,)) as ((x, _), _):
                    T.buffer_store(y, T.float32(0), [x, 0])
        return k.func

    assert [grid(launches(), longest) for longest in (3, 4, 5)] == [7, 8, 10]


def test_a_loop_that_codegen_unrolls_counts_as_often_as_it_runs():
    with kernel(__name__) as k:
        y = k.tensor((8, 4))
        with T.unroll(0, 8) as i, T.unroll(0, 4) as j:
            T.buffer_store(y, T.float32(1), [i, j])
        with T.serial(0, 8) as i:
            T.buffer_store(y, T.float32(2), [i, 0])
    assert statements(k.func.body) == 8 * 4 + 1


def test_a_kernels_source_leaves_the_others_prototypes_out():
    texts = {"a": "#define A\n\n__kernel void a(int x) {\n}\n\n", "b": "__kernel void b(int x) {\n  x;\n}\n"}
    prototypes = "__kernel void a(int x);\n__kernel void b(int x);\n"
    source = "".join(f"// Function: {name}\n{without_prototypes(prototypes + text)}" for name, text in texts.items())
    assert kernel_sources(source) == texts


def test_nothing_to_check_is_not_within_the_limits():
    limits = find_target("opencl").limits
    with pytest.raises(RuntimeError, match="target opencl: no device functions to check"):
        limits.check_functions("opencl", tvm.IRModule())
    with pytest.raises(RuntimeError, match="target opencl: no kernels' source to check"):
        limits.check_source("opencl", "// no kernel")


def test_every_device_target_has_limits():
    for name in ("opencl", "android", "android:mali", "android:generic"):
        found = find_target(name)
        attributes = found.tvm_target.attrs
        assert int(attributes["max_num_threads"]) == found.limits.work_group
        assert int(attributes["max_shared_memory_per_block"]) == found.limits.threadgroup_bytes
        assert found.tiles.local_bytes <= found.limits.threadgroup_bytes
        assert found.tiles.items <= found.limits.work_group
    assert find_target("android:generic").limits.threadgroup_bytes == 16384


def test_a_row_of_the_cache_that_does_not_fit_is_left_to_the_limits():
    """A kernel is described all the same; what it takes is then refused in a sentence, by name."""
    tiles = find_target("android:generic").tiles
    assert [tiles.attention_block(size) for size in (512, 4096, 8192, 1 << 20)] == [16, 2, 1, 1]


@pytest.mark.parametrize(("name", "dtype", "shapes"), [
    *((name, dtype, [(14, 14, 192)]) for name in ("android", "android:mali") for dtype in ("float16", "float32")),
    ("android:generic", "float16", [(14, 14, 192), (14, 1, 320), (6, 1, 320), (16, 4, 128)])])
def test_attention_over_mlcs_cache_takes_at_most_16_kilobytes(name, dtype, shapes):
    """Heads of queries and keys, and their width: XLarge with keys of every head; on the smallest phones all others."""
    target, split = find_target(name), DeviceFunctions()
    functions = {}
    for shape in shapes:
        sizes = (target.tiles, *shape, dtype)
        for kind, func in {"decode": paged_decode(*sizes), "prefill": paged_prefill(*sizes, tree=True),
                           "ragged": ragged_prefill(*sizes, tree=True)}.items():
            symbol = f"{kind}_{shape[0]}_{shape[1]}"
            functions[symbol] = func.with_attr("global_symbol", symbol)
    with tvm.transform.PassContext(instruments=[split]):
        tvm.compile(tvm.IRModule(functions), target.tvm_target)
    assert 0 < target.limits.check_functions(name, split.module)["threadgroup_bytes"] <= 16384
