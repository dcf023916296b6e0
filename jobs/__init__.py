"""The verbs of the command line: argv, printing and exit codes, one small file per verb."""
