"""Files that torch itself wrote (goldens/make_weight_goldens.py), and hostile ones."""

import io
import json
import pathlib
import pickle
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.weights import files as weight_files

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


@pytest.mark.parametrize("kind", ["zip", "stream"])
def test_both_formats_of_torch_save(kind):
    arrays = weight_files.read_arrays(GOLDENS / f"tensors_{kind}.pth")
    base = np.arange(24, dtype=np.float32)
    expected = dict(
        plain=base.reshape(2, 3, 4),
        transposed=base.reshape(4, 6).T,
        view=base[5:11].reshape(2, 3),
        half=np.arange(6, dtype=np.float16),
        brain=np.arange(6).astype(jnp.bfloat16),
        long=np.int64(7),
        empty=np.zeros((0, 3), np.float32),
        parameter=np.arange(3, dtype=np.float32),
    )
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name])


def test_safetensors(tmp_path):
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    brain = np.arange(4).astype(jnp.bfloat16)
    header = dict(
        a=dict(dtype="F32", shape=[2, 3], data_offsets=[0, 24]),
        b=dict(dtype="BF16", shape=[4], data_offsets=[24, 32]),
        __metadata__=dict(format="pt"),
    )
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    data = struct.pack("<Q", len(text)) + text + numbers.tobytes() + brain.tobytes()
    path.write_bytes(data)
    arrays = weight_files.read_arrays(path)
    np.testing.assert_array_equal(arrays["a"], numbers)
    np.testing.assert_array_equal(arrays["b"], brain)
    path.write_bytes(data[:-4])
    with pytest.raises(ValueError, match="not a readable .safetensors file"):
        weight_files.read_arrays(path)


def test_safetensors_are_written_as_they_are_read(tmp_path):
    path, base = tmp_path / "x.safetensors", np.arange(6, dtype=np.float32)
    arrays = dict(a=base.reshape(2, 3).T, b=np.int64(7))
    weight_files.write_safetensors(path, arrays)
    found = weight_files.read_arrays(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_arrays(tmp_path, protocol):
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = dict(
        plain=base, fortran=np.asfortranarray(base), big=base.astype(">f4"), one=base[0]
    )
    extra = {"lr": np.float64(0.1), "step": 3, "w_momentum": base, "__author__": "x"}
    for tree in (
        {"model": arrays, "__author__": "A Zoo"},
        {"blobs": {**arrays, **extra}, "cfg": "text"},
        {**arrays, **extra},
    ):
        path = tmp_path / "x.pkl"
        path.write_bytes(pickle.dumps(tree, protocol))
        found = weight_files.read_arrays(path)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_pickle_of_python_2(tmp_path):
    """Its strings are bytes, and so are the numbers of an array."""
    text = (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R("
        b"K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x08" + np.float32([1, -2]).tobytes() + b"tbs."
    )
    (tmp_path / "x.pkl").write_bytes(text)
    np.testing.assert_array_equal(
        weight_files.read_arrays(tmp_path / "x.pkl")["a"], [1, -2]
    )


# Hostile and broken files


class Call:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def write_pth(path, kind, tree):
    """A file of torch's layout around any pickle."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", pickle.dumps(tree, 2))
    else:
        parts = (weight_files._STREAM, 1001, dict(little_endian=True), tree, [])
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))


@pytest.mark.parametrize("kind", ["zip", "stream"])
@pytest.mark.parametrize("call", ["open", "eval", "getattr"])
def test_a_pickle_that_calls_anything_is_refused_and_not_run(tmp_path, kind, call):
    victim = tmp_path / "victim"
    hostile = {
        "open": Call(open, str(victim), "w"),
        "eval": Call(eval, f"open({str(victim)!r}, 'w')"),
        "getattr": Call(getattr, "x", "join"),
    }[call]
    path = tmp_path / "x.pth"
    write_pth(path, kind, {"a": hostile})
    with pytest.raises(ValueError, match="the pickle asks for .*save model.state_dict"):
        weight_files.read_arrays(path)
    assert not victim.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("call", ["open", "eval", "getattr", "frombuffer"])
def test_a_pkl_that_calls_anything_is_refused_and_not_run(tmp_path, call, protocol):
    victim = tmp_path / "victim"
    hostile = {
        "open": Call(open, str(victim), "w"),
        "eval": Call(eval, f"open({str(victim)!r}, 'w')"),
        "getattr": Call(getattr, "x", "join"),
        "frombuffer": Call(np.frombuffer, b"1234"),
    }[call]
    path = tmp_path / "x.pkl"
    for tree in ({"model": {"a": hostile}}, hostile, {"a": np.zeros(2), "b": hostile}):
        path.write_bytes(pickle.dumps(tree, protocol))
        with pytest.raises(ValueError, match="the pickle asks for .*only arrays"):
            weight_files.read_arrays(path)
    assert not victim.exists()


def test_arrays_of_a_pkl_hold_plain_numbers_that_are_there(tmp_path):
    path = tmp_path / "x.pkl"
    for array, message in (
        (np.array([{}], object), "'O8': expected numbers"),
        (np.array(["text"]), "'U4': expected numbers"),
        (np.zeros(2, "f4,f4"), "'V8': expected numbers"),
    ):
        path.write_bytes(pickle.dumps({"a": array}, 2))
        with pytest.raises(ValueError, match=message):
            weight_files.read_arrays(path)
    right = pickle.dumps({"a": np.zeros(3, np.float32)}, 2)
    for shape in (4, 200):  # more than its bytes
        path.write_bytes(right.replace(b"K\x03\x85", bytes([75, shape, 133])))
        with pytest.raises(ValueError, match="is not a readable .pkl file"):
            weight_files.read_arrays(path)
    for tree in ({}, [1, 2], {"model": {"a": 3}}):
        path.write_bytes(pickle.dumps(tree))
        with pytest.raises(ValueError, match="is not a readable .pkl file"):
            weight_files.read_arrays(path)


@pytest.mark.parametrize("kind", ["zip", "stream"])
def test_other_values_than_tensors_are_named(tmp_path, kind):
    path = tmp_path / "x.pth"
    write_pth(path, kind, {"epoch": 3})
    with pytest.raises(ValueError, match=r"dict of tensors, found \['epoch'\]"):
        weight_files.read_arrays(path)


def with_tensor(path, offset, shape, strides):
    """A zip whose one tensor has this geometry over a storage of four numbers."""

    def name(module, attribute):
        return f"c{module}\n{attribute}\n".encode()

    # Opcodes: a dict with one tensor made by _rebuild_tensor_v2(storage, ...).
    out = io.BytesIO()
    out.write(b"}X\x01\x00\x00\x00a" + name("torch._utils", "_rebuild_tensor_v2"))
    out.write(b"(")
    out.write(b"(X\x07\x00\x00\x00storage" + name("torch", "FloatStorage"))
    out.write(b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ")
    for value in (offset, shape, strides):
        out.write(pickle.dumps(value, 2)[2:-1])
    out.write(b"tRs.")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + out.getvalue())
        archive.writestr("x/data/0", np.arange(4, dtype=np.float32).tobytes())


def test_a_tensor_stays_inside_its_storage(tmp_path):
    path = tmp_path / "x.pth"
    with_tensor(path, 1, (3,), (1,))
    np.testing.assert_array_equal(weight_files.read_arrays(path)["a"], [1, 2, 3])
    for geometry in (
        (2, (3,), (1,)),
        (0, (3,), (2,)),
        (0, (2,), (-1,)),
        (-1, (1,), (1,)),
    ):
        with_tensor(path, *geometry)
        with pytest.raises(ValueError, match="lies outside its 4"):
            weight_files.read_arrays(path)


def test_files_of_no_known_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pth: no such file"):
        weight_files.read_arrays(tmp_path / "none.pth")
    (tmp_path / "x.h5").write_bytes(b"")
    with pytest.raises(ValueError, match="ending in one of"):
        weight_files.read_arrays(tmp_path / "x.h5")
    for suffix in (".pth", ".safetensors", ".npz", ".pkl"):
        for content in (b"", b"hello, this is text", b"\x80\x02K\x01."):
            path = tmp_path / f"x{suffix}"
            path.write_bytes(content)
            with pytest.raises(ValueError, match="is not a readable"):
                weight_files.read_arrays(path)
