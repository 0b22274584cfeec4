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
from model_scoring.tracing.channel_rules import Caller, differing
from model_scoring.tracing.operation_record import Channels, Tag, Trace, set_tag, tag_of
from model_scoring.tracing.recorder import Recorder

SHAPE = torch.Tensor.shape.__get__


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
        if name not in ("view", "reshape"):
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Width):
                    leaf.pin()
        before, self.recorder.caller = self.recorder.caller, Caller(name, args, kwargs)
        try:
            return func(*args, **kwargs)
        finally:
            self.recorder.caller = before

    def _sizes(self, tensor: Tensor, sizes: object, dim: int | None = None) -> object:
        """Sizes, with those that count channels as a Width."""
        channels = tag_of(tensor).channels
        if channels is None:
            return sizes
        pin = partial(self.recorder.labels.pin, channels.labels)
        counted = differing(channels.labels)
        if dim is not None:
            return Width(sizes, pin) if dim % tensor.dim() in counted else sizes
        return torch.Size(Width(n, pin) if d in counted else n for d, n in enumerate(sizes))


@contextmanager
def _watching(recorder: Recorder, network: nn.Module) -> Iterator[None]:
    """Keep the recorder's stack of modules at work."""
    with ExitStack() as stack:
        for module in network.modules():
            before = module.register_forward_pre_hook(lambda m, _: recorder.stack.append(m))
            after = module.register_forward_hook(lambda *_: recorder.leave())
            stack.callback(before.remove)
            stack.callback(after.remove)
        was_training = [m for m in network.modules() if m.training]
        stack.callback(lambda: [setattr(m, "training", True) for m in was_training])
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)  # attention as its single operations
        network.eval()
        yield


def _state(network: nn.Module, device: torch.device) -> dict[str, Tensor]:
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
            tag = Tag(False, frozenset(), owner, tensor.detach().cpu(), source=name)
            set_tag(state[name], tag)
    return state


def _run(network: nn.Module, shape: tuple[int, ...], device: torch.device) -> Trace:
    parameters = dict(network.named_parameters())
    recorder = Recorder(
        names={module: name for name, module in network.named_modules()},
        sizes={name: p.numel() for name, p in parameters.items()},
        hooked={m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks},
    )
    state = _state(network, device)
    dtype = next((p.dtype for p in parameters.values() if p.is_floating_point()), torch.float32)
    image = torch.zeros((1, *shape), dtype=dtype, device=device)
    pixels = recorder.labels.new(shape[0], image.dim(), pinned=True)
    set_tag(image, Tag(channels=Channels.varying(pixels)))
    with ExitStack() as stack:
        contexts = torch.no_grad(), _watching(recorder, network), sdpa_kernel(SDPBackend.MATH)
        for context in (*contexts, torch.device(device), _Callers(recorder), recorder):
            stack.enter_context(context)
        # ties are in the state: of a module that is called twice, torch would restore the copy
        output = functional_call(network, state, (image,), tie_weights=False)
    tags = [tag_of(t) for t in tree_leaves(output) if isinstance(t, Tensor)]
    for tag in tags:
        if tag.channels is not None:
            recorder.labels.pin(tag.channels.labels)
    recorder.finish()
    return Trace(
        records=recorder.records,
        outputs=frozenset().union(*(tag.producers for tag in tags)),
        unused=tuple(sorted(set(parameters) - recorder.owned)),
        labels=recorder.labels,
        paddings=tuple(recorder.paddings),
        followed=device.type == "meta",
    )


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

    Raises UserError if the network cannot take such an image.
    """
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
