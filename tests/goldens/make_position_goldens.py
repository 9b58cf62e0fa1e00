"""Write tests/goldens/positions.npz: positions of other sizes, as timm resizes them.

    make peer
    .venv-peer/bin/python -m pip install timm
    .venv-peer/bin/python tests/goldens/make_position_goldens.py

Of every case: the table and what timm makes of it, in float32. `absolute/H_W` are
positions of a 5x5 grid on H x W cells, `relative/N` relative ones of 5 cells on N,
`swin/N` the bias table of 7x7 windows on windows of N x N.
"""
# pyright: reportMissingImports=false

import pathlib

import numpy as np
import timm
import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from timm.models.vision_transformer_sam import get_rel_pos

GOLDEN = pathlib.Path(__file__).resolve().parent / "positions.npz"


def main():
    rng = np.random.default_rng(0)
    tables = {
        "absolute": rng.normal(size=(1, 25, 4)).astype(np.float32),
        "relative": rng.normal(size=(9, 4)).astype(np.float32),
        "swin": rng.normal(size=(13 * 13, 3)).astype(np.float32),
    }
    arrays = {f"{name}/table": table for name, table in tables.items()}
    torches = {name: torch.from_numpy(table) for name, table in tables.items()}
    for size in ((7, 11), (3, 2), (5, 4), (1, 9)):
        found = resample_abs_pos_embed(
            torches["absolute"], list(size), num_prefix_tokens=0
        )
        arrays["absolute/{}_{}".format(*size)] = found.numpy().reshape(*size, 4)
    for n in (2, 4, 5, 9):
        arrays[f"relative/{n}"] = get_rel_pos(n, n, torches["relative"]).numpy()
    for n in (4, 8, 12):
        found = resize_rel_pos_bias_table(
            torches["swin"], (n, n), ((2 * n - 1) ** 2, 3)
        )
        arrays[f"swin/{n}"] = found.numpy()
    versions = f"torch {torch.__version__}, timm {timm.__version__}"
    np.savez_compressed(GOLDEN, versions=np.array(versions), **arrays)
    print(versions, GOLDEN.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
