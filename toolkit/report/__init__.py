"""``posters evaluate --report DIR``: one self-contained page about a model on a split, with plots and metrics.

inputs.py: the data of a report             summary.py, per_label.py, cooccurrence.py: numbers → metrics.json
plots/: the plots                           examples.py: example posters with their pictures
build.py: calls all of these in order       output.py, templates/: the files in DIR and the page
"""
