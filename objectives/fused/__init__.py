"""Continuous batching of trials: one process trains many CNNs as one tensor program.

`FusedEngine` is an `objectives.base.Engine` with many slots. The modules, from the numbers outwards:

- `layout`, `state`: all trials' parameters, optimizer states and buffers, stacked; a row per slot.
- `rows`: a step has rows of images; a batch of any size is so many rows. Shapes never change.
- `layers`, `convolutions`, `products`, `program`: the model of all rows at once, in grouped convolutions and
  batched products, or by `torch.func`; `fusable` says which, or why not.
- `losses`, `regularise`, `update`: every trial's own loss, penalty and optimizer, mixed in one step.
- `feed`, `staging`: every trial's own order, augmentation and dropout, as in the plain trainer.
- `pool`, `scoring`, `member`: the steps and validations of one program's trials.
- `recorded`, `tables`, `sums`: a pool's steps as work that is recorded once and replayed, on a GPU; what a
  step depends on lies in tables there, and what it gives is added up there.
- `tails`, `triton_*`: on a GPU, what follows a convolution together with it, and the other parts of a
  recorded step, by kernels of ours, where they give what `step_operations` give and are faster.
- `lanes`, `engine`: programs and trials that train alone take turns; slots are refilled. `memory`: what to do
  where it is short.
- `choose`: which way is faster, by trying; `backends`: likewise of the ways to compute a convolution;
  `objectives.choices`: what was chosen first holds for all workers.

What holds throughout: numbers of two slots never meet in a sum, a mask is a `where` or a gather and never a
product, and no kernel is used whose rounding depends on how many rows lie beside a trial's own. So a trial's
curve is the same to the bit whatever its slot, its neighbours and the size of the pool (on a CPU, with the
same `images_per_row` and threads), and the plain trainer's but for rounding.
"""

from objectives.fused.engine import FusedEngine

__all__ = ["FusedEngine"]
