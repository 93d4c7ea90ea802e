"""The sweep: many rows through DVC, side by side on one machine's GPUs or as array jobs of a Slurm cluster.

Nothing is scheduled here. DVC says what is done and what is not, torchrun makes many processes of a row, Slurm or a
short loop starts the rows; a row's own lock and checkpoints make it safe to stop any of them at any time.

:mod:`.plan` chooses rows and asks DVC, :mod:`.local` runs them here, :mod:`.slurm` submits them and :mod:`.job` is what
the submitted jobs run, :mod:`.launch` starts a row's processes, :mod:`.records` and :mod:`.status` say which row is
where.
"""
