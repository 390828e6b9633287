"""The meta-gradient in several processes, and what holds for many batches."""
import pytest
import torch
import torch.distributed as dist
from processes import CONTEXT

from one_shui.methods.metaunlearn.loss import MetaLoss, Support
from one_shui.methods.metaunlearn.meta_gradient import meta_gradient
from one_shui.methods.metaunlearn.objective import Objective
from one_shui.methods.metaunlearn.meta_gradient import meta_gradient_by_double_backward
from one_shui.methods.metaunlearn.objective import val_weighted_losses
from one_shui.models.networks import ModelSpec, create_model
from one_shui.data.task import Task

ATTRIBUTES = Task("multi-label", ("a", "b", "c"))
AGES = Task("multi-class", ("young", "old", "older"))


def problem(task, batches=3):
    "A meta-gradient's arguments, the same in every process"
    torch.manual_seed(0)
    model = create_model(ModelSpec("small_cnn", 3, 16, options=dict(width=4))).eval()
    draw = lambda n: (torch.randn(n, 3, 16, 16), torch.randint(2, (n, 3)).float() if task.is_multi_label else torch.randint(3, (n,)))
    support = Support(*draw(4), torch.arange(4))
    forget, val = [draw(5 + k) for k in range(batches)], [draw(6) for _ in range(2)]
    losses = MetaLoss(task, model.head.in_features, 4, hidden=16, dropout=0.)
    objective = Objective(distance="l1")
    return model, losses, support, forget, val, val_weighted_losses(model, task, val, objective), .3, objective


def one_of_two(rank, file, answers):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    step = meta_gradient(*problem(ATTRIBUTES), shared=True)
    answers.put((rank, step.objective, {name: g.numpy() for name, g in step.gradient.items()}))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_find_the_gradient_of_one(tmp_path):
    alone, answers = meta_gradient(*problem(ATTRIBUTES)), CONTEXT.Queue()
    both = [CONTEXT.Process(target=one_of_two, args=(rank, tmp_path / "meet", answers)) for rank in range(2)]
    for process in both: process.start()
    found = [answers.get(timeout=100) for _ in both]
    for process in both: process.join()
    assert [process.exitcode for process in both] == [0, 0]
    largest = max(g.abs().max().item() for g in alone.gradient.values())
    assert largest > 0
    for _, objective, gradient in found:
        assert objective == pytest.approx(alone.objective, rel=1e-5)
        for name, g in alone.gradient.items(): assert abs(g.numpy() - gradient[name]).max() < 1e-5 * largest


def test_classes_too():
    forward, oracle = (find(*problem(AGES)) for find in (meta_gradient, meta_gradient_by_double_backward))
    largest = max(g.abs().max() for g in oracle.gradient.values())
    assert largest > 0
    for name, g in oracle.gradient.items(): assert (forward.gradient[name] - g).abs().max() < 1e-4 * largest
