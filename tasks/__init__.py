"""The running processes: they know Celery and no prices."""
