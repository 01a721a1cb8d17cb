"""Pages of the reference, made from the code when the documentation is built: nothing of them is committed.

Each module here makes Markdown; `pages.py` knows them by name, and `docs/extension.py` hands them to Sphinx.
"""
