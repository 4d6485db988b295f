"""What a notebook imports: the session, figures, widgets, one module for each chapter, and the runner of notebooks.

Only notebooks and the command line come in; nothing of the library imports it.
"""
