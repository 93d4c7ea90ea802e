"""The sweep: many rows through DVC, side by side on one machine's GPUs or as a job array of a Slurm cluster.

Nothing is scheduled here. DVC says what is left to do, Slurm or a short loop starts the rows, torchrun makes several
processes of a row. Any of them may be stopped at any time: a row's lock and checkpoints make the same command go on.

:mod:`.plan` chooses rows and asks DVC, :mod:`.status` says how each row stands (also before anything is started),
:mod:`.job` runs one row, :mod:`.local` starts such jobs here and :mod:`.slurm` submits them; :mod:`.launch` makes a
stage several processes.
"""
