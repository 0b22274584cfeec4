"""One forward pass of a network, written down as a list of records.

Parameters and input are shapes without memory (`meta` tensors) where the network allows it, which
makes the pass a matter of milliseconds.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from data.errors import UserError
from model_scoring.tracing.channel_labels import Width
from model_scoring.tracing.channel_rules import Caller
from model_scoring.tracing.operation_record import Tag, Trace, tag_of, tagged
from model_scoring.tracing.recorder import Recorder
from model_scoring.tracing.stored_values import Values

SHAPE = torch.Tensor.shape.__get__
READS = ("__bool__", "__float__", "__int__", "item")


class _Callers(TorchFunctionMode):
    """Tells the recorder which function of torch's Python interface is at work, and what the
    network's code asks of widths."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if func == SHAPE or name == "size":
            return self._sizes(args[0], func(*args, **kwargs), *args[1:], *kwargs.values())
        if name in READS and (stored := tag_of(args[0]).value) is not None and stored.numel() == 1:
            with torch._C._DisableTorchDispatch():  # what the network knows, no image tells
                return getattr(stored, name)()
        if name not in ("view", "reshape"):
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Width):
                    leaf.fix()
        before, self.recorder.caller = self.recorder.caller, Caller(name, args, kwargs)
        try:
            result = func(*args, **kwargs)
        finally:
            self.recorder.caller = before
        fresh = name in ("tensor", "as_tensor") and not tagged(result)
        if fresh and self.recorder.values.followed:
            numbers = torch.as_tensor(args[0] if args else kwargs["data"], device="cpu")
            numbers = numbers.to(result.dtype)
            # one number is part of the code, as those in calls are
            Tag(False, value=numbers, stores=(numbers,) * (numbers.numel() > 1)).put(result)
        return result

    def _sizes(self, tensor: Tensor, sizes: object, dim: int | None = None) -> object:
        """Sizes, with those that count channels as a Width."""
        channels = tag_of(tensor).channels
        if channels is None:
            return sizes
        fix = partial(self.recorder.labels.fix, channels.labels)
        counted = channels.differs
        if dim is not None:
            return Width(sizes, fix) if dim % tensor.dim() in counted else sizes
        return torch.Size(Width(n, fix) if d in counted else n for d, n in enumerate(sizes))


@contextmanager
def _watching(recorder: Recorder, network: nn.Module) -> Iterator[None]:
    """Keep the recorder's stack of modules at work."""

    def enter(module: nn.Module, _: object) -> None:
        recorder.stack.append(module)

    def leave(*_: object) -> None:  # what a hook returns would replace the module's result
        recorder.stack.pop()

    with ExitStack() as stack:
        for module in network.modules():  # hooks may put tensors of the pass there: pruning's do
            held = {name: t for name, t in vars(module).items() if isinstance(t, Tensor)}
            stack.callback(vars(module).update, held)
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        was_training = [m for m in network.modules() if m.training]
        stack.callback(lambda: [setattr(m, "training", True) for m in was_training])
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)  # attention as its single operations
        network.eval()
        yield


def _state(network: nn.Module, device: torch.device, values: Values) -> dict[str, Tensor]:
    """The network's tensors on a device, each tagged with its name and numbers; tied ones once."""
    state, first = {}, {}
    for prefix, module in network.named_modules():
        parameters = list(module.named_parameters(prefix, recurse=False))
        for name, tensor in (*parameters, *module.named_buffers(prefix, recurse=False)):
            if (same := first.setdefault(id(tensor), name)) != name:
                state[name] = state[same]
                continue
            state[name] = tensor.detach().to(device, copy=True)
            owner = frozenset({name} if isinstance(tensor, nn.Parameter) else ())
            numbers = values.copy(tensor.detach())
            tag = Tag(False, parameters=owner, value=numbers, stores=(numbers,), source=name)
            tag.put(state[name])
    return state


def _run(network: nn.Module, shape: tuple[int, ...], device: torch.device) -> Trace:
    recorder = Recorder(network, followed=device.type == "meta")
    state = _state(network, device, recorder.values)
    dtypes = (p.dtype for p in network.parameters() if p.is_floating_point())
    image = torch.zeros((1, *shape), dtype=next(dtypes, torch.float32), device=device)
    Tag(channels=recorder.labels.unknown(shape[0], image.dim())).put(image)
    with ExitStack() as stack:
        contexts = torch.no_grad(), _watching(recorder, network), sdpa_kernel(SDPBackend.MATH)
        for context in (*contexts, torch.device(device), _Callers(recorder), recorder):
            stack.enter_context(context)
        # ties are in the state: of a module that is called twice, torch would restore the copy
        output = functional_call(network, state, (image,), tie_weights=False)
    return recorder.trace(output)


@contextmanager
def one_thread() -> Iterator[None]:
    """For thousands of tiny operations, where threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def trace(network: nn.Module, shape: tuple[int, int, int]) -> Trace:
    """Records of one forward pass in evaluation mode of an image of (channels, height, width).
    Raises UserError if the network cannot take such an image, TracingError for mistakes of the
    rules themselves."""
    try:
        with one_thread():
            return _run(network, shape, torch.device("meta"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        pass  # e.g. a branch on a value: this needs numbers, the pass below has them
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        return _run(network, shape, device)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the network cannot take {shape[0]} channels of {shape[1]}x{shape[2]} pixels "
            f"({reason}): choose another --image-size"
        ) from None
