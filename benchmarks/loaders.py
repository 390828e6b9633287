"""Image loading compared with the usual PyTorch data set; both are measured in the same run.

The usual way is a `Dataset` that opens each file with Pillow and augments it, with two workers.
Crop, flip and normalisation are the same on both sides.

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

app = typer.Typer(add_completion=False)
EXAMPLE = "Example: python benchmarks/loaders.py --root data/sample --rounds 1 --memory-images 1000"


class PilFaces(Dataset):
    "The usual data set: one file, one image, one augmentation"
    def __init__(self, faces: Faces, size: int):
        self.faces, self.targets = faces, faces.targets
        crop = transforms.RandomResizedCrop(size, scale=(.35, 1.), antialias=True)
        normalize = transforms.Normalize([.5] * 3, [.5] * 3)
        flip = transforms.RandomHorizontalFlip()
        self.transform = transforms.Compose([crop, flip, transforms.ToTensor(), normalize])

    def __len__(self) -> int: return len(self.faces)

    def __getitem__(self, row: int):
        file = self.faces.root / self.faces.table["path"].iloc[row]
        with Image.open(file) as image: x = self.transform(image.convert("RGB"))
        return x, self.targets[row]


def resident_mb() -> float:
    "Resident memory of this process in MB"
    return psutil.Process().memory_info().rss / 1e6


def seconds_of(work: Callable[[], object]) -> float:
    "Duration of a call"
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_all(loader) -> None:
    "Read every batch"
    for _ in loader: pass


def cache_seconds(faces: Faces, size: int, rounds: int) -> float:
    "Median time to decode all images into a new cache"
    seconds = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            seconds.append(seconds_of(lambda: cached_images(faces, size, folder, progress=False)))
    return statistics.median(seconds)


def bench_loaders(
    root: str | Path,       # Folder that contains `celeba/`
    size: int = 64,         # Image side in pixels
    rounds: int = 3,        # Medians are over this number of rounds
    memory_images: int = 200_000,  # Images of the memory test (a file of zeros)
    arch: str = "resnet18",  # Network of the training steps
) -> dict[str, float]:
    "Time to cache, images per second of both loaders, loader's share of a step, and memory"
    faces = read_faces("celeba", root)
    cached = cache_seconds(faces, size, rounds)
    images = face_set(faces, cached_images(faces, size, progress=False), np.arange(len(faces)))
    batched = FaceLoader(images, 64, shuffle=True, augment="crop")
    pil = DataLoader(PilFaces(faces, size), 64, shuffle=True, num_workers=2,
                     persistent_workers=True, multiprocessing_context="fork")
    for loader in (batched, pil): read_all(loader)  # warm up
    seconds = [[seconds_of(lambda: read_all(batched)), seconds_of(lambda: read_all(pil))]
               for _ in range(rounds)]
    batched_rate, pil_rate = len(faces) / np.median(np.array(seconds), 0)
    return dict(cache_seconds=cached, pil_per_second=pil_rate, batched_per_second=batched_rate,
                ratio=batched_rate / pil_rate, step_overhead=step_overhead(images, arch, rounds),
                rss_growth_mb=memory_growth(memory_images, size))


def step_overhead(images: FaceSet, arch: str, rounds: int) -> float:
    "Relative time that reading adds to training steps"
    spec = ModelSpec(arch, images.task.n_outputs, images.size)
    model = create_model(spec).to(memory_format=torch.channels_last)
    network = Bfloat16(model) if bf16_pays(torch.device("cpu")) else model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    few = images.subset(np.arange(min(len(images), 20 * 64)))

    def train(batches) -> None:
        for x, y in batches:
            optimizer.zero_grad()
            task_loss(images.task, network(x), y).backward()
            optimizer.step()

    loader = FaceLoader(few, 64, shuffle=True, augment="crop", device="cpu")
    same = [loader.one_batch()] * len(loader)
    train(same)
    pairs = [(seconds_of(lambda: train(loader)), seconds_of(lambda: train(same)))
             for _ in range(rounds)]
    return statistics.median(reading / computing for reading, computing in pairs) - 1


def memory_growth(n_images: int, size: int) -> float:
    "Growth of resident memory in MB over an epoch of a memory-mapped file"
    with tempfile.TemporaryDirectory() as folder:
        file, shape = os.path.join(folder, "images.npy"), (n_images, size, size, 3)
        np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape).flush()
        mapped, task = np.load(file, mmap_mode="r"), Task("multi-label", ("yes",))
        targets, identities = np.zeros((n_images, 1), np.uint8), np.zeros(n_images, "U1")
        images = FaceSet(mapped, np.arange(n_images), targets, identities, task)
        loader = FaceLoader(images, 64, shuffle=True)
        loader.one_batch()
        before, most = resident_mb(), 0.
        for number, _ in enumerate(loader):
            if number % 50 == 0: most = max(most, resident_mb())
        return max(most, resident_mb()) - before


@app.command(epilog=EXAMPLE)
def main(
    root: Annotated[str, typer.Option(help="Folder that contains celeba/.")],
    size: Annotated[int, typer.Option(help="Image side in pixels.")] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds; the median is reported.", min=1)] = 3,
    memory_images: Annotated[int, typer.Option(
        help="Images of the memory test.", min=1)] = 200_000,
):
    "Measure caching, reading, training steps and memory; prints one JSON object."
    results = bench_loaders(root, size, rounds, memory_images)
    typer.echo(json.dumps({name: round(float(value), 4) for name, value in results.items()}))


if __name__ == "__main__": app()
