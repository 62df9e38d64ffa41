"""The printed configuration."""

from rich.console import Console

from megatron_lpc.config import parse_args, print_config
from megatron_lpc.config.options import all_options


def test_every_option_is_printed_and_the_changed_ones_are_marked():
    console = Console(record=True, width=4000, file=open("/dev/null", "w"))  # noqa: SIM115
    print_config(parse_args(["--train-data", "[red]", "--no-ipo-length-average"]), console)
    text = console.export_text()
    for name in all_options():
        assert f"{name}=" in text or f"{name}*=" in text
    assert "train_data*=['[red]']" in text
    assert "ipo_length_average*=false" in text
    assert "lr=5e-07" in text
    assert text.count("*=") == 2
