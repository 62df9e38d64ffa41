"""How programs end."""

import signal

import pytest

from megatron_lpc.command_line import UserError, reports_errors


def end(error):
    """The exit code of a program in which `error` is raised."""
    with pytest.raises(SystemExit) as ended, reports_errors():
        raise error
    return ended.value.code


def test_an_error_of_the_user_is_one_line(capsys):
    assert end(UserError("--load: is missing")) == 2
    assert capsys.readouterr().err == "error: --load: is missing\n"


def test_an_interrupted_program_says_so_and_has_no_trace(capsys):
    assert end(KeyboardInterrupt()) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "interrupted\n"


def test_other_errors_keep_their_trace():
    with pytest.raises(ZeroDivisionError), reports_errors():
        raise ZeroDivisionError
