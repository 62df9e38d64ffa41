"""Plan a run on any number of devices without one: what each pipeline stage holds, and what fits."""
