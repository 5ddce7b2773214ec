"""The command line, a file a subcommand: each has HELP, add_arguments(parser) and run(options)."""
