"""The graph that is being written, and how it holds each array of the program.

A network of this package has maps `[n, h, w, c]`, ONNX's convolutions have
`[n, c, h, w]`. An array is held in one of two ways, and changes when an operator needs
it:

| `image` | what the graph has |
| --- | --- |
| None | the array; an axis along which it repeats may have length 1 (`held`) |
| `(n, h, w, c)` | `[n, c, h, w]`; the array is the map as `n h w c`, reshaped |

So the reshape before and after a ReLU costs nothing, and nothing is transposed between
convolutions. Whole numbers are int64, ONNX's type of an index; floats are float32.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """An array of the program: a name in the graph, or a constant's `value`.

    `shape` and `dtype` are the program's. `low` and `high` bound whole numbers, None
    where nothing is known.
    """

    shape: Shape
    dtype: Any
    held: Shape
    name: str = ""
    value: Any = None
    image: Shape | None = None
    low: int | None = None
    high: int | None = None

    @property
    def constant(self) -> bool:
        """Whether its values are known."""
        return self.value is not None

    def bounds(self) -> tuple[int | None, int | None]:
        """Least and largest value of whole numbers and truths."""
        if self.constant and self.value.size and self.dtype.kind in "iub":
            return int(self.value.min()), int(self.value.max())
        return self.low, self.high


def known(value: Any, shape: Shape | None = None) -> Tensor:
    """A constant; with `shape`, one that repeats along axes of length 1."""
    return Tensor(shape or value.shape, value.dtype, value.shape, value=value)


def element_type(dtype: Any) -> int:
    """The graph's type of a program's type."""
    kind = np.dtype(dtype).kind if str(dtype) != "bfloat16" else "f"
    if kind == "b":
        return TensorProto.BOOL
    if kind == "u" and np.dtype(dtype).itemsize == 1:
        return TensorProto.UINT8
    return TensorProto.FLOAT if kind == "f" else TensorProto.INT64


def stored(value: Any) -> np.ndarray:
    """A constant as the graph has it."""
    dtype = helper.tensor_dtype_to_np_dtype(element_type(value.dtype))
    return np.ascontiguousarray(np.asarray(value).astype(dtype)).reshape(value.shape)


class Graph:
    """Nodes and constants; the same operator on the same values is written once."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.repeats: dict[str, tuple[Tensor, int, int]] = {}
        self._written: dict[Any, list[str]] = {}
        self._of_value: dict[Any, str] = {}

    def constant(self, value: Any) -> str:
        """The name of a constant; Python numbers are int64 or float32."""
        array = stored(np.asarray(value))
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._of_value:
            self._of_value[key] = name = f"constant_{len(self._of_value)}"
            self.constants[name] = array
        return self._of_value[key]

    def add(self, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Write a node and return the name of its output, or a list of names.

        Inputs are names; what is no text becomes a constant.
        """
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        key = op, tuple(names), outputs, repr(sorted(attributes.items()))
        if key not in self._written:
            at = len(self.nodes)
            found = [f"{op.lower()}_{at}" + "_b" * i for i in range(outputs)]
            node = helper.make_node(op, names, found, name=found[0], **attributes)
            self.nodes.append(node)
            self.producers |= {name: node for name in found}
            self._written[key] = found
        found = self._written[key]
        return found[0] if outputs == 1 else found

    # How an array is held ---------------------------------------------------------

    def plain(self, t: Tensor) -> str:
        """The name of the array itself, of shape `held`."""
        if t.constant:
            return self.constant(t.value)
        if t.image is None:
            return t.name
        n, h, w, c = t.image
        if h * w == 1 or c == 1:
            return self.reshape(t.name, t.shape)
        name = self.add("Transpose", t.name, perm=[0, 2, 3, 1])
        return name if t.shape == t.image else self.reshape(name, t.shape)

    def full(self, t: Tensor) -> str:
        """The name of the array with nothing left to repeat."""
        if t.constant:
            return self.constant(np.broadcast_to(t.value, t.shape))
        name = self.plain(t)
        if t.held == t.shape:
            return name
        return self.add("Expand", name, np.array(t.shape, np.int64))

    def channels_first(self, t: Tensor) -> str:
        """The name of a map `[n, h, w, c]` as `[n, c, h, w]`."""
        if t.image == t.shape:
            return t.name
        return self.turned(dataclasses.replace(t, held=t.shape, name=self.full(t)))

    def turned(self, t: Tensor) -> str:
        """The name of a plain array of four axes with the last one second."""
        if t.constant:
            return self.constant(np.transpose(t.value, (0, 3, 1, 2)))
        n, h, w, c = t.held
        if h * w == 1 or c == 1:
            return self.reshape(t.name, (n, c, h, w))
        return self.add("Transpose", t.name, perm=[0, 3, 1, 2])

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """The name of an array with another shape."""
        return self.add("Reshape", name, np.array(shape, np.int64))

    # Operators that work value by value -------------------------------------------

    def elementwise(
        self, op: str, inputs: Sequence[Tensor], dtype: Any, **attributes: Any
    ) -> Tensor:
        """The operator on arrays that broadcast."""
        shape = np.broadcast_shapes(*(t.shape for t in inputs))
        maps = [t for t in inputs if t.image is not None and t.shape == shape]
        if maps:
            names = [self._as_map(t, maps[0]) for t in inputs]
            if None not in names:
                name = self.add(op, *names, **attributes)
                return dataclasses.replace(
                    maps[0], dtype=np.dtype(dtype), name=name, low=None, high=None
                )
        names = [self.plain(t) for t in inputs]
        held = np.broadcast_shapes(*(t.held for t in inputs))
        name = self.add(op, *names, **attributes)
        return Tensor(shape, np.dtype(dtype), held, name)

    def _as_map(self, t: Tensor, like: Tensor) -> str | None:
        """A name that broadcasts against the map `like`, or None."""
        if t.image == like.image and t.shape == like.shape:
            return t.name
        if all(side == 1 for side in t.held):
            if t.constant:
                return self.constant(t.value.reshape(()))
            return self.reshape(self.plain(t), (1,))
        if t.image is not None:
            return None
        if like.shape == like.image:
            return self.turned(t)
        assert like.image is not None
        if t.constant and t.value.size == t.held[-1] == like.image[3]:
            return self.constant(t.value.reshape((1, -1, 1, 1)))
        return None
