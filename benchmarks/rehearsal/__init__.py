"""The dress rehearsal: the sources' own programs train on real photographs, and the harness reproduces their result.

``make rehearsal CAMVID=folder`` does all of it.

* ``peers``: mmsegmentation and sssegmentation, run from their packages in ``build/parity-env``, with their own
  configuration files, data set classes, loops and evaluators;
* ``sources``: one process for each seed of a source, resumable;
* ``__main__``: the order of the work;
* ``page``: ``reports/rehearsal-sources.md`` and its figures.
"""
