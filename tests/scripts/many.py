"""Many calls of scripts in one process that has imported what they need.

python -m tests.scripts.many < calls.json > ends.json      # [["train", "--help"], ...]

Each call is a fork, so flags and modules of one never meet another's.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback

from tests.scripts.test_scripts import ROOT


def run(calls):
    """`[(exit code, stdout, stderr), ...]` of `[["train", "--help"], ...]`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.scripts.many"],
        input=json.dumps([list(map(str, call)) for call in calls]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    return json.loads(done.stdout)


def one(name, *arguments):
    out, err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
    child = os.fork()
    if not child:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.argv = [f"scripts/{name}.py", *arguments]
        sys.path.insert(0, "scripts")
        code = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    texts = []
    for file in (out, err):
        file.seek(0)
        texts.append(file.read())
        file.close()
    return os.waitstatus_to_exitcode(status), *texts


if __name__ == "__main__":
    import frcnn_jax.detector
    import frcnn_jax.export
    import frcnn_jax.sweeps.sweep
    import frcnn_jax.training.loop  # noqa: F401

    print(json.dumps([one(*call) for call in json.load(sys.stdin)]))
