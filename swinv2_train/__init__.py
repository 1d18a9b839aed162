"""Distributed pretraining of Swin Transformer V2."""

import logging

# Without a handler Python would print the library's warnings to stderr, once per rank and process; the run logs them.
logging.getLogger(__name__).addHandler(logging.NullHandler())
