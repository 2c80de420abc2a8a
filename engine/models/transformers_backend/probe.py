"""Finds out how a model attends by running it once on few tokens: what its attention function is given.

Names in config.json differ from family to family, but this is the interface that each of them must follow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, PreTrainedModel, masking_utils
from transformers.masking_utils import AttentionMaskInterface

from engine.errors import UnsupportedModel
from engine.models.attention.spec import AttentionSpec
from engine.models.transformers_backend.state_probe import StateCall, find_states

NAME = "berth_probe"
_FAR = 1 << 22  # a position beyond any window
_NUM_TOKENS = 4
_HARMLESS = frozenset({"position_ids", "cache_position"})  # tensors that don't change what attention computes

MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(slots=True)
class _Recording:
    modules: list[nn.Module] = field(default_factory=list)  # that attend, in the order of their calls
    specs: list[AttentionSpec] = field(default_factory=list)
    masks: dict[int, tuple[torch.Tensor, MaskFunction]] = field(default_factory=dict)  # by id of the tensor


_recording: _Recording | None = None  # of the one probe that runs


@dataclass(frozen=True, slots=True)
class Anatomy:
    """How a model computes, by the names of its modules."""

    specs: Mapping[str, AttentionSpec]  # of the modules that attend, in order
    linears: Sequence[tuple[str, ...]]  # linear layers that ran, once each; those of a group on one input
    states: Mapping[str, StateCall]  # of the modules that carry a state beside attention, in order

    rowwise: Sequence[str] = ()  # of the decoder's layers that seem to run each token by itself

    @property
    def inner(self) -> str:
        """The name of some module inside the decoder."""
        return next(iter((*self.specs, *self.states)))


def probe(model: PreTrainedModel) -> Anatomy:
    """The model's attention implementation must be NAME.

    Raises UnsupportedModel if it attends in a way that the engine's cache can't; NotImplementedError or
    RuntimeError if it has no weights, but its code looks at numbers.
    """
    token_ids = torch.zeros(1, _NUM_TOKENS, dtype=torch.int64, device=model.device)
    positions = torch.arange(_NUM_TOKENS, device=model.device)[None]
    linears = _LinearCalls(model)
    with _recorded() as recording, linears, torch.inference_mode(False), torch.no_grad():
        model.base_model(input_ids=token_ids, position_ids=positions, use_cache=False)
    names = {module: name for name, module in model.named_modules()}
    specs = {names[module]: spec for module, spec in zip(recording.modules, recording.specs, strict=True)}
    if len(specs) < len(recording.modules):
        raise UnsupportedModel("This model uses an attention layer several times, each with keys of its own.")
    states = _find_states(model, specs, token_ids, positions)
    rowwise = _others(model, (*specs, *states))
    return Anatomy(specs, linears.groups(), states, rowwise)


class _LinearCalls:
    """Records which linear layers run on which tensors."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._linears = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}
        self._calls: list[tuple[str, torch.Tensor, int]] = []  # layer, its input, the input's version
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> None:
        for name, linear in self._linears.items():
            self._hooks.append(linear.register_forward_pre_hook(partial(self._note, name)))

    def __exit__(self, *exc_info: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, name: str, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._calls.append((name, args[0], args[0]._version))

    def groups(self) -> list[tuple[str, ...]]:
        """Layers called one after the other on one unchanged tensor, all with a bias or all without."""
        count = Counter(name for name, _, _ in self._calls)
        groups: list[list[tuple[str, torch.Tensor, int]]] = []
        for call in self._calls:
            if count[call[0]] > 1:
                continue
            if groups and self._belongs(call, groups[-1][-1]):
                groups[-1].append(call)
            else:
                groups.append([call])
        return [tuple(name for name, _, _ in group) for group in groups]

    def _belongs(self, call: tuple[str, torch.Tensor, int], other: tuple[str, torch.Tensor, int]) -> bool:
        (name, x, version), (name_before, x_before, version_before) = call, other
        has_bias = [self._linears[one].bias is not None for one in (name, name_before)]
        return (
            x is x_before
            and version == version_before
            and name.rpartition(".")[0] == name_before.rpartition(".")[0]
            and has_bias[0] == has_bias[1]
        )


def _find_states(
    model: PreTrainedModel,
    specs: Mapping[str, AttentionSpec],
    token_ids: torch.Tensor,
    positions: torch.Tensor,
) -> Mapping[str, StateCall]:
    """Without running a plain decoder once more: there, each layer attends."""
    if not getattr(model, "_is_stateful", False) and all(
        any(name.startswith(f"{layer}.") for name in specs) for layer in _layers_of(model, specs)
    ):
        return {}
    with _recorded():
        states = find_states(model, token_ids, positions)
    for name in states:
        if any(attending == name or attending.startswith(f"{name}.") for attending in specs):
            kind = type(model.get_submodule(name)).__name__
            raise UnsupportedModel(
                f"{kind} attends and carries a state in one, which the engine can't take apart."
            )
    return states


def _others(model: PreTrainedModel, mixing: Sequence[str]) -> list[str]:
    """Layers without a module that mixes tokens in a known way. Refuses those with one of their own."""
    if not mixing:
        raise UnsupportedModel("This model has no attention layers, and the engine has no cache for others.")
    others = {
        name: layer
        for name, layer in _layers_of(model, mixing).items()
        if not any(one.startswith(f"{name}.") for one in mixing)
    }
    for name, layer in others.items():
        if any(isinstance(part, nn.Conv1d | nn.RNNBase) for part in layer.modules()):
            raise no_cache_for(name, layer)
    return list(others)


def no_cache_for(name: str, layer: nn.Module) -> UnsupportedModel:
    parts = ", ".join(type(part).__name__ for part in layer.children())
    return UnsupportedModel(
        f"Layer {name.rpartition('.')[2]} doesn't attend: it consists of {parts}. The engine has no cache for "
        "such a layer's state."
    )


def _layers_of(model: PreTrainedModel, mixing: Sequence[str] | Mapping[str, object]) -> dict[str, nn.Module]:
    """The decoder's layers by name: those of the list that has a module which mixes tokens."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    stack = next((name for name in lists if next(iter(mixing), "").startswith(f"{name}.")), None)
    return {} if stack is None else {f"{stack}.{index}": layer for index, layer in enumerate(lists[stack])}


@contextmanager
def _recorded() -> Iterator[_Recording]:
    global _recording
    _recording = _Recording()
    found = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None  # would hide the mask proper
    try:
        yield _recording
    finally:
        masking_utils.find_packed_sequence_indices = found
        _recording = None


def _make_mask(*args: Any, mask_function: MaskFunction, device: torch.device, **kwargs: Any) -> torch.Tensor:
    """In place of a mask: a tensor by which the attention function finds the mask's rule again."""
    token = torch.zeros(1, 1, _NUM_TOKENS, _NUM_TOKENS, dtype=torch.bool, device=device)
    if _recording is not None:
        _recording.masks[id(token)] = (token, mask_function)
    return token


def _record(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    if _recording is None:
        raise RuntimeError("No probe is running.")
    unknown = sorted(k for k, v in others.items() if isinstance(v, torch.Tensor) and k not in _HARMLESS)
    if unknown:
        raise _unsupported(module, f"gives attention more than a mask ({', '.join(unknown)})")
    if query.shape[0] != 1 or query.shape[2] != _NUM_TOKENS or key.shape[2] != query.shape[2]:
        raise _unsupported(module, "attends to other tokens than those of its own sequence")
    if query.shape[1] % key.shape[1] or query.shape[3] != key.shape[3] or value.shape[1] != key.shape[1]:
        raise _unsupported(module, "has queries, keys and values of shapes that don't fit each other")
    _recording.modules.append(module)
    _recording.specs.append(
        AttentionSpec(
            num_heads=query.shape[1],
            num_kv_heads=key.shape[1],
            head_dim=max(key.shape[3], value.shape[3]),
            scale=key.shape[3] ** -0.5 if scaling is None else float(scaling),
            window=_window(module, attention_mask),
            softcap=softcap,
            has_sinks=s_aux is not None,
        )
    )
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


def _window(module: nn.Module, attention_mask: torch.Tensor | None) -> int | None:
    """The window of the mask that the model asked for; None if it sees all positions up to its own."""
    known = None if _recording is None else _recording.masks.get(id(attention_mask))
    if attention_mask is None or known is None:
        raise _unsupported(module, "makes attention masks of its own")
    visible = _visibility(known[1])
    try:
        if not visible(_FAR, _FAR) or visible(_FAR, _FAR + 1):
            raise _unsupported(module, "attends to later positions, too")
        window = _first_visible(visible, _FAR)
        other = _FAR + 12_347  # no multiple of anything
        if window != _first_visible(visible, other) or not _is_one_run(visible, window):
            raise _unsupported(module, "attends to chunks or blocks of positions")
    except (RuntimeError, IndexError, NotImplementedError) as error:
        raise _unsupported(module, "has a mask that depends on more than positions") from error
    return window


def _visibility(function: MaskFunction) -> Callable[[int, int], bool]:
    zero = torch.zeros((), dtype=torch.int64)

    def visible(query: int, key: int) -> bool:
        return bool(function(zero, zero, torch.tensor(query), torch.tensor(key)))

    return visible


def _first_visible(visible: Callable[[int, int], bool], query: int) -> int | None:
    """How many positions up to its own a query sees, by bisection; None: all."""
    if visible(query, 0):
        return None
    low, high = 0, query  # invisible, visible
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if visible(query, middle) else (middle, high)
    return query - high + 1


def _is_one_run(visible: Callable[[int, int], bool], window: int | None) -> bool:
    """Whether a far query sees the positions of its window and no others, judged by some of each."""
    first = 0 if window is None else _FAR - window + 1
    distances = (0, 1, 2, 3, *(1 << power for power in range(2, 22)), _FAR)
    return all(visible(_FAR, _FAR - distance) == (_FAR - distance >= first) for distance in distances)


def _unsupported(module: nn.Module, what: str) -> UnsupportedModel:
    return UnsupportedModel(f"{type(module).__name__} {what}, which the engine's KV cache can't do.")


AttentionInterface.register(NAME, _record)
AttentionMaskInterface.register(NAME, _make_mask)
