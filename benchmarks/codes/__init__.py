"""When codes stay active: sweeps over the options of the latent, one option at a time."""
