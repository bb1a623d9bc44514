"""The commands: the only place with argparse, log handlers, exit codes and print."""
