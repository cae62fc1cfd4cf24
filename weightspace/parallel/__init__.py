"""Independent jobs in this process, in processes, or on a Ray cluster."""

from weightspace.parallel.api import EXECUTORS, here_or, run_jobs

__all__ = ["EXECUTORS", "here_or", "run_jobs"]
