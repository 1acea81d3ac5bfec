"""Where rollouts run: executors of concurrent.futures."""
