"""A change of the global batch in the middle of a run, which `resume.allow=[optim.global_batch]` permits.

The order of samples does not depend on the batch, so the run goes on at the next position. Lengths in epochs stay what
they are in epochs: their clock is the number of samples, which the change does not move. Lengths in steps stay what
they are in steps.
"""

from __future__ import annotations

from dataclasses import replace

from swinv2_train.config.plan import Plan
from swinv2_train.config.resume import GLOBAL_BATCH
from swinv2_train.config.schema import Config, OptimConfig
from swinv2_train.engine.schedule import learning_rate
from swinv2_train.engine.state import TrainState
from swinv2_train.text import counted


def continued(plan: Plan, optim: OptimConfig, state: TrainState) -> Plan:
    """Return the plan of a run from a state on, given that of a run with its current global batch from the beginning.

    It is the same unless the global batch has changed.
    """
    step, samples = state.changed_step, state.changed_samples
    if step == 0:
        return plan
    plan = replace(plan, changed_step=step, changed_samples=samples)
    batch_before = samples / step  # on average, if it changed several times
    if optim.steps is not None:
        if optim.warmup_steps is None:
            warmup = (optim.warmup_epochs or 0) * plan.num_samples
            after = step + (warmup - samples) / plan.global_batch
            plan = replace(plan, warmup_steps=int((warmup / batch_before if warmup <= samples else after) + 1e-6))
        return plan
    left = (optim.epochs or 0) * plan.num_samples - samples
    plan = replace(plan, total_steps=step + int(left / plan.global_batch + 1e-6))
    ahead = samples / plan.global_batch - step
    if optim.warmup_steps is not None:
        warmup = optim.warmup_steps
        in_new_steps = warmup * batch_before / plan.global_batch if warmup <= step else warmup + ahead
        plan = replace(plan, warmup_steps=round(in_new_steps))
    return replace(plan, ahead=ahead)


def change_lines(config: Config, begun: Plan, plan: Plan, before: int, state: TrainState) -> list[str]:
    """Return the lines about a change that has just happened, for the log.

    Args:
        begun: the plan with the new batch from the beginning.
        plan: the plan from this state on.
        before: the global batch until now.
    """
    optim = config.optim
    position = state.first_position(state.batch, plan.global_batch)
    rate = learning_rate(state.step, optim, plan)
    scaled = f", the peak scaled by {plan.global_batch / before:g}" if optim.lr_reference_batch else ""
    if optim.steps is None:
        length = (
            f"optim.epochs={optim.epochs:g} stays, so the run ends at step {plan.total_steps}; the schedule goes on "
            f"from {counted(state.samples_seen / plan.num_samples, 'epoch', '.4g')}"
        )
    else:
        length = (
            f"optim.steps={optim.steps} stays, so the run ends after {counted(plan.samples, 'sample')} instead of "
            f"{state.samples_seen + (optim.steps - state.step) * before}; the schedule goes on from step {state.step}"
        )
    avoided = len(state.avoided_batches)
    return [
        f"{GLOBAL_BATCH} CHANGES from {before} to {plan.global_batch} after step {state.step} (resume.allow). The "
        f"samples go on exactly, at position {position}",
        f"{length}. The learning rate is now {rate:.4g}{scaled}",
        *([f"{avoided} of the new batches overlap batches that rollbacks avoid, and are avoided"] if avoided else []),
    ]
