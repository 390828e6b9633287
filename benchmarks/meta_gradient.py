"""Time and memory of MetaUnlearn's meta-gradient in three forms, each in a process of its own.

* `reference`: double backward as the paper describes it: the math kernel of attention throughout, the graphs of all
  outer batches kept until one backward pass, validation scored under the original network in each step.
* `double_backward`: the same with care: the math kernel only where a backward pass is differentiated, outer batches
  accumulated, validation under the original network scored once.
* `forward_mode`: what the package uses.

Seconds depend on the machine; arithmetic does not. It is counted as torch counts it (matrix products and
convolutions), in units of one forward pass of one image.

    python benchmarks/meta_gradient.py --size 64 --patch-size 8
"""
import json
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Optional

import torch
import typer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from one_shui.core.errors import check_choice
from one_shui.core.files import read_tensors, write_tensors
from one_shui.data.task import Batch, Task
from one_shui.methods.metaunlearn.loss import MetaLoss, Support
from one_shui.methods.metaunlearn.meta_gradient import MetaStep, meta_gradient
from one_shui.methods.metaunlearn.objective import Objective
from one_shui.methods.metaunlearn.meta_gradient import meta_gradient_by_double_backward
from one_shui.methods.metaunlearn.objective import val_weighted_losses
from one_shui.models.features import logits_and_features
from one_shui.models.networks import ModelSpec, check_spec, create_model


Form = Literal["reference", "double_backward", "forward_mode"]


FORMS: tuple[Form, ...] = ("reference", "double_backward", "forward_mode")


class _Drawn(Sequence):
    "Random batches, drawn when they are asked for"
    def __init__(self, spec: ModelSpec, batches: int, size: int, seed: int):
        self.spec, self.batches, self.size, self.seed = spec, batches, size, seed

    def __len__(self) -> int: return self.batches

    def __getitem__(self, k) -> Batch:
        if not 0 <= k < self.batches: raise IndexError(k)
        generator, spec = torch.Generator().manual_seed(self.seed + k), self.spec
        return (torch.randn(self.size, 3, spec.size, spec.size, generator=generator),
                torch.randint(2, (self.size, spec.n_outputs), generator=generator).float())


def _problem(spec: ModelSpec, people: int, batches: int, batch_size: int) -> tuple:
    "A network, a learned loss, and random images: what a meta-gradient is computed from"
    torch.manual_seed(0)
    task, model = Task("multi-label", tuple(f"attribute {k}" for k in range(spec.n_outputs))), create_model(spec).eval()
    forget, val = (_Drawn(spec, batches, batch_size, first) for first in (1, 1 + batches))
    support = Support(*_Drawn(spec, 1, people, 0)[0], torch.arange(people))
    with torch.no_grad(): width = logits_and_features(model, support.x[:1])[1].shape[1]
    return model, MetaLoss(task, width, people, dropout=0.), support, forget, val


OBJECTIVE = Objective(distance="l1")  # its gradient isn't tiny on an untrained network


ETA = .01                             # a larger step turns rounding errors into other rankings, and so into another score factor


def _gradient(
    form: Form, model: nn.Module, meta_loss: MetaLoss, support: Support, forget: Sequence[Batch], val: Sequence[Batch], levels: list[float],
) -> MetaStep:
    "One meta-gradient in one of the forms"
    given = model, meta_loss, support, forget, val
    if form == "forward_mode": return meta_gradient(*given, levels, ETA, OBJECTIVE)
    if form == "double_backward": return meta_gradient_by_double_backward(*given, levels, ETA, OBJECTIVE, accumulate=True)
    with sdpa_kernel(SDPBackend.MATH):
        levels = val_weighted_losses(model, meta_loss.task, val, OBJECTIVE)
        return meta_gradient_by_double_backward(*given, levels, ETA, OBJECTIVE)


class _Work(TorchDispatchMode):
    "Within it, floating-point operations are counted"
    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket): self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def _passes(form: Form, problem: tuple, levels: list[float]) -> float:
    "The work of one form, in forward passes of one image"
    model, meta_loss, support, forget, val = problem
    with _Work() as one, torch.no_grad(): model(support.x[:1])
    with _Work() as all_: _gradient(form, model, meta_loss, support, forget, val, levels)
    return all_.flops / one.flops


def _peak_mb() -> float:
    "The most memory that this process has held, in MB"
    status = Path("/proc/self/status")
    if status.exists(): return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e3
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes


def _measure(form: Form, spec: ModelSpec, people: int, batches: int, batch_size: int, file: str, count: bool, answer) -> None:
    "Run one form in this process; put seconds, peak memory and the work in the queue, the gradient in a file"
    model, meta_loss, support, forget, val = _problem(spec, people, batches, batch_size)
    levels = val_weighted_losses(model, meta_loss.task, val, OBJECTIVE)
    few = Support(*(t[:2] for t in support))
    _gradient(form, model, meta_loss, few, [(x[:2], y[:2]) for x, y in (forget[0],)], [(x[:2], y[:2]) for x, y in (val[0],)], levels[:1])
    start = time.perf_counter()
    step = _gradient(form, model, meta_loss, support, forget, val, levels)
    measured = time.perf_counter() - start, _peak_mb()
    write_tensors(file, step.gradient, {})
    answer.put((*measured, _passes(form, (model, meta_loss, support, forget, val), levels) if count else 0.))


def _in_a_process(*arguments) -> tuple[float, float, float] | None:
    "Seconds, peak MB and passes of one measurement; None when the system killed it for want of memory"
    context = multiprocessing.get_context("forkserver")  # a fresh process with everything imported
    context.set_forkserver_preload(["one_shui.methods.metaunlearn.meta_gradient", "timm"])
    answer = context.Queue()
    process = context.Process(target=_measure, args=(*arguments, answer))
    process.start()
    process.join()
    if process.exitcode == -signal.SIGKILL: return None
    if process.exitcode: raise RuntimeError(f"{arguments[0]} ended with exit code {process.exitcode}")
    return answer.get()


def bench_meta_gradient(
    arch: str = "vit_tiny_patch16_224",  # Any timm name
    size: int = 64,                      # Side of an image in pixels
    patch_size: int | None = None,       # Of a ViT; None: its own
    people: int = 20,                    # Support images
    batches: int = 4,                    # Forget batches, and as many of val
    batch_size: int = 64,                # Images in each
    rounds: int = 3,                     # Medians are over so many
    outputs: int = 40,                   # Attributes
    forms: tuple[Form, ...] = FORMS,     # Which to measure; ratios need two
) -> dict:                               # JSON-ready: seconds, peak_mb, passes of each form (None: out of memory), ratios, differences
    "Time and memory of three forms of the same meta-gradient, measured in turn in fresh processes"
    spec = ModelSpec(arch, outputs, size, options={} if patch_size is None else dict(patch_size=patch_size))
    found: dict[str, list[tuple[float, float, float] | None]] = {form: [] for form in FORMS}
    with tempfile.TemporaryDirectory() as folder:
        files = {form: f"{folder}/{form}.safetensors" for form in FORMS}
        for k in range(rounds):
            for form in forms:
                if None not in found[form]: found[form].append(_in_a_process(form, spec, people, batches, batch_size, files[form], k == 0))
        gradients = {form: read_tensors(file)[0] for form, file in files.items() if os.path.exists(file)}
    median: dict[str, dict | None] = {form: None for form in FORMS}
    for measured, rows in found.items():
        done = [row for row in rows if row is not None]
        if not done or None in rows: continue
        seconds, peak_mb, passes = zip(*done, strict=True)
        median[measured] = dict(seconds=statistics.median(seconds), peak_mb=statistics.median(peak_mb), passes=passes[0])

    def ratio(key: str, of: str, to: str) -> float | None:
        one, other = median[of], median[to]
        return one[key] / other[key] if one and other else None

    apart = [_apart(gradients["forward_mode"], gradients[form]) for form in FORMS[:2] if {form, "forward_mode"} <= gradients.keys()]
    return dict(
        **median, speedup=ratio("seconds", "reference", "forward_mode"), memory_ratio=ratio("peak_mb", "forward_mode", "reference"),
        work_ratio=ratio("passes", "reference", "forward_mode"),
        speedup_over_careful=ratio("seconds", "double_backward", "forward_mode"),
        memory_ratio_to_careful=ratio("peak_mb", "forward_mode", "double_backward"),
        max_relative_difference=max(apart, default=None))


def _apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    "Largest difference of two gradients, relative to the largest entry"
    return max((a[name] - b[name]).abs().max().item() for name in b) / max(g.abs().max().item() for g in b.values())


app = typer.Typer(add_completion=False)


@app.command(epilog="Example: python benchmarks/meta_gradient.py --size 64 --patch-size 8 --rounds 1")
def main(
    arch: Annotated[str, typer.Option(help="Any timm name.")] = "vit_tiny_patch16_224",
    size: Annotated[int, typer.Option(help="Image side in pixels.")] = 64,
    patch_size: Annotated[Optional[int], typer.Option(help="Of a ViT; default: its own.")] = None,
    people: Annotated[int, typer.Option(help="Support images.")] = 20,
    batches: Annotated[int, typer.Option(help="Forget batches, and as many of val.")] = 4,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 64,
    rounds: Annotated[int, typer.Option(help="Number of rounds; the median is reported.", min=1)] = 3,
    form: Annotated[Optional[list[str]], typer.Option(help="Only this form; repeatable; default: all three.")] = None,
):
    "Time and memory of the meta-gradient; prints one JSON object."
    check_spec(ModelSpec(arch, 1, size, options={} if patch_size is None else dict(patch_size=patch_size)))
    for one in form or (): check_choice("--form", one, FORMS)
    forms = tuple(form) if form else FORMS
    found = bench_meta_gradient(arch, size, patch_size, people, batches, batch_size, rounds, forms=forms)
    typer.echo(json.dumps(found))


if __name__ == "__main__": app()
