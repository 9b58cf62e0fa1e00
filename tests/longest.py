r"""The tests that took longest, for `tests/long.txt`.

    make test PYTEST_ADDOPTS=--junitxml=times.xml
    python tests/longest.py times.xml 8 | \
        LC_ALL=C sort -uo tests/long.txt - tests/long.txt

Prints the name of each test of a JUnit file over so many seconds, the longest first;
on stderr how many they are and which share of the time they have. `make test` leaves
out what `tests/long.txt` lists, `make test-slow` runs it.
"""

import sys
from xml.etree import ElementTree


def main(file: str, seconds: str) -> None:
    """Print the names. Doctests have none here and are left out."""
    cases = list(ElementTree.parse(file).getroot().iter("testcase"))
    times = {
        f"{x.get('classname', '').replace('.', '/')}.py::{x.get('name')}": float(
            x.get("time", 0)
        )
        for x in cases
        if x.get("classname", "").startswith("tests.")
    }
    long = sorted(
        (x for x in times if times[x] > float(seconds)), key=lambda x: -times[x]
    )
    print(*(name.removeprefix("tests/") for name in long), sep="\n")
    share = sum(times[x] for x in long) / sum(times.values())
    print(
        f"{len(long)} of {len(times)} tests, {share:.0%} of the time", file=sys.stderr
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
