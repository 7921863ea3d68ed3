"""``posters train``: setup.py makes all parts, trainer.py has the loop, train_step.py one update."""
