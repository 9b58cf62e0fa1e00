"""Training processes beside this one: each in its folder, on its own device.

    run = start_local(command, folder, slot)      # this machine
    run = start_slurm(command, folder, executor)  # a cluster, through submitit
    run.poll()                                    # None, or the exit code
    run.stop()

The output of a process goes to `train.log` in its folder. A folder is locked as long as
its process lives, even if the process that started it has ended, so two never write
there.
"""

import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

LOG, LOCK, JOB = "train.log", ".lock", "slurm_job"
PATIENCE = 60.0  # seconds for a process to save itself before it is killed


class Slot(NamedTuple):
    """A place for one process: variables of its environment, and its CPU cores."""

    env: dict[str, str]
    cores: tuple[int, ...] = ()


def slots(jobs: int = 0, devices: Sequence[str] | None = None) -> list[Slot]:
    """Divides this machine: `jobs` places, each with its own GPU or its own cores.

    `devices` are the GPUs' numbers, by default CUDA_VISIBLE_DEVICES or what nvidia-smi
    lists; without any, the cores this process may use are split into equal parts. As
    many jobs as GPUs by default, one on CPUs. Jobs in excess of the GPUs share them,
    without preallocating memory. ValueError for more jobs than cores.
    """
    gpus = list(_gpus() if devices is None else devices)
    jobs = jobs or len(gpus) or 1
    affinity = getattr(os, "sched_getaffinity", None)
    cores = sorted(affinity(0)) if affinity else []
    part = len(cores) // jobs
    if not gpus and cores and not part:
        raise ValueError(f"jobs={jobs}: this process has {len(cores)} cores, use fewer")
    mine = [tuple(cores[i * part : (i + 1) * part]) for i in range(jobs)]
    if not gpus:
        return [Slot({}, cores) for cores in mine]
    share = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if jobs > len(gpus) else {}
    return [
        Slot({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)], **share}, mine[i])
        for i in range(jobs)
    ]


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    except OSError:
        return []
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return [str(i) for i, _ in enumerate(x for x in lines if x.startswith("GPU "))]


class Local:
    """A process of this machine."""

    def __init__(self, process: subprocess.Popen):
        self.process = process

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self.process.poll()

    def stop(self) -> None:
        """Asks it to end, and kills it if it does not within a minute."""
        _stop(self.process)


def start_local(
    command: Sequence[str], folder: pathlib.Path, slot: Slot
) -> Local | None:
    """Starts `command` in a slot; None if another process is at work in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        before = os.sched_getaffinity(0) if slot.cores else set()
        if slot.cores:  # inherited: XLA makes as many threads as it has cores
            os.sched_setaffinity(0, slot.cores)
        try:  # the child keeps the lock open, and with it the lock
            with (folder / LOG).open("a") as log:
                process = subprocess.Popen(
                    command,
                    env={**os.environ, **slot.env},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[lock.fileno()],
                    start_new_session=True,  # Ctrl-C is the parent's to pass on
                )
        finally:
            if slot.cores:
                os.sched_setaffinity(0, before)
    return Local(process)


class Slurm:
    """A job of a cluster, by submitit."""

    def __init__(self, job: Any):
        self.job = job

    def poll(self) -> int | None:
        """The command's exit code, -1 if the job was cancelled or lost; or None."""
        if not self.job.done():
            return None
        try:
            return int(self.job.result())
        except Exception:  # cancelled, timed out, out of memory: its own log says
            return -1

    def stop(self) -> None:
        """Cancels it."""
        self.job.cancel()


def start_slurm(command: Sequence[str], folder: pathlib.Path, executor: Any) -> Slurm:
    """Queues `command`, or finds the job that an earlier call has queued for it."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / JOB
    if executor.cluster == "slurm" and note.exists():
        import submitit

        old = Slurm(submitit.SlurmJob(executor.folder, note.read_text().strip()))
        if old.poll() is None:
            return old
    job = executor.submit(Task(tuple(command), str(folder)))
    note.write_text(job.job_id)
    return Slurm(job)


class Task:
    """What a cluster's job does: run the command; preempted, it queues again."""

    def __init__(self, command: tuple[str, ...], folder: str):
        self.command, self.folder = command, folder
        self.process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Waits for the folder, runs the command and returns its exit code."""
        folder = pathlib.Path(self.folder)
        with (folder / LOCK).open("w") as lock, (folder / LOG).open("a") as log:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            # `checkpoint` interrupts this thread and waits, too: not for a lock it has.
            waiting = threading.Thread(target=process.wait)
            waiting.start()
            waiting.join()
            return process.returncode

    def checkpoint(self) -> Any:
        """Called by submitit shortly before a time limit or a preemption."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:  # else it still waits for the folder
            _stop(self.process, patience=20.0)
        return DelayedSubmission(Task(self.command, self.folder))


def _stop(process: subprocess.Popen, patience: float = PATIENCE) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def python(script: str | pathlib.Path, *args: str) -> list[str]:
    """The command that runs a script with this interpreter."""
    return [sys.executable, str(script), *args]
