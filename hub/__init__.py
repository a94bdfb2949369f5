"""What the hub knows; imports neither Celery nor `tasks`."""
