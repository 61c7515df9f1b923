"""Forwards that begin at a later block: what lies below was computed before and is not computed again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from cutaway.errors import UsageError
from cutaway.model.families import Layout, module_input, with_input


@contextmanager
def started(layout: Layout, layer: int, resid: Float[Tensor, "batch pos d_model"]) -> Iterator[None]:
    """Let every forward inside the block begin at block ``layer``, on ``resid``; the blocks below do nothing.

    Masks, positions and rotary angles are still made from the token ids given to the forward.
    """
    if not 0 <= layer < layout.n_layers:
        raise UsageError(f"layer={layer}: 0 to {layout.n_layers - 1}")
    skipped = list(layout.blocks[:layer])
    if any("forward" in vars(block) for block in skipped):
        raise UsageError("this model is already inside a forward that starts at a later block; leave that one first")
    handle = layout.blocks[layer].register_forward_pre_hook(_enter(layer, resid), with_kwargs=True, prepend=True)
    try:
        for block in skipped:
            block.forward = _pass_on
        yield
    finally:
        handle.remove()
        for block in skipped:
            vars(block).pop("forward", None)


def _pass_on(*args: Any, **kwargs: Any) -> Tensor:
    return module_input(args, kwargs)


def _enter(layer: int, resid: Tensor) -> Any:
    def before(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = module_input(args, kwargs)
        if given.shape != resid.shape:
            raise UsageError(
                f"resid for block {layer} has shape {list(resid.shape)}, the forward's rows {list(given.shape)}"
            )
        return with_input(args, kwargs, resid)

    return before
