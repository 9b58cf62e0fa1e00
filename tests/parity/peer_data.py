"""torch's DataLoader over a COCO folder: the other side of benchmark_data.py.

Runs in an environment with torch and torchvision and needs nothing of this package.
Each line read from stdin is a number of seconds; the answer is a line of JSON, images a
second for each of two ways. Both decode with Pillow and mirror half of the images;

    reference  torchvision's training preset and the transform of its Faster R-CNN:
               float32, normalised, resized, padded to a multiple of 32
    lean       uint8 to the end: resized (without antialiasing) and padded to a canvas
"""

# pyright: reportMissingImports=false

import json
import os
import random
import sys
import time

import torch
import torchvision
from PIL import Image
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2


class Photos(Dataset):
    """Images and boxes, `repeat` times over, so that a pass is long."""

    def __init__(self, root, split, repeat=50):
        with open(f"{root}/annotations/instances_{split}.json") as file:
            found = json.load(file)
        boxes = {e["id"]: [] for e in found["images"]}
        for a in found["annotations"]:
            x, y, w, h = a["bbox"]
            boxes[a["image_id"]].append([x, y, x + w, y + h])
        self.items = [
            (os.path.join(root, split, e["file_name"]), boxes[e["id"]])
            for e in found["images"]
        ] * repeat

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        path, boxes = self.items[i]
        image = torchvision.transforms.functional.pil_to_tensor(
            Image.open(path).convert("RGB")
        )
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        if random.random() < 0.5:
            image = image.flip(-1)
            w = image.shape[-1]
            boxes = torch.stack(
                [w - boxes[:, 2], boxes[:, 1], w - boxes[:, 0], boxes[:, 3]], 1
            )
        return image, boxes


class Reference:
    """The collate function of the first way."""

    def __init__(self, short, longest):
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        self.transform = GeneralizedRCNNTransform(short, longest, mean, std)

    def __call__(self, rows):
        """A batch of float32 images and their targets."""
        images = [image.to(torch.float32) / 255 for image, _ in rows]
        images, targets = self.transform(images, [{"boxes": b} for _, b in rows])
        return images.tensors, targets


class Lean:
    """The collate function of the second way."""

    def __init__(self, short, longest):
        self.short, self.longest = short, longest

    def __call__(self, rows):
        """A batch of uint8 images and their boxes."""
        images = []
        for image, boxes in rows:
            h, w = image.shape[-2:]
            scale = min(self.short / min(h, w), self.longest / max(h, w))
            size = [round(h * scale), round(w * scale)]
            images.append(v2.functional.resize(image, size, antialias=False))
            boxes *= scale
        height, width = (max(i.shape[k] for i in images) for k in (1, 2))
        height, width = (-(-v // 32) * 32 for v in (height, width))
        return torch.stack(
            [pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images]
        ), [boxes for _, boxes in rows]


def main():
    root, split, short, longest, batch, workers = sys.argv[1:]
    loaders = {
        name: DataLoader(
            Photos(root, split),
            batch_size=int(batch),
            shuffle=True,
            num_workers=int(workers),
            collate_fn=collate(int(short), int(longest)),
            persistent_workers=True,
        )
        for name, collate in (("reference", Reference), ("lean", Lean))
    }
    streams = {name: iter(loader) for name, loader in loaders.items()}
    for line in sys.stdin:
        answer = dict(torch=torch.__version__, torchvision=torchvision.__version__)
        for name, stream in streams.items():
            for _ in range(4 * int(workers)):  # what was made ahead of time
                next(stream)
            count, start = 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < float(line):
                count += len(next(stream)[0])
            answer[name] = count / spent
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
