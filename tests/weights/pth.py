"""Writes `.pth` files as torch.save does, without torch: trees with float32 arrays."""

import io
import pickle
import zipfile

import numpy as np


class _Pickler(pickle._Pickler):
    """Arrays become calls of torch's rebuilding function, their numbers go aside."""

    def __init__(self, file, storages):
        super().__init__(file, 2)
        self.storages = storages

    def save(self, obj, save_persistent_id=True):
        if not isinstance(obj, np.ndarray):
            return super().save(obj, save_persistent_id)
        key = str(len(self.storages))
        self.storages.append(np.ascontiguousarray(obj, np.float32))
        strides, step = [], 1
        for n in reversed(obj.shape):
            strides.insert(0, step)
            step *= n
        self.write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        super().save("storage")
        self.write(b"ctorch\nFloatStorage\n")
        for part in (key, "cpu", obj.size):
            super().save(part)
        self.write(b"tQ")
        for part in (0, obj.shape, tuple(strides), False, {}):
            super().save(part)
        self.write(b"tR")


def write_pth(path, tree):
    """Write a tree of dicts, arrays and plain values; the path."""
    data, storages = io.BytesIO(), []
    _Pickler(data, storages).dump(tree)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data.getvalue())
        for key, array in enumerate(storages):
            archive.writestr(f"x/data/{key}", array.tobytes())
    return path
