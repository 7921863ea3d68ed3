"""``posters evaluate --report DIR`` writes one page with metrics and plots of a model on one split.

inputs.py: the data of a report             summary.py, per_label.py, cooccurrence.py: numbers in metrics.json
plots/: the plots                           examples.py: example posters with their pictures
build.py: makes all contents of a report    output.py, templates/: the files in DIR and the page
"""
