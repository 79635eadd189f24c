"""Everything around a training process: starting ranks, looking at the machine. Loads nothing by itself."""
