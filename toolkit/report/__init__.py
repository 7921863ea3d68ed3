"""`posters evaluate --report DIR`: one self-contained page about a model on a split, with its plots and numbers.

material.py: what the report is about      findings.py, genres.py, together.py: numbers → metrics.json
plots.py: how plots look                   curves.py, diagrams.py, course.py, heat.py: the plots
examples.py: posters with their pictures   build.py: all of this in order
page.py, templates/: the page              folder.py: DIR, and what may be replaced there
"""
