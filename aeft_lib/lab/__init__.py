"""What a notebook imports: session, figures, widgets, a module a chapter; and the notebook runner.

Only notebooks and the command line come in; nothing of the library imports it.
"""
