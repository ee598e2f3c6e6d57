"""A request to stop is remembered, or ends at once what can be broken off, whatever a library makes of it."""

import signal

import pytest

from gptjax.run.exits import Preempted
from gptjax.run.stop import Stop


def test_a_request_is_remembered_where_nothing_can_be_broken_off(capfd):
    with Stop() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked(1)
        with pytest.raises(Preempted, match="SIGTERM"), stop.interruptible():
            pytest.fail("it began what can be broken off")
    assert "saving at the next safe point" in capfd.readouterr().err


def test_a_request_is_heard_through_the_error_of_a_library():
    def load():
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise RuntimeError("could not load") from error

    with Stop() as stop, pytest.raises(Preempted), stop.interruptible():
        load()


def test_errors_without_a_request_are_themselves():
    with Stop() as stop, pytest.raises(RuntimeError, match="disk"), stop.interruptible():
        raise RuntimeError("disk")
