import os
import signal

import pytest

from convmixer_jax.parallel.signals import Interrupt


@pytest.fixture(autouse=True)
def usual_handlers():
  """Default handlers: a shell makes background jobs ignore SIGINT, and `nohup` SIGHUP."""
  usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
  before = {signum: signal.signal(signum, handler) for signum, handler in usual.items()}
  yield
  for signum, handler in before.items():
    signal.signal(signum, handler)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_is_noted_and_the_second_has_its_usual_effect(signum):
  with Interrupt() as interrupt:
    assert interrupt.poll() is None
    os.kill(os.getpid(), signum)
    assert interrupt.signum == interrupt.poll() == signum
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_before_the_first_step_there_is_nothing_to_save():
  with Interrupt(), pytest.raises(KeyboardInterrupt):
    os.kill(os.getpid(), signal.SIGINT)


def test_a_terminal_that_hangs_up_says_so_more_than_once():
  with Interrupt() as interrupt:
    interrupt.poll()
    for _ in range(3):
      os.kill(os.getpid(), signal.SIGHUP)
    assert interrupt.poll() == signal.SIGHUP


def test_nohup_is_respected():
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  with Interrupt() as interrupt:
    interrupt.poll()
    os.kill(os.getpid(), signal.SIGHUP)
    assert interrupt.poll() is None
  assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_while_steps_are_taken_signals_do_not_wake_the_one_that_ends_the_process():
  read_end, write_end = os.pipe()
  os.set_blocking(write_end, False)
  os.set_blocking(read_end, False)
  before = signal.set_wakeup_fd(write_end)
  with Interrupt() as interrupt:
    interrupt.poll()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(BlockingIOError):
      os.read(read_end, 1)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
    assert os.read(read_end, 9) == bytes([signal.SIGINT])
  assert signal.set_wakeup_fd(before) == write_end
  os.close(read_end)
  os.close(write_end)
