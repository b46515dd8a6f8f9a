"""No exported graph may name a device: it would compute on the exporting machine's kind of device only."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from diptych_serving.errors import UserError


def follow_input_device(part: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Let every device in a frozen graph be that of its first input. Changes the module, and returns it.

    Tracing writes the device of the example into each tensor that a backbone makes by itself, such as
    positions, rotary angles and masks.
    """
    graph = part.graph
    constants = list(_device_constants(graph))
    if constants:
        first_node = next(iter(graph.nodes()))
        inputs = list(graph.inputs())
        device = graph.create("prim::device", [inputs[1]], 1)  # inputs[0] is the module
        device.output().setType(constants[0].output().type())
        device.insertBefore(first_node)
        for constant in constants:
            constant.output().replaceAllUsesWith(device.output())
            constant.destroy()
    return part


def require_no_device(name: str, part: torch.jit.ScriptModule) -> None:
    """Raises UserError with the operations that are bound to a device."""
    uses = (use for node in _device_constants(part.graph) for use in node.output().uses())
    bound = {use.user.kind() for use in uses}
    # `x.cpu()` and `x.cuda()` have no device among their inputs.
    bound |= {node.kind() for node in _nodes(part.graph)} & {"aten::cuda", "aten::cpu"}
    if bound:
        raise UserError(
            f"export: the graph of {name} names a device in {', '.join(sorted(bound))}. On another device it "
            "would fail. Use another backbone; docs/backbones.md lists those that work. Nothing was written."
        )


def _device_constants(graph: torch.Graph) -> Iterator[torch.Node]:
    for node in _nodes(graph):
        if node.kind() == "prim::Constant" and node.output().type().kind() == "DeviceObjType":
            yield node


def _nodes(block: torch.Graph | torch.Block) -> Iterator[torch.Node]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
