import os
import signal

import pytest

from convmixer_jax.interrupt import Interrupt


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_has_its_usual_effect(signum):
  original = signal.getsignal(signal.SIGINT)
  # A shell that starts the tests in the background has them ignore it.
  before = signal.default_int_handler
  signal.signal(signal.SIGINT, before)
  with Interrupt() as interrupt:
    assert interrupt.signum is None
    os.kill(os.getpid(), signum)
    assert interrupt.signum == signum
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is before
  signal.signal(signal.SIGINT, original)
