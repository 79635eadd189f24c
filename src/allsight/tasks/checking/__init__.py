"""What every task promises, as checks that run on any task, of allsight or of a file of yours."""

from allsight.tasks.checking.running import Answering, Finding, check_task

__all__ = ["Answering", "Finding", "check_task"]
