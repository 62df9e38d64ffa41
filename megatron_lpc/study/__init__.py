"""Studies: a grid of options over seeds and sets of data, trained, evaluated and compared."""
