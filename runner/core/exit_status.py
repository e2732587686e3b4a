"""Exit statuses of the command line."""

EXIT_DONE, EXIT_FAILED, EXIT_WRONG, EXIT_STOPPED, EXIT_INTERRUPTED = 0, 1, 2, 75, 130
