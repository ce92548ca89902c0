"""A run's metrics in the logs of other programs."""

from mlet.training.logs.places import check_logs, with_log_places
from mlet.training.logs.run_logs import RunLogs

__all__ = ["RunLogs", "check_logs", "with_log_places"]
