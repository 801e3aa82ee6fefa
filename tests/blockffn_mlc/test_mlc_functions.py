"""The functions for MLC's engine: arguments, results, their order, shapes and types, as its contract says (sections
1.2 and 1.3)."""

import pytest
from checkpoints import GQA, MLA
from tvm import relax

from blockffn_mlc.builder import make_plan
from blockffn_mlc.checkpoint.draft import Draft
from blockffn_mlc.draft_config import DraftConfig
from runtime_py.mlc.functions import DRAFT_FUNCTIONS, FUNCTIONS
from targets import find_target

H, V = GQA.hidden_size, GQA.vocab_size
CHUNK, ONE, BATCH, ROWS = f"f32[1, n, {H}]", f"f32[1, 1, {H}]", f"f32[b, 1, {H}]", f"f32[n, {H}]"
# Arguments -> result; P: the weights in one tuple, KV: the cache, which comes back beside a result.
AROUND = {
    "embed": f"i32[n], P -> {ROWS}", "alloc_embedding_tensor": f" -> f32[80, {H}]",
    "create_tir_paged_kv_cache": "int, int, int, int, int -> KV",
    "gather_probs": f"f32[m, {V}], i32[k], f32[k, {V}] -> f32[k, {V}]",
    "scatter_probs": f"f32[k, {V}], i32[k], f32[m, {V}] -> f32[m, {V}]",
    "gather_hidden_states": f"f32[m, {H}], i32[k], f32[k, {H}] -> f32[k, {H}]",
    "scatter_hidden_states": f"f32[k, {H}], i32[k], f32[m, {H}] -> f32[m, {H}]",
    "get_logits": f"{ROWS}, P -> f32[n, {V}]",
    **{f"{name}_to_last_hidden_states": f"{x}, KV, P -> {x}, KV" for name, x in (
        ("prefill", CHUNK), ("batch_prefill", CHUNK), ("decode", ONE), ("batch_decode", BATCH))}}
MODEL = AROUND | {
    "prefill": f"{CHUNK}, KV, P -> f32[1, 1, {V}], KV", "decode": f"{ONE}, KV, P -> f32[1, 1, {V}], KV",
    "batch_prefill": f"{CHUNK}, i32[b], KV, P -> f32[1, b, {V}], KV",
    "batch_decode": f"{BATCH}, KV, P -> f32[b, 1, {V}], KV", "batch_verify": f"{CHUNK}, KV, P -> f32[1, n, {V}], KV",
    "batch_verify_to_last_hidden_states": f"{CHUNK}, KV, P -> {CHUNK}, KV",
    "softmax_with_temperature": f"f32[b, 1, {V}], f32[b] -> f32[b, 1, {V}]",
    "apply_logit_bias_inplace": f"f32[b, {V}], i32[k], i32[k], f32[k] -> f32[b, {V}]",
    "apply_penalty_inplace": f"f32[b, {V}], i32[s], i32[k], i32[k], i32[k], f32[s, 3] -> f32[b, {V}]",
    "apply_bitmask_inplace": f"f32[b, {V}], i32[s], i32[b, {-(-V // 32)}] -> f32[b, {V}]"}
DRAFT = AROUND | {"fuse_embed_hidden_states": f"{ROWS}, {ROWS}, P -> {ROWS}",
                  "batch_get_logits": f"{ROWS}, P -> f32[n, {V}]"}
SAMPLER = {  # on devices where the engine chooses tokens (section 1.3)
    "multinomial_from_uniform": f"f32[rows, {V}], f32[samples], i32[samples] -> i32[samples]",
    "argsort_probs": f"f32[rows, {V}] -> f32[rows, {V}], i32[rows, {V}]",
    "sample_with_top_p": f"f32[rows, {V}], i32[rows, {V}], f32[samples], i32[samples], f32[rows] -> i32[samples]",
    "sampler_take_probs": f"f32[rows, {V}], i32[rows, {V}], i32[samples], i32[samples], i32[positions] -> "
                          "f32[samples], f32[positions], i32[positions]",
    "renormalize_by_top_p": f"f32[rows, {V}], f32[rows], f32[rows, 3] -> f32[rows, {V}]",
    "sampler_verify_draft_tokens": f"f32[rows, {V}], i32[rows], f32[rows, {V}], i32[rows], i32[rows], f32[rows], "
                                   f"i32[trees] -> f32[rows, {V}], i32[trees]"}
LATENT = {name: words for name, words in MODEL.items()
          if not any(part in name for part in ("verify", "last_hidden", "get_logits"))} | {
    "extend": MODEL["prefill"], "batch_extend": MODEL["batch_prefill"]}
OURS = {"_metadata", "argmax", "commit", "draft", "forward", "forward_dense"}


def words(kind):
    """A type, as the tables have it."""
    if isinstance(kind, relax.TensorType):
        dtype = {"float32": "f32", "int32": "i32"}[str(kind.dtype)]
        return f"{dtype}[{', '.join(getattr(size, 'name', None) or str(int(size)) for size in kind.shape)}]"
    if isinstance(kind, relax.ShapeType):
        assert kind.ndim == 1
        return "int"
    if isinstance(kind, relax.TupleType):
        return ", ".join(map(words, kind.fields))
    return "KV"


def signature(function):
    arguments = ["P" if param.name == "packed_params" else words(param.ty) for param in function.params]
    return f"{', '.join(arguments)} -> {words(function.ret_ty)}"


@pytest.fixture(scope="module", params=[(GQA, "cpu"), (MLA, "vulkan")],
                ids=lambda param: f"{param[0].attention_type} for {param[1]}")
def plan(request):
    config, target = request.param
    draft = Draft(DraftConfig(H, 1, 96, 4, 2, 16), True, tuple(range(9, 40)))
    return make_plan(config, find_target(target), "q4f16_1", 128, 80, draft=draft, mlc=True)


@pytest.mark.parametrize("part", ["model", "draft"])
def test_arity_shapes_and_types(plan, part):
    model = MODEL | (SAMPLER if plan.target.name == "vulkan" else {})
    graph, expected = (plan.graph, model) if part == "model" else (plan.draft.graph, DRAFT)
    found = graph.relax_functions()
    assert {name: signature(function) for name, function in found.items() if name not in OURS} == expected
    for name, function in found.items():
        assert name in OURS or len(function.params) == FUNCTIONS[name].arguments, name


def test_over_a_latent_cache_there_is_extension_and_no_verification():
    found = make_plan(MLA, find_target("android"), "q4f16_1", 128, 80, mlc=True).graph.relax_functions()
    assert {name: signature(function) for name, function in found.items() if name not in OURS} == LATENT


def test_a_draft_has_what_the_engine_needs_of_one(plan):
    assert {*DRAFT_FUNCTIONS, "get_logits", "batch_get_logits"} == set(plan.draft.graph.functions()) - {"_metadata"}


def test_what_a_call_allocates_is_told(plan):
    """At least the states of a chunk; nothing where everything is given."""
    for graph in (plan.graph, plan.draft.graph):
        usage = graph.memory_usage
        assert set(usage) == set(graph.functions()) - {"_metadata"}
        assert usage["gather_probs"] == usage["scatter_hidden_states"] == 0
        assert usage["alloc_embedding_tensor"] == 80 * H * 4
        assert usage["prefill_to_last_hidden_states"] > 2 * 80 * H * 4
        assert 0 < usage["decode_to_last_hidden_states"] < usage["prefill_to_last_hidden_states"] / 20
