"""Image loading against the usual PyTorch data set, both sides measured in one run.

A benchmark prints one JSON object. The usual way is a `Dataset` that opens each file with Pillow and
augments it, with two workers; crop, flip and normalisation are the same on both sides.

    python benchmarks/loaders.py --root DATA
"""
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import torch
import typer
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from one_shui.data.cache import cached_images
from one_shui.data.face_set import FaceSet, face_set
from one_shui.data.loaders import FaceLoader
from one_shui.data.readers import read_faces
from one_shui.data.task import Faces, Task, task_loss
from one_shui.models.networks import ModelSpec, create_model
from one_shui.models.precision import Bfloat16, bf16_pays


class PilFaces(Dataset):
    "The usual dataset: one file, one image, one augmentation"
    def __init__(self, faces: Faces, size: int):
        self.faces, self.targets = faces, faces.targets
        half = transforms.Normalize([.5] * 3, [.5] * 3)
        crop = transforms.RandomResizedCrop(size, scale=(.35, 1.), antialias=True)
        self.transform = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), half])

    def __len__(self) -> int: return len(self.faces)

    def __getitem__(self, row: int):
        with Image.open(self.faces.root / self.faces.table["path"].iloc[row]) as image: x = self.transform(image.convert("RGB"))
        return x, self.targets[row]


def resident_mb() -> float:
    "Resident memory of this process in MB"
    return psutil.Process().memory_info().rss / 1e6


def _seconds(work: Callable[[], object]) -> float:
    "How long a call takes"
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _epoch(loader) -> None:
    "Read every batch"
    for _ in loader: pass


def bench_loaders(
    root: str | Path,       # Folder that holds `celeba/`
    size: int = 64,         # Side of an image in pixels
    rounds: int = 3,        # Medians are over so many
    memory_rows: int = 200_000,  # Images in the memory test (a file of zeros)
    arch: str = "resnet18",  # Network of the step test
) -> dict[str, float]:
    "Seconds to cache, images a second against a two-worker PIL loader, the loader's share of a training step, and memory"
    faces = read_faces("celeba", root)
    rows = np.arange(len(faces))
    cache = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder: cache.append(_seconds(lambda: cached_images(faces, size, folder, progress=False)))
    images = face_set(faces, cached_images(faces, size, progress=False), rows)
    ours = FaceLoader(images, 64, shuffle=True, augment="crop")
    usual = DataLoader(PilFaces(faces, size), 64, shuffle=True, num_workers=2, persistent_workers=True, multiprocessing_context="fork")
    for loader in (ours, usual): _epoch(loader)  # warm
    seconds = np.array([[_seconds(lambda: _epoch(ours)), _seconds(lambda: _epoch(usual))] for _ in range(rounds)])
    per_second = len(faces) / np.median(seconds, 0)
    return dict(cache_seconds=statistics.median(cache), pil_per_second=per_second[1], batched_per_second=per_second[0],
                ratio=per_second[0] / per_second[1], step_overhead=_step_overhead(images, arch, rounds),
                rss_growth_mb=_memory(memory_rows, size))


def _step_overhead(images: FaceSet, arch: str, rounds: int) -> float:
    "Relative time that reading adds to training steps"
    model = create_model(ModelSpec(arch, images.task.n_outputs, images.size)).to(memory_format=torch.channels_last)
    net = Bfloat16(model) if bf16_pays(torch.device("cpu")) else model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    few = images.subset(np.arange(min(len(images), 20 * 64)))

    def train(batches) -> None:
        for x, y in batches:
            optimizer.zero_grad()
            task_loss(images.task, net(x), y).backward()
            optimizer.step()

    loader = FaceLoader(few, 64, shuffle=True, augment="crop", device="cpu")
    same = [loader.one_batch()] * len(loader)
    train(same)
    pairs = [(_seconds(lambda: train(loader)), _seconds(lambda: train(same))) for _ in range(rounds)]
    return statistics.median(a / b for a, b in pairs) - 1


def _memory(rows: int, size: int) -> float:
    "Growth of resident memory in MB over an epoch of a mapped file"
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "images.npy")
        np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(rows, size, size, 3)).flush()
        mapped = np.load(file, mmap_mode="r")
        task = Task("multi-label", ("yes",))
        loader = FaceLoader(FaceSet(mapped, np.arange(rows), np.zeros((rows, 1), np.uint8), np.zeros(rows, "U1"), task), 64, shuffle=True)
        loader.one_batch()
        before, most = resident_mb(), 0.
        for number, _ in enumerate(loader):
            if number % 50 == 0: most = max(most, resident_mb())
        return max(most, resident_mb()) - before


def main(
    root: Annotated[str, typer.Option(help="Folder that holds celeba/.")],
    size: Annotated[int, typer.Option(help="Image side in pixels.")] = 64,
    rounds: Annotated[int, typer.Option(help="Number of rounds; the median is reported.", min=1)] = 3,
):
    "Caching, reading, training steps and memory, each against the usual way; prints one JSON object."
    found = bench_loaders(root, size, rounds)
    typer.echo(json.dumps({name: round(float(value), 4) for name, value in found.items()}))


if __name__ == "__main__": typer.run(main)
