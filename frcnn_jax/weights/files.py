"""Weight files of other frameworks as NumPy arrays: no PyTorch, no code that runs.

One deep thing behind `read_arrays`: all that decides what is read of a pickle stands
here, in one place.

| file | what it is |
| --- | --- |
| `.pth`, `.pt` | `torch.save` of a state dict: a zip, or a stream before torch 1.6 |
| `.safetensors` | a JSON header and raw arrays |
| `.npz` | NumPy's archive, arrays only |
| `.pkl` | a pickle of NumPy arrays, as Detectron and Detectron2 publish them |

A pickle is a program. The readers of `.pth` and `.pkl` accept only tensors, their
storages, arrays and ordered dicts, build these themselves, and refuse a file that
contains anything else.
"""

import collections
import functools
import io
import math
import pathlib
import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from frcnn_jax import npz

# The first value of a stream that torch.save wrote before version 1.6.
_STREAM = 0x1950A86A20F9469CFC6C

_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_arrays(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Return `{name: array}` of a `.pth`, `.pt`, `.safetensors`, `.npz` or `.pkl` file.

    A training checkpoint with the state dict under "model" or "state_dict" is accepted;
    so is a `.pkl` with its arrays under "model" or "blobs", of which momenta and single
    numbers are left out.
    Raises FileNotFoundError for a missing file, and ValueError for one that cannot be
    read or that asks for anything but arrays.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of a weight file")
    readers: dict[str, Callable[[pathlib.Path], dict[str, np.ndarray]]] = {
        ".pth": _read_pth,
        ".pt": _read_pth,
        ".safetensors": _read_safetensors,
        ".npz": _read_npz,
        ".pkl": _read_pkl,
    }
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected a file ending in one of {tuple(readers)}")
    try:
        return readers[path.suffix](path)
    except (
        *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError, IndexError),
        *(TypeError, AttributeError, ValueError, OverflowError),
        *(RecursionError, MemoryError, zlib.error, NotImplementedError, RuntimeError),
        OSError,  # of a zip file's offsets
        safetensors.SafetensorError,
    ) as error:
        raise ValueError(
            f"{path} is not a readable {path.suffix} file: {error}"
        ) from error


def read_notes(path: str | pathlib.Path) -> dict[str, Any]:
    """What a `.pth` or `.pt` file holds beside its arrays: texts, numbers, tuples.

    Such as MMDetection's "meta". Other files have none. Raises as `read_arrays` does.
    """
    path = pathlib.Path(path)
    if path.suffix not in (".pth", ".pt"):
        return {}
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                (index,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
                tree = _load(io.BytesIO(archive.read(index)))
        else:
            file.seek(0)
            *_, tree = (_load(file) for _ in range(4))
    groups = ("state_dict", "model", "optimizer")
    notes = tree if isinstance(tree, Mapping) else {}
    return {str(name): x for name, x in notes.items() if name not in groups}


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of an archive; pickled objects are refused, not run."""
    return npz.read(path)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays of the types NumPy has, and bfloat16."""
    return {
        name: np.frombuffer(
            entry["data"], jnp.dtype(_SAFETENSORS[entry["dtype"]])
        ).reshape(entry["shape"])
        for name, entry in safetensors.deserialize(path.read_bytes())
    }


class _Tensor(NamedTuple):
    """What a pickle says of a tensor; its numbers stand elsewhere in the file."""

    storage: tuple[str, str]  # key and dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Inert:
    """Stands for what lies beside the tensors of a training run, and does nothing."""

    def __init__(self, *_):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# The history of a run of MMEngine, as MMDetection 3 saves it; none of this is called.
_HISTORY = ("mmengine.logging.history_buffer", "HistoryBuffer")
_INERT = {
    _HISTORY,
    *(("builtins", "getattr"), ("__builtin__", "getattr"), ("_codecs", "encode")),
    *(("numpy", "ndarray"), ("numpy", "dtype")),
    *((f"numpy.{c}.multiarray", "_reconstruct") for c in ("core", "_core")),
    *((f"numpy.{c}.multiarray", "scalar") for c in ("core", "_core")),
}


class _Unpickler(pickle.Unpickler):
    """Builds dicts of `_Tensor`; any other name in the pickle raises."""

    history = False  # whether a run's history has been met

    def find_class(self, module: str, name: str) -> Any:
        """Return what the known names mean here."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        self.history |= (module, name) == _HISTORY
        if self.history and (module, name) in _INERT:
            return _Inert
        raise pickle.UnpicklingError(
            f"the pickle asks for {module}.{name}, but only tensors in dicts are read; "
            "save model.state_dict() alone"
        )

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        """Return the key and the dtype of a storage."""
        kind, dtype, key = pid[:3]
        is_view = len(pid) > 5 and pid[5] is not None
        if kind != "storage" or dtype not in _STORAGES.values() or is_view:
            raise pickle.UnpicklingError("a storage of an unknown kind")
        return str(key), dtype


def _rebuild_tensor(storage, offset, shape, strides, *_):
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_):
    return tensor


def _read_pth(path: pathlib.Path) -> dict[str, np.ndarray]:
    read = _read_zip if zipfile.is_zipfile(path) else _read_stream
    with path.open("rb") as file:
        tree, raw = read(file)
    if not isinstance(tree, Mapping):
        raise ValueError("expected a dict of tensors")
    for key in ("state_dict", "model"):
        if isinstance(tree.get(key), Mapping):
            tree = tree[key]
    wrong = [
        name if isinstance(name, str) else type(name).__name__
        for name, value in tree.items()
        if not (isinstance(value, _Tensor) and isinstance(name, str))
    ]
    if wrong:
        raise ValueError(f"expected a dict of tensors, found {wrong[:5]} beside them")
    sizes = [
        math.prod(tensor.shape) * jnp.dtype(tensor.storage[1]).itemsize
        for tensor in tree.values()
    ]
    npz.check_size(path, sum(sizes))
    return {name: _array(tensor, raw) for name, tensor in tree.items()}


def _read_zip(file: BinaryIO) -> tuple[Any, dict[tuple[str, str], np.ndarray]]:
    """`NAME/data.pkl` and one file a storage, `NAME/data/KEY`."""
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
        npz.check_size(pathlib.Path(file.name), unpacked)
        (index,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        folder = index.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist():
            if archive.read(f"{folder}byteorder") != b"little":
                raise ValueError("its numbers are big-endian")
        tree = _load(io.BytesIO(archive.read(index)))
        raw = {
            (key, dtype): np.frombuffer(
                archive.read(f"{folder}data/{key}"), jnp.dtype(dtype)
            )
            for key, dtype in _storages(tree)
        }
    return tree, raw


def _read_stream(file: BinaryIO) -> tuple[Any, dict[tuple[str, str], np.ndarray]]:
    """Pickles of a number, a version, the machine, the tree and the keys; then data."""
    if _load(file) != _STREAM:
        raise ValueError("it was not written by torch.save")
    _load(file)
    if not _load(file).get("little_endian", True):
        raise ValueError("its numbers are big-endian")
    tree, keys = _load(file), _load(file)
    dtypes = dict(_storages(tree))
    raw = {}
    for key in keys:
        dtype = jnp.dtype(dtypes[key])
        count = int.from_bytes(file.read(8), "little")
        npz.check_size(pathlib.Path(file.name), count * dtype.itemsize)
        raw[key, dtypes[key]] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return tree, raw


def _load(file: Any, unpickler: Callable[..., pickle.Unpickler] = _Unpickler) -> Any:
    """What a pickle holds, once its size is known to be harmless.

    The numbers of a pickle's memo are consecutive; a larger one would allocate memory
    for billions of entries.
    """
    start = file.tell()
    for opcode, number, position in pickletools.genops(file):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if int(number or 0) > (position or 0):
                raise pickle.UnpicklingError(f"its memo has an entry {number}")
    file.seek(start)
    return unpickler(file).load()


def _storages(tree: Any) -> list[tuple[str, str]]:
    """The storages of all tensors in nested dicts, in order, each once."""
    if isinstance(tree, _Tensor):
        return [tree.storage]
    if isinstance(tree, Mapping):
        found = [storage for value in tree.values() for storage in _storages(value)]
        return list(dict.fromkeys(found))
    return []


class _PickledType:
    """A NumPy dtype as its pickle describes it: a code, and a byte order."""

    def __init__(self, code: str, *_):
        self.code, self.order = code, ""

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype:
        """The dtype; ValueError for anything but plain numbers."""
        order = self.order if self.order in ("<", ">") else ""
        if not isinstance(self.code, str) or not re.fullmatch(r"[fiub]\d", self.code):
            raise ValueError(f"an array of the type {self.code!r}: expected numbers")
        return np.dtype(order + self.code)


class _PickledArray:
    """A NumPy array as its pickle describes it; `read` makes it one."""

    def __init__(self, *_):
        self.state: Any = None

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def read(self) -> np.ndarray:
        """The array; ValueError where bytes and shape do not fit."""
        _, shape, kind, fortran, data = self.state
        raw = data.encode("latin1") if isinstance(data, str) else data
        array = np.frombuffer(raw, kind.dtype())
        return array.reshape(shape, order="F" if fortran else "C")


def _pickled_buffer(data: Any, kind: Any, shape: Any, order: Any) -> _PickledArray:
    """An array as protocol 5 writes it."""
    array = _PickledArray()
    array.__setstate__((1, shape, kind, order == "F", bytes(memoryview(data))))
    return array


def _pickled_scalar(*_) -> None:
    """A single number, of which weights have none."""


def _latin1(text: str, codec: str = "latin1") -> bytes:
    """Bytes, as protocol 2 writes them."""
    if codec != "latin1":
        raise pickle.UnpicklingError(f"bytes in {codec!r}: expected latin1")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Builds dicts of `_PickledArray`; any other name in the pickle raises."""

    names = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): _latin1,
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledType,
        **{
            (f"numpy.{core}.{module}", name): value
            for core in ("core", "_core")
            for module, name, value in (
                ("multiarray", "_reconstruct", _PickledArray),
                ("multiarray", "scalar", _pickled_scalar),
                ("numeric", "_frombuffer", _pickled_buffer),
            )
        },
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what the known names mean here."""
        if (module, name) not in self.names:
            raise pickle.UnpicklingError(
                f"the pickle asks for {module}.{name}, but only arrays in dicts are "
                "read; save {name: array} alone"
            )
        return self.names[module, name]


def _read_pkl(path: pathlib.Path) -> dict[str, np.ndarray]:
    """`{"model": {...}}` (Detectron2), `{"blobs": {...}}` (Detectron), or a dict."""
    with path.open("rb") as file:
        tree = _load(file, functools.partial(_ArrayUnpickler, encoding="latin1"))
    for key in ("model", "blobs"):
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            tree = tree[key]
    arrays = {
        str(name): value.read()
        for name, value in dict(tree).items()
        if isinstance(value, _PickledArray) and not str(name).endswith("_momentum")
    }
    if not arrays:
        raise ValueError("it holds no arrays by name")
    return arrays


def _array(tensor: _Tensor, raw: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
    """Copy a tensor out of its storage; ValueError where it reaches beyond it."""
    numbers = raw[tensor.storage]
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    empty = 0 in tensor.shape
    if min((*tensor.shape, *tensor.strides, tensor.offset, 0)) < 0 or (
        not empty and tensor.offset + reach >= len(numbers)
    ):
        raise ValueError(f"a tensor of {tensor.shape} lies outside its {len(numbers)}")
    if empty:
        return np.zeros(tensor.shape, numbers.dtype)
    strides = tuple(s * numbers.itemsize for s in tensor.strides)
    view = np.lib.stride_tricks.as_strided(
        numbers[tensor.offset :], tensor.shape, strides, writeable=False
    )
    return view.copy()


def write_npz(path: str | pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays that `read_arrays` gives back."""
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(path, **plain)


def write_safetensors(path: str | pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays that `read_arrays`, torch and others read."""
    plain = {n: np.ascontiguousarray(np.asarray(a)) for n, a in arrays.items()}
    safetensors.numpy.save_file(plain, path, metadata={"format": "pt"})


def shorten(names: list[str], limit: int = 8) -> str:
    """The first few of many names, and how many there are.

    >>> shorten(["a", "b", "c"], limit=2)
    'a; b; and 1 more'
    """
    rest = len(names) - limit
    return "; ".join(names[:limit]) + (f"; and {rest} more" if rest > 0 else "")
