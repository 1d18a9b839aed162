"""Configs for the tests of memory and of the dry run."""

from __future__ import annotations

from dataclasses import replace

from swinv2_train.config.schema import Config


def config(stage: int = 1, *, ema: float = 0.0, eval_shards: str | None = None, background: bool = True) -> Config:
    made = Config()
    made.engine = replace(made.engine, zero_stage=stage)
    made.optim = replace(made.optim, ema_decay=ema)
    made.data = replace(made.data, eval_shards=eval_shards)
    made.checkpoint = replace(made.checkpoint, background=background)
    return made
