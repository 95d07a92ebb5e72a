"""The routes, one file per group: each has ``make_router(context)``."""
