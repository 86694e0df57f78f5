"""Blocks are found where one tensor goes on."""

import onnx_ir as ir
import pytest

from onnxq.graph import load_model
from onnxq.quantize.draft import Draft
from onnxq.quantize.plan import make_plan
from onnxq.quantize.training.blocks import Block, blocks_of
from onnxq.target import load_target
from tests.quantize.nets import HEAD, calibrated, weights

LAYER = "[conv_{n}] c{n} = Conv<pads=[1,1,1,1]>({x}, w{n}, b{n})\n[relu_{n}] r{n} = Relu(c{n})\n"


def blocks(tmp_path, body: str, at_least: int = 3, layers: int = 6) -> tuple[Block, ...]:
    text = HEAD + f"g (float[1,4,6,6] x) => (float[1,4,6,6] y) {{\n{body}}}"
    numbers = range(1, layers + 1)
    constants = {f"b{n}": weights(4, seed=n) for n in numbers}
    constants |= {f"w{n}": weights(4, 4, 3, 3, seed=n) for n in numbers}
    net = calibrated(tmp_path, text, **constants)
    target = load_target("ort-x86")
    graph = ir.from_proto(load_model(net.path))
    return blocks_of(
        Draft(graph, make_plan(graph, target, net.ranges.ranges, {}), target), at_least
    )


def chain(first: int, last: int, start: str) -> str:
    names = [start, *(f"r{n}" for n in range(first, last))]
    return "".join(
        LAYER.format(n=n, x=x) for n, x in zip(range(first, last + 1), names, strict=True)
    )


def test_a_chain_is_cut_behind_every_third_activation(tmp_path):
    found = blocks(tmp_path, chain(1, 6, "x") + "[end] y = Relu(r6)\n")
    assert [block.layers for block in found] == [
        ("conv_1", "conv_2", "conv_3"),
        ("conv_4", "conv_5", "conv_6"),
    ]
    assert [(block.inputs, block.outputs) for block in found] == [
        (("x",), ("r3",)),
        (("r3",), ("y",)),
    ]


@pytest.mark.parametrize("at_least", [2, 3])
def test_a_residual_branch_lies_in_one_block(tmp_path, at_least):
    body = chain(1, 1, "x") + chain(2, 4, "r1") + "[add] s = Add(r4, r1)\n"
    body += chain(5, 6, "s") + "[end] y = Relu(r6)\n"
    found = blocks(tmp_path, body, at_least)
    (around,) = [block for block in found if "conv_3" in block.layers]
    assert {"conv_2", "conv_3", "conv_4"} <= set(around.layers)
    assert around.outputs == ("s",)


def test_between_the_skips_of_a_unet_a_block_has_two_ends(tmp_path):
    body = chain(1, 1, "x") + chain(2, 10, "r1") + "[add] s = Add(r10, r1)\n"
    body += chain(11, 12, "s") + "[end] y = Relu(r12)\n"
    found = blocks(tmp_path, body, layers=12)
    assert len(found) > 1
    assert all(len(block.layers) <= 9 for block in found)


def test_by_layer_every_layer_is_a_block(tmp_path):
    found = blocks(tmp_path, chain(1, 6, "x") + "[end] y = Relu(r6)\n", at_least=1)
    assert [block.layers for block in found] == [(f"conv_{n}",) for n in range(1, 7)]


def test_no_block_ends_between_an_operator_and_what_is_folded_into_it(tmp_path):
    for block in blocks(tmp_path, chain(1, 6, "x") + "[end] y = Relu(r6)\n", at_least=1):
        assert not any(name.startswith("c") for name in block.outputs)
