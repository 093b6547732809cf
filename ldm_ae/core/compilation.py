"""Settings of torch.compile."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

_OTHER_GRAPHS = 8
"""torch's own limit of graphs for one function."""


def one_graph_a_size(sizes: int, modes: int = 1) -> AbstractContextManager[None]:
    """Make torch compile a graph for each image size within the context. A shared graph for several sizes would depend
    on which of them came first, and a resumed run begins with another one.

    Args:
        sizes: Number of image sizes.
        modes: Number of graphs for each size, such as one with gradients and one without.
    """
    limit = _OTHER_GRAPHS + modes * sizes
    return torch._dynamo.config.patch(automatic_dynamic_shapes=False, recompile_limit=limit)
