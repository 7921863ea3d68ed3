"""`posters evaluate --report DIR`: one self-contained page about a model on a split, with its plots and numbers.

inputs.py: what the report is about      summary.py, genres.py, cooccurrence.py: numbers → metrics.json
common.py: how plots look                   threshold_plots.py, reliability_plots.py, training_curves.py, matrix_plots.py: the plots
examples.py: posters with their pictures   build.py: all of this in order
page.py, templates/: the page              report/output.py: DIR, and what may be replaced there
"""
