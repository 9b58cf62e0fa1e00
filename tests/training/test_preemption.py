import os
import signal
import threading

import pytest

from frcnn_jax.training import preemption


def test_sigterm_is_noticed_and_its_handler_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.watched() as leaving:
        assert not leaving(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert leaving(1) and leaving(2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_that_gets_no_signals_trains_all_the_same():
    found = []

    def work():
        with preemption.watched() as leaving:
            found.append(leaving(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_a_preempted_process_ends_with_143():
    with pytest.raises(SystemExit) as info:
        raise preemption.Preempted
    assert info.value.code == 143
