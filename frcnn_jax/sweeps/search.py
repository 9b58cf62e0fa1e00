"""Where the trials of a sweep come from: a list, or a search with Optuna."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from frcnn_jax.sweeps.trials import DONE, Trial, plain


class Listed:
    """Trials that are known from the start."""

    def __init__(self, trials: list[Trial]):
        self.trials = trials
        self.waiting = [t for t in trials if t.state not in DONE]

    def next(self) -> Trial | None:
        """The next to run."""
        return self.waiting.pop(0) if self.waiting else None

    def hopeless(self, trial: Trial) -> bool:
        """Whether it should end early."""
        return False

    def end(self, trial: Trial) -> None:
        """Takes note of its end."""


class Search:
    """Trials that Optuna asks for; `function(trial)` returns what one changes.

    Args:
        function: takes an Optuna trial, returns the changed leaves.
        make: `make(changes, number)` builds the Trial.
        workdir: the folder whose trials these are; a storage may serve several.
        name: of the study in the storage.
        storage: an Optuna URL, by default SQLite in the workdir.
        trials: how many, those of other machines included.
        metric: a name of the evaluation's metrics, to be maximised.
        sampler: "tpe" (tree-structured Parzen estimator) or "random".
        pruner: "median" (worse than the median of the others at the same step, from the
            fourth trial on), "asha" (of those that reach `rung`, 3 `rung`, 9 `rung`,
            ... steps a third goes on) or "none".
        rung: steps of the first evaluation.
        seed: of the sampler.
    """

    def __init__(
        self,
        function: Callable[[Any], Mapping[str, Any]],
        make: Callable[[Mapping[str, Any], int], Trial],
        workdir: pathlib.Path,
        *,
        name: str = "sweep",
        storage: str = "",
        trials: int = 20,
        metric: str = "AP",
        sampler: str = "tpe",
        pruner: str = "median",
        rung: int = 1,
        seed: int = 0,
    ):
        try:
            import optuna
        except ImportError:
            raise ImportError(
                "a search needs Optuna: run pip install '.[sweep]' in the folder of "
                "the repository"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna, self.function, self.make = optuna, function, make
        self.count, self.metric = trials, metric
        self.study = optuna.create_study(
            storage=storage or f"sqlite:///{workdir / 'study.db'}",
            study_name=name,
            load_if_exists=True,
            direction="maximize",
            pruner=_pruner(optuna, pruner, rung),
        )
        samplers = dict(
            tpe=optuna.samplers.TPESampler, random=optuna.samplers.RandomSampler
        )
        # Not the draws over again that a study which goes on began with.
        earlier = self.study.get_trials(deepcopy=False)
        self.study.sampler = samplers[sampler](seed=seed + len(earlier))
        self.asked: dict[int, Any] = {}
        self.reported: dict[int, set[int]] = {}
        self.trials: list[Trial] = []
        self.unfinished: list[Trial] = []
        for frozen in earlier:
            where = frozen.user_attrs.get("folder")
            if where is None or pathlib.Path(where).parents[1] != workdir:
                continue  # of another machine that works on the same study
            self._take_up(frozen)

    def _take_up(self, frozen: Any) -> None:
        """One that the study knows from an earlier start."""
        trial = self.make(json.loads(frozen.user_attrs["changes"]), frozen.number)
        self.trials.append(trial)
        states = self.optuna.trial.TrialState
        if frozen.state == states.RUNNING:
            asked = self.optuna.trial.Trial(self.study, frozen._trial_id)
            self.asked[frozen.number] = asked
            self.reported[frozen.number] = set(frozen.intermediate_values)
            self.unfinished.append(trial)
        else:
            ended = {states.COMPLETE: "finished", states.PRUNED: "pruned"}
            trial.state = ended.get(frozen.state, "failed")

    def next(self) -> Trial | None:
        """One that was interrupted, or a new one."""
        if self.unfinished:
            return self.unfinished.pop(0)
        if len(self.study.get_trials(deepcopy=False)) >= self.count:
            return None
        asked = self.study.ask()
        try:
            changes = self.function(asked)
            trial = self.make(changes, asked.number)
        except Exception:
            self.study.tell(asked, state=self.optuna.trial.TrialState.FAIL)
            raise
        asked.set_user_attr("folder", str(trial.folder))
        asked.set_user_attr("changes", json.dumps(changes, default=plain))
        self.asked[asked.number], self.reported[asked.number] = asked, set()
        self.trials.append(trial)
        return trial

    def hopeless(self, trial: Trial) -> bool:
        """Reports its new evaluations and asks the pruner."""
        assert trial.number is not None
        asked, reported = self.asked[trial.number], self.reported[trial.number]
        for step in sorted(set(trial.evaluations) - reported):
            reported.add(step)
            value = trial.evaluations[step].get(self.metric)
            if value is not None:
                asked.report(value, step)
                if step < trial.total_steps and asked.should_prune():
                    return True
        return False

    def end(self, trial: Trial) -> None:
        """Tells the study; one that was killed stays open."""
        assert trial.number is not None
        states = self.optuna.trial.TrialState
        if trial.state == "finished":
            self.study.tell(trial.number, trial.result[self.metric])
        elif trial.state == "pruned":
            self.study.tell(trial.number, state=states.PRUNED)
        elif trial.state == "failed":
            self.study.tell(trial.number, state=states.FAIL)


def _pruner(optuna: Any, name: str, rung: int) -> Any:
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=3)
    if name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=rung, reduction_factor=3
        )
    return {"none": optuna.pruners.NopPruner}[name]()
