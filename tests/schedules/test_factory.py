"""What a kernel carries of the function that made it."""

import json

from schedules import cpu
from schedules.builder import FACTORY
from schedules.tiles import CPU_TILES


def test_a_kernel_names_its_factory_and_arguments():
    tiles = CPU_TILES["sse"]
    func = cpu.linear(tiles, 32, 64, residual_scale=0.5)
    assert json.loads(str(func.attrs[FACTORY])) == {"name": "linear", "arguments": {
        "inputs": 32, "outputs": 64, "weight_format": "float32", "activations": "f32", "bias_dtype": "",
        "residual_scale": 0.5}}
    assert cpu.linear(tiles, 32, 64, residual_scale=0.5) is func
    assert cpu.union(3).attrs[FACTORY] != cpu.union(3, dense=True).attrs[FACTORY]
