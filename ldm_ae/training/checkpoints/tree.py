"""Splitting of nested state, such as an optimizer's state dict, into JSON and tensors, and the inverse.

JSON has neither tuples nor dicts with numeric keys; both are written as marked objects and restored as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_TENSOR, _CHANNELS_LAST, _TUPLE, _ITEMS = "__tensor__", "__channels_last__", "__tuple__", "__items__"


def split_tensors(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return (JSON value with a name in place of each tensor, tensors by name); raise `TypeError` for other objects."""
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            # A file holds contiguous rows; a channels-last tensor is written as rows of (N, H, W, C), uncopied.
            if node.ndim == 4 and not node.is_contiguous() and node.is_contiguous(memory_format=torch.channels_last):
                tensors[path] = node.permute(0, 2, 3, 1)
                return {_TENSOR: path, _CHANNELS_LAST: True}
            tensors[path] = node
            return {_TENSOR: path}
        if isinstance(node, dict):
            if all(isinstance(key, str) for key in node):
                return {key: walk(value, f"{path}/{key}") for key, value in node.items()}
            return {_ITEMS: [[walk(key, path), walk(value, f"{path}/{key}")] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            items = [walk(value, f"{path}/{i}") for i, value in enumerate(node)]
            return items if isinstance(node, list) else {_TUPLE: items}
        if node is None or isinstance(node, bool | int | float | str):
            return node
        raise TypeError(f"cannot be saved without pickle: {type(node).__name__} at {path}")

    return walk(tree, ""), tensors


def join_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Invert `split_tensors`; raise `KeyError` for a missing tensor."""
    if isinstance(tree, list):
        return [join_tensors(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        tensor = tensors[tree[_TENSOR]]
        return tensor.permute(0, 3, 1, 2) if tree.get(_CHANNELS_LAST) else tensor
    if _TUPLE in tree:
        return tuple(join_tensors(value, tensors) for value in tree[_TUPLE])
    if _ITEMS in tree:
        return {join_tensors(key, tensors): join_tensors(value, tensors) for key, value in tree[_ITEMS]}
    return {key: join_tensors(value, tensors) for key, value in tree.items()}


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return the same tree with `function` of each tensor in its place, in a fixed order."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(value, function) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(value, function) for value in tree)
    return tree
