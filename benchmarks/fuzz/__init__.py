"""Fuzzing of everything that reads what others wrote: at least a million cases, and no crash but our own errors.

    make fuzz                                    # or: .venv/bin/python -m benchmarks.fuzz
    .venv/bin/python -m benchmarks.fuzz --targets zip tar     # these again, the others as they were

makes an environment in ``build/fuzz-env`` (``requirements.txt``: atheris, which is libFuzzer for Python; everything
else comes from the environment that runs this), runs each target of ``targets.py`` there in a process of its own, and
writes ``reports/fuzz.md`` and ``reports/fuzz.json``. The exit status is 1 if anything was found.

A case fails if a reader raises anything but a :class:`danet.errors.DanetError`, opens a file for writing or makes a
folder outside its own, starts a process or a connection, takes longer than 20 seconds, or lets the process grow by
more than 1 GB. Seeds are small valid files, made by code; the instrumented modules (``danet``, and the pure-Python
parsers that a target uses) steer the mutations, torch is not instrumented.

What once failed lies in ``tests/fuzz/corpus/TARGET/`` and is replayed by ``tests/fuzz`` without atheris.
"""
