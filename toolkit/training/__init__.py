"""``posters train``. setup.py builds the parts of a run, trainer.py runs the epochs, train_step.py makes one update."""
