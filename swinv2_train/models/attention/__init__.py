"""Shifted-window attention: cosine similarity with a log-spaced continuous position bias (paper sections 3.2 and 3.3),
and the alternatives that the paper compares them with: the dot product, a linearly spaced bias network, a bias table.

`window_attention.py` is the module; `backends.py` is the table of its backends, which all compute the function that
`contract.py` defines. To add a backend, write its function in a separate file, enter it in `backends.BACKENDS`, and add
its name to `config.own_parts.ATTENTION_BACKENDS` (which is torch-free). The tests then compare it with `reference` on
all geometries, in values and gradients. Backends of the user are in their own modules, see `config/own_parts.py`.
"""
