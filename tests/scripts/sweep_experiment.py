"""The tests' small configuration, with sweeps of it."""

from tests.training import small


def get_config():
    return small.config(total_steps=8, eval_every=4, checkpoint_every=2)


def sweep_rate():
    for rate in (0.01, 0.02):
        for seed in (0, 1):
            yield {"optimizer.learning_rate": rate, "seed": seed}


def search_optimizer(trial):
    return {
        "optimizer.learning_rate": trial.suggest_float("rate", 1e-3, 1e-1, log=True)
    }


def sweep_misspelt():
    yield {"optimizer.learning_rat": 0.1}


def sweep_twice():
    yield {"seed": 1}
    yield {"seed": 1}
