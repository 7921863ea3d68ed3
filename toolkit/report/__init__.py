"""``posters evaluate --report DIR``: one self-contained page about a model on a split, with its plots and numbers.

inputs.py: what the report is about         summary.py, per_label.py, cooccurrence.py: numbers → metrics.json
plots/: the plots                           examples.py: posters with their pictures
build.py: all of this in order              output.py, templates/: DIR and its page, and what may be replaced there
"""
