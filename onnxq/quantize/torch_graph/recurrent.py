"""RNN, GRU and LSTM, step by step, with the default activations.

Source: the equations of the three in the ONNX operator specification, opset 7 and 14.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxq.quantize.torch_graph.registry import Call, operator

_DEFAULTS = {
    "RNN": ("Tanh",),
    "GRU": ("Sigmoid", "Tanh"),
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_UNSAID = ("activation_alpha", "activation_beta", "clip", "input_forget")


@dataclass(frozen=True)
class _Weights:
    """Of one direction: input and recurrent weights (gates · hidden, ...), biases, peepholes."""

    w: Tensor
    r: Tensor
    wb: Tensor
    rb: Tensor
    peepholes: Tensor


_State = tuple[Tensor, ...]  # (batch, hidden) each: the output, and of an LSTM the cell
_StepOf = Callable[[Call, _Weights, Tensor, _State], _State]


def _rnn(call: Call, weights: _Weights, x: Tensor, state: _State) -> _State:
    return (torch.tanh(x @ weights.w.T + state[0] @ weights.r.T + weights.wb + weights.rb),)


def _gru(call: Call, weights: _Weights, x: Tensor, state: _State) -> _State:
    """Gates in the order update, reset, hidden."""
    (h,) = state
    update, reset, new = (x @ weights.w.T + weights.wb).chunk(3, -1)
    r_update, r_reset, r_new = weights.r.chunk(3)
    b_update, b_reset, b_new = weights.rb.chunk(3)
    z = torch.sigmoid(update + h @ r_update.T + b_update)
    r = torch.sigmoid(reset + h @ r_reset.T + b_reset)
    if call.get("linear_before_reset", 0):
        n = torch.tanh(new + r * (h @ r_new.T + b_new))
    else:
        n = torch.tanh(new + (r * h) @ r_new.T + b_new)
    return ((1 - z) * n + z * h,)


def _lstm(call: Call, weights: _Weights, x: Tensor, state: _State) -> _State:
    """Gates in the order input, output, forget, cell."""
    h, c = state
    gates = x @ weights.w.T + h @ weights.r.T + weights.wb + weights.rb
    i, o, f, g = gates.chunk(4, -1)
    p_i, p_o, p_f = weights.peepholes.chunk(3)
    cell = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
    return torch.sigmoid(o + p_o * cell) * torch.tanh(cell), cell


_STEPS: dict[str, _StepOf] = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}


@operator(*_STEPS)
def _recurrent(call: Call, x: Tensor, *given: Tensor | None) -> tuple[Tensor, ...]:
    """``given``: W, R, B, sequence_lens, initial_h and, of an LSTM, initial_c and P."""
    every = [*given, *[None] * (7 - len(given))]
    w, r, b, lengths, h, c, p = (every[i] for i in range(7))
    if w is None or r is None:
        raise call.refused("weights are missing")
    directions = _directions(call)
    hidden, batch_first = r.shape[-1], call.get("layout", 0) == 1
    x = x.transpose(0, 1) if batch_first else x
    steps, batch = x.shape[:2]
    gates = _GATES[call.op_type]
    b = x.new_zeros(len(directions), 2 * gates * hidden) if b is None else b
    p = x.new_zeros(len(directions), 3 * hidden) if p is None else p
    given_states = (h, c)[: 2 if call.op_type == "LSTM" else 1]
    states = [_initial(s, (len(directions), batch, hidden), x, batch_first) for s in given_states]
    ends = torch.full((batch,), steps, device=x.device) if lengths is None else lengths.long()
    ys, lasts = [], []
    for d, backwards in enumerate(directions):
        weights = _Weights(w[d], r[d], b[d].chunk(2)[0], b[d].chunk(2)[1], p[d])
        first = tuple(s[d] for s in states)
        y, last = _walked(call, weights, _turned(x, ends, backwards), (first, ends))
        ys.append(_turned(y, ends, backwards))
        lasts.append(last)
    finals = [torch.stack(parts) for parts in zip(*lasts, strict=True)]
    y = torch.stack(ys, 1)
    if batch_first:
        return y.permute(2, 0, 1, 3), *(f.transpose(0, 1) for f in finals)
    return y, *finals


def _directions(call: Call) -> tuple[bool, ...]:
    """Whether each direction goes backwards. Raises ModelError for what is not computed."""
    named = call.only("direction", "forward", ("forward", "reverse", "bidirectional"))
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[named]
    usual = [name.encode() for name in _DEFAULTS[call.op_type] * len(directions)]
    if call.get("activations", usual) != usual:
        raise call.refused("activations other than the default ones")
    for name in _UNSAID:
        if call.get(name):
            raise call.refused(f"the attribute {name}")
    return directions


def _initial(state: Tensor | None, shape: tuple[int, ...], x: Tensor, batch_first: bool) -> Tensor:
    if state is None:
        return x.new_zeros(shape)
    return state.transpose(0, 1) if batch_first else state


def _turned(x: Tensor, ends: Tensor, backwards: bool) -> Tensor:
    """Every sequence of (steps, batch, ...) backwards up to its own end."""
    if not backwards:
        return x
    steps = torch.arange(x.shape[0], device=x.device).reshape(-1, 1)
    places = torch.where(steps < ends, ends - 1 - steps, steps)
    return torch.gather(x, 0, places.unsqueeze(-1).expand(x.shape))


def _walked(
    call: Call, weights: _Weights, x: Tensor, begun: tuple[_State, Tensor]
) -> tuple[Tensor, _State]:
    """All outputs, zero behind the end of a sequence, and the state at that end."""
    state, ends = begun
    outputs = []
    for t in range(x.shape[0]):
        going = (t < ends).reshape(-1, 1)
        new = _STEPS[call.op_type](call, weights, x[t], state)
        outputs.append(torch.where(going, new[0], 0))
        state = tuple(torch.where(going, n, s) for n, s in zip(new, state, strict=True))
    return torch.stack(outputs), state
