"""Bytes of strangers against everything that reads them: nothing but our own errors comes out.

    python -m tests.fuzz --list
    python -m tests.fuzz layer --seconds 600

Atheris (libFuzzer) drives; `pip install -e .[fuzz]` installs it.  What it found to be interesting
is kept in `corpus/TARGET`, small, and every test run replays it without Atheris.
"""
