"""State dicts of optimizers and the like, split into JSON and tensors, and put together again.

JSON has neither tuples nor dicts with numbers for keys; both are written as marked objects and come back as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

_TENSOR, _TUPLE, _ITEMS = "__tensor__", "__tuple__", "__items__"


def split_tensors(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """(JSON value with a name where each tensor was, tensors by name). TypeError for any other object."""
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
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
    """The inverse of `split_tensors`; KeyError for a tensor that is missing."""
    if isinstance(tree, list):
        return [join_tensors(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        return tensors[tree[_TENSOR]]
    if _TUPLE in tree:
        return tuple(join_tensors(value, tensors) for value in tree[_TUPLE])
    if _ITEMS in tree:
        return {join_tensors(key, tensors): join_tensors(value, tensors) for key, value in tree[_ITEMS]}
    return {key: join_tensors(value, tensors) for key, value in tree.items()}


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same tree with `function` of each tensor in its place, in a fixed order."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(value, function) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(value, function) for value in tree)
    return tree
