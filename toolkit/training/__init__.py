"""``posters train``: setup.py creates all parts, trainer.py runs the epochs, train_step.py makes one update."""
