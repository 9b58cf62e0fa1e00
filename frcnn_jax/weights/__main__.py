"""Prints the trained detectors that have names: `python -m frcnn_jax.weights [WORD]`.

With words, those alone whose names contain all of them.
"""

import sys

from frcnn_jax.weights import download, zoo


def main(words: list[str]) -> None:
    """Prints a line for each, and where downloads are kept."""
    width = max(len(entry.name) for entry in zoo.TABLE)
    print(f"{'name':{width}}  box AP  classes  MiB  licence       digest")
    for entry in zoo.TABLE:
        if all(word in entry.name for word in words):
            size = f"{entry.mib:3.0f}" if entry.mib else "  ?"
            print(
                f"{entry.name:{width}}  {entry.ap:6.1f}  {len(entry.classes):7}  {size}"
                f"  {entry.licence:12}  {entry.digest or 'not verified'}"
            )
    print(
        f"\nAP as published, COCO val2017; downloads go to {download.cache()}.\n"
        "from frcnn_jax.detector import load; detector = load(NAME)"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
