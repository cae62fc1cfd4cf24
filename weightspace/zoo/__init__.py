"""Built-in tasks with their data sets and networks, and ``clip_task`` and ``text_task`` for a user's own data."""

from weightspace.zoo.clip import clip_task
from weightspace.zoo.loading import TASKS, load_task
from weightspace.zoo.text import Texts, text_task

__all__ = ["TASKS", "Texts", "clip_task", "load_task", "text_task"]
